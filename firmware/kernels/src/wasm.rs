//! WebAssembly: one exported function that an engine calls.

use core::arch::wasm32;
use core::panic::PanicInfo;

use hrm_core::Kernel;
use hrm_kernels_image::check;

static mut BUFFERS: check::Buffers = check::Buffers::EMPTY;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    wasm32::unreachable()
}

/// Checks all kernels; returns the number of comparisons, or 0 if one differs or there is none but the scalar ones.
// SAFETY: no other function has this name.
#[unsafe(no_mangle)]
pub extern "C" fn check() -> usize {
    if Kernel::best().name() != "simd128" {
        return 0;
    }
    // SAFETY: WebAssembly has one thread here, and the function is not entered again while it runs.
    let buffers = unsafe { &mut *(&raw mut BUFFERS) };
    check::run(buffers, 1, 300).unwrap_or(0)
}
