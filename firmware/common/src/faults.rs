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

// Faults of Cortex-M. The stack may be what is broken: the handler leaves it before it stores anything, with the address of the frame,
// which it reads only if that lies in the stack.
#[cfg(target_arch = "arm")]
core::arch::global_asm!(
    ".section .text.HardFault, \"ax\"",
    ".globl HardFault",
    ".type HardFault, %function",
    ".thumb_func",
    "HardFault:",
    "mrs r0, msp",
    "ldr r1, =_stack_start",
    "msr msp, r1",
    "b {handler}",
    handler = sym hard_fault,
);

#[cfg(target_arch = "arm")]
extern "C" fn hard_fault(frame: usize) -> ! {
    if crate::stack::limit_was_hit() || !crate::stack::bounds().contains(&frame) {
        if EMULATED.load(Ordering::Relaxed) {
            eprintln!("fault: the stack has overflowed");
            process::exit(code::FAULT);
        }
        reset();
    }
    // SAFETY: the processor has stored eight words there; the seventh is the address of the instruction.
    fault(unsafe { *((frame + 24) as *const u32) })
}

/// Exceptions of RISC-V.
#[cfg(target_arch = "riscv32")]
#[unsafe(export_name = "ExceptionHandler")]
fn exception(_frame: &riscv_rt::TrapFrame) -> ! {
    fault(riscv::register::mepc::read() as u32)
}

// Floating point and vectors on (FS and VS of mstatus) before compiled code runs, where the core has them.
#[cfg(target_arch = "riscv32")]
core::arch::global_asm!(".globl __pre_init", "__pre_init:", "li t0, 0x6600", "csrs mstatus, t0", "ret");
