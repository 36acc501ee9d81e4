//! The most that the stack has taken, seen by the paint that it has left.

unsafe extern "C" {
    /// Lowest address of the stack, set by `memory.x`.
    static mut __stack_low: u8;
    /// One past its highest address.
    static __stack_high: u8;
}

const PAINT: u8 = 0xA5;

/// Paints what lies below the caller's frame. To be called first.
#[inline(never)]
pub fn paint() {
    let here = 0u8;
    // Room for this function's own frame and those of calls it makes.
    let end = (&raw const here) as usize - 256;
    let low = &raw mut __stack_low;
    for at in 0..end.saturating_sub(low as usize) {
        // SAFETY: between the low end of the stack and the frames in use nothing is stored.
        unsafe { low.add(at).write_volatile(PAINT) };
    }
}

/// The addresses of the stack.
#[must_use]
pub fn bounds() -> core::ops::Range<usize> {
    (&raw const __stack_low) as usize..(&raw const __stack_high) as usize
}

/// Bytes of stack that have been used since [`paint`].
#[must_use]
pub fn most() -> usize {
    let (low, high) = (&raw const __stack_low, &raw const __stack_high);
    let size = high as usize - low as usize;
    // SAFETY: reads the stack's own memory.
    let untouched = (0..size).take_while(|&at| unsafe { low.add(at).read_volatile() } == PAINT).count();
    size - untouched
}

/// Calls itself until the stack has overflowed, for the proof that this ends in a fault.
#[inline(never)]
#[must_use]
#[expect(unconditional_recursion, reason = "that is its purpose")]
pub fn overflow(depth: usize) -> usize {
    let frame = core::hint::black_box([depth; 32]);
    overflow(depth + 1) + core::hint::black_box(frame)[0]
}
