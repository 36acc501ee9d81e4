//! The stack: a guard below it, and the most that it has taken, seen by the paint that it has left.

unsafe extern "C" {
    /// Lowest address of the stack, set by `memory.x`.
    static mut __stack_low: u8;
    /// One past its highest address.
    static __stack_high: u8;
}

const PAINT: u8 = 0xA5;

/// Bytes at its low end that fault when they are written. A frame larger than this may jump over it: then what lies below the stack has to
/// fault, which is no memory on every board, but not every bus says so.
const GUARD: usize = 1024;

/// From now on an overflow of the stack is a fault, whatever lies below it: the memory protection unit of ARMv7-M forbids the guard.
#[cfg(all(target_arch = "arm", not(stack_limit)))]
pub fn guard() {
    // Normal memory, no access, no execution, 2^10 bytes, on; and the default map for everything else, off in the fault handler.
    const RASR: u32 = (1 << 28) | (1 << 19) | ((GUARD.ilog2() - 1) << 1) | 1;
    const CTRL: u32 = 0b101;
    // SAFETY: nothing else uses the unit.
    let mpu = unsafe { cortex_m::Peripherals::steal().MPU };
    // SAFETY: the region is the low end of the stack, which `memory.x` aligns; nothing is there yet.
    unsafe {
        mpu.rnr.write(0);
        mpu.rbar.write((&raw const __stack_low) as u32);
        mpu.rasr.write(RASR);
        mpu.ctrl.write(CTRL);
    }
    cortex_m::asm::dsb();
    cortex_m::asm::isb();
}

/// From now on an overflow of the stack is a fault: ARMv8-M compares every new stack pointer with a limit.
#[cfg(all(target_arch = "arm", stack_limit))]
pub fn guard() {
    let limit = (&raw const __stack_low) as usize + GUARD;
    // SAFETY: the limit lies in the stack, far below the frames in use.
    unsafe { core::arch::asm!("msr msplim, {}", in(reg) limit, options(nostack, preserves_flags)) };
}

/// Whether a fault came from the limit of the stack (`STKOF` in `CFSR`): its frame may lie above the limit.
#[cfg(target_arch = "arm")]
#[must_use]
pub fn limit_was_hit() -> bool {
    // SAFETY: reading the register changes nothing.
    let cfsr = unsafe { (*cortex_m::peripheral::SCB::PTR).cfsr.read() };
    cfg!(stack_limit) && cfsr & 1 << 20 != 0
}

/// Below the stack there is no memory, and the bus of RISC-V boards says so.
#[cfg(target_arch = "riscv32")]
pub fn guard() {}

/// Paints what lies below the caller's frame. To be called first.
#[inline(never)]
pub fn paint() {
    let here = 0u8;
    // Room for this function's own frame and those of calls it makes.
    let end = (&raw const here) as usize - 256;
    let low = &raw mut __stack_low;
    for at in GUARD..end.saturating_sub(low as usize) {
        // SAFETY: between the low end of the stack and the frames in use nothing is stored.
        unsafe { low.add(at).write_volatile(PAINT) };
    }
}

/// The lowest address of an exception's frame unless the stack has overflowed: all other memory lies above the stack.
#[must_use]
pub fn lowest_frame() -> usize {
    (&raw const __stack_low) as usize + GUARD + 32
}

/// Bytes of stack that have been used since [`paint`].
#[must_use]
pub fn most() -> usize {
    let (low, high) = (&raw const __stack_low, &raw const __stack_high);
    let size = high as usize - low as usize;
    // SAFETY: reads the stack's own memory.
    let untouched = (GUARD..size).take_while(|&at| unsafe { low.add(at).read_volatile() } == PAINT).count();
    size - GUARD - untouched
}

/// Calls itself until the stack has overflowed, for the proof that this ends in a fault.
#[inline(never)]
#[must_use]
#[expect(unconditional_recursion, reason = "that is its purpose")]
pub fn overflow(depth: usize) -> usize {
    let frame = core::hint::black_box([depth; 32]);
    overflow(depth + 1) + core::hint::black_box(frame)[0]
}
