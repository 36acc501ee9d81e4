//! AArch64: a bare program that speaks to Linux, or to its user-mode emulation, by system calls.

use core::arch::{asm, naked_asm};
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use hrm_core::Kernel;
use hrm_kernels_image::check;

static mut BUFFERS: check::Buffers = check::Buffers::EMPTY;

/// Standard output.
struct Output;

impl Write for Output {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // SAFETY: `write` reads the string and nothing else.
        unsafe {
            asm!("svc 0", in("x8") 64, inlateout("x0") 1usize => _, in("x1") s.as_ptr(), in("x2") s.len(), options(nostack, readonly));
        }
        Ok(())
    }
}

fn exit(code: usize) -> ! {
    // SAFETY: `exit` does not return.
    unsafe { asm!("svc 0", in("x8") 93, in("x0") code, options(noreturn, nostack)) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Output, "{info}");
    exit(101)
}

/// Where the kernel of the operating system starts the program, without a return address.
///
/// # Safety
/// Called by the operating system only.
// SAFETY: no other function has this name.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov x29, xzr", "mov x30, xzr", "b {main}", main = sym main)
}

extern "C" fn main() -> ! {
    for kernel in Kernel::available() {
        let _ = writeln!(Output, "kernel {}", kernel.name());
    }
    // SAFETY: called once, and nothing else names it.
    let buffers = unsafe { &mut *(&raw mut BUFFERS) };
    match check::run(buffers, 1, 300) {
        Ok(comparisons) => {
            let _ = writeln!(Output, "check {comparisons}");
            exit(0)
        }
        Err(difference) => {
            let _ = writeln!(Output, "error {difference:?}");
            exit(103)
        }
    }
}
