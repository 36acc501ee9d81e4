//! What depends on the machine: where the program starts, and its count of instructions.

#[cfg(target_arch = "arm")]
pub use arm::{instructions, start};
#[cfg(target_arch = "riscv32")]
pub use riscv32::{instructions, start};

/// Cortex-M on Arm's MPS2 and MPS3 boards: `SysTick` counts at the core's clock, and with `-icount shift=0` an instruction takes 1 ns.
#[cfg(target_arch = "arm")]
mod arm {
    use cortex_m::Peripherals;
    use cortex_m::peripheral::SYST;
    use cortex_m::peripheral::syst::SystClkSource;

    /// Hundredths of instructions a tick.
    const TICK: u64 = if cfg!(feature = "an505") {
        5000
    } else if cfg!(feature = "an547") {
        3125
    } else {
        4000
    };

    #[cortex_m_rt::entry]
    fn main() -> ! {
        crate::bare::main()
    }

    /// Starts the counter.
    pub fn start() {
        if let Some(mut p) = Peripherals::take() {
            p.SYST.set_clock_source(SystClkSource::Core);
            p.SYST.set_reload(0xff_ffff);
            p.SYST.clear_current();
            p.SYST.enable_counter();
        }
    }

    /// Instructions since the first call, if it is called again before 2^24 ticks have passed.
    pub fn instructions() -> impl FnMut() -> u64 {
        let (mut last, mut ticks) = (SYST::get_current(), 0u64);
        move || {
            let current = SYST::get_current();
            ticks += u64::from(last.wrapping_sub(current) & 0xff_ffff);
            last = current;
            ticks * TICK / 100
        }
    }
}

#[cfg(target_arch = "riscv32")]
mod riscv32 {
    use core::arch::{asm, global_asm};

    global_asm!(
        ".section .start, \"ax\"",
        ".globl _start",
        "_start:",
        "la sp, __stack_top",
        "la t0, __bss_start",
        "la t1, __bss_end",
        "1: bgeu t0, t1, 2f",
        "sw zero, 0(t0)",
        "addi t0, t0, 4",
        "j 1b",
        "2: li t0, 0x6600", // FS and VS of mstatus: floating point and vectors on, where there are any
        "csrs mstatus, t0",
        "call {main}",
        main = sym main,
    );

    extern "C" fn main() -> ! {
        crate::bare::main()
    }

    /// Nothing to start.
    pub fn start() {}

    /// Instructions so far.
    pub fn instructions() -> impl FnMut() -> u64 {
        || {
            let (high, low, again): (u32, u32, u32);
            // SAFETY: reads a counter.
            unsafe {
                asm!("csrr {0}, minstreth", "csrr {1}, minstret", "csrr {2}, minstreth", out(reg) high, out(reg) low, out(reg) again)
            };
            let low = if high == again { low } else { 0 };
            u64::from(again) << 32 | u64::from(low)
        }
    }
}
