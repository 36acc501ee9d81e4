//! The end of an image that cannot go on: said through semihosting where an emulator listens, else recorded and followed by a reset.

use core::fmt::Display;
use core::panic::PanicInfo;

#[cfg(feature = "emulated")]
use core::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "emulated")]
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
#[cfg(feature = "emulated")]
pub fn tell_the_emulator() {
    EMULATED.store(true, Ordering::Relaxed);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    #[cfg(feature = "boards")]
    crate::last_run::panicked(info);
    #[cfg(not(feature = "boards"))]
    tell(info, code::PANIC);
    reset()
}

/// Says why to whoever listens.
fn tell(why: impl Display, code: i32) {
    #[cfg(feature = "emulated")]
    if EMULATED.load(Ordering::Relaxed) {
        semihosting::eprintln!("{why}");
        semihosting::process::exit(code);
    }
    #[cfg(feature = "boards")]
    crate::last_run::record(&why);
    let _ = (why, code);
}

/// Starts the board anew.
fn reset() -> ! {
    #[cfg(target_arch = "arm")]
    cortex_m::peripheral::SCB::sys_reset();
    // The test device of QEMU's `virt` board is told so; RTC_CNTL_OPTIONS0 of an ESP32-C3, "software system reset".
    #[cfg(target_arch = "riscv32")]
    let (register, value) = if cfg!(feature = "boards") { (0x6000_8000, 1 << 31) } else { (0x10_0000, 0x7777) };
    #[cfg(target_arch = "riscv32")]
    loop {
        // SAFETY: a register of the board, whose only effect is the reset.
        unsafe { (register as *mut u32).write_volatile(value) };
    }
}

fn fault(address: u32) -> ! {
    tell(format_args!("fault at {address:#010x}"), code::FAULT);
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
    if crate::stack::limit_was_hit() || frame < crate::stack::lowest_frame() {
        tell("fault: the stack has overflowed", code::FAULT);
        reset();
    }
    // SAFETY: the processor has stored eight words there; the seventh is the address of the instruction.
    fault(unsafe { *((frame + 24) as *const u32) })
}

/// Exceptions of RISC-V.
#[cfg(target_arch = "riscv32")]
#[unsafe(export_name = "ExceptionHandler")]
fn exception(_frame: *const ()) -> ! {
    fault(riscv::register::mepc::read() as u32)
}

// Floating point and vectors on (FS and VS of mstatus) before compiled code runs, where the core has them.
#[cfg(all(target_arch = "riscv32", feature = "emulated"))]
core::arch::global_asm!(".globl __pre_init", "__pre_init:", "li t0, 0x6600", "csrs mstatus, t0", "ret");
