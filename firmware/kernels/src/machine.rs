//! What depends on the machine: where the program starts, and its count of instructions.

#[cfg(target_arch = "arm")]
pub use arm::{instructions, start};
#[cfg(target_arch = "riscv32")]
pub use riscv32::{instructions, start};

/// Cortex-M on Arm's MPS2 and MPS3 boards: `SysTick` counts at the core's clock, and with `-icount shift=0` an instruction takes 1 ns.
#[cfg(target_arch = "arm")]
mod arm {
    use core::sync::atomic::{AtomicU32, Ordering};

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

    /// Ticks until the counter, which counts down, begins anew.
    const ROUND: u32 = 1 << 24;

    /// Rounds of the counter: some 10^9 instructions are more than one.
    static ROUNDS: AtomicU32 = AtomicU32::new(0);

    #[cortex_m_rt::entry]
    fn main() -> ! {
        crate::bare::main()
    }

    #[cortex_m_rt::exception]
    fn SysTick() {
        ROUNDS.fetch_add(1, Ordering::Relaxed);
    }

    /// Starts the counter.
    pub fn start() {
        if let Some(mut p) = Peripherals::take() {
            p.SYST.set_clock_source(SystClkSource::Core);
            p.SYST.set_reload(ROUND - 1);
            p.SYST.clear_current();
            p.SYST.enable_interrupt();
            p.SYST.enable_counter();
        }
    }

    /// Instructions so far.
    pub fn instructions() -> impl FnMut() -> u64 {
        || loop {
            let (rounds, current) = (ROUNDS.load(Ordering::Relaxed), SYST::get_current());
            if rounds == ROUNDS.load(Ordering::Relaxed) {
                // At 0 the round is over, and has been counted.
                let ticks = if current == 0 { 0 } else { ROUND - current };
                return (u64::from(rounds) * u64::from(ROUND) + u64::from(ticks)) * TICK / 100;
            }
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
