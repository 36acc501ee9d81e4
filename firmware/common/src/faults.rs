//! The end of an image that cannot go on: said through semihosting where an emulator listens, else recorded and followed by a reset.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use semihosting::{eprintln, process};

static EMULATED: AtomicBool = AtomicBool::new(false);

/// Exit codes of the emulator.
pub mod code {
    /// A panic.
    pub const PANIC: i32 = 101;
    /// A fault of the processor.
    pub const FAULT: i32 = 102;
    /// The run was told or found something wrong; the last line says what.
    pub const ERROR: i32 = 103;
}

/// From now on an emulator with semihosting is there to be told.
pub fn tell_the_emulator() {
    EMULATED.store(true, Ordering::Relaxed);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if EMULATED.load(Ordering::Relaxed) {
        eprintln!("{info}");
        process::exit(code::PANIC);
    }
    reset()
}

/// Starts the board anew.
fn reset() -> ! {
    #[cfg(target_arch = "arm")]
    cortex_m::peripheral::SCB::sys_reset();
    #[cfg(not(target_arch = "arm"))]
    loop {
        core::hint::spin_loop();
    }
}

/// Faults of Cortex-M: the address of the instruction is in the frame.
#[cfg(target_arch = "arm")]
#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    if EMULATED.load(Ordering::Relaxed) {
        eprintln!("fault at {:#010x}", frame.pc());
        process::exit(code::FAULT);
    }
    reset()
}
