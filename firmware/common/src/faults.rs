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
    // `virt` resets when its test device is told so.
    #[cfg(target_arch = "riscv32")]
    loop {
        // SAFETY: the address of the device on QEMU's `virt` board; the value means reset.
        unsafe { (0x10_0000 as *mut u32).write_volatile(0x7777) };
    }
}

fn fault(address: u32) -> ! {
    if EMULATED.load(Ordering::Relaxed) {
        eprintln!("fault at {address:#010x}");
        process::exit(code::FAULT);
    }
    reset()
}

/// Faults of Cortex-M: the address of the instruction is in the frame.
#[cfg(target_arch = "arm")]
#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    fault(frame.pc())
}

/// Exceptions of RISC-V.
#[cfg(target_arch = "riscv32")]
#[unsafe(export_name = "ExceptionHandler")]
fn exception(_frame: &riscv_rt::TrapFrame) -> ! {
    fault(riscv::register::mepc::read() as u32)
}

/// Floating point and vectors on (FS and VS of mstatus) before compiled code runs, where the core has them.
#[cfg(target_arch = "riscv32")]
core::arch::global_asm!(".globl __pre_init", "__pre_init:", "li t0, 0x6600", "csrs mstatus, t0", "ret");
