//! Raspberry Pi Pico 2: core 0 runs the segments, core 1 the USB serial port.
#![no_std]
#![no_main]

mod usb;

use embassy_executor::Executor;
use embassy_rp::multicore::{Stack, spawn_core1};
use embassy_rp::watchdog::{ResetReason, Watchdog};
use embassy_time::{Duration, Instant};
use hrm_firmware::memories::RP2350;
use hrm_firmware::{Plan, last_run, serve};
use static_cell::{ConstStaticCell, StaticCell};

/// The board.
struct Board;

/// No segment takes as long, on any kernel.
const WATCHDOG: Duration = Duration::from_secs(16);
/// 64-bit words of the arena.
const ARENA: usize = RP2350.arena;
/// Words for weights in the form that the kernel wants.
const PACKED: usize = RP2350.packed;

impl hrm_firmware::Board for Board {
    const NAME: &'static str = "pico2";
    const SIZES: (u32, u32) = (1 << 20, 520 << 10);
    const PLAN: Plan = RP2350.plan;
    const NANOSECONDS_OF_TICKS: (u32, u32) = (1000, 1);

    fn start() {
        // SAFETY: `main` has handed out neither of them.
        let p = unsafe { embassy_rp::Peripherals::steal() };
        let mut watchdog = Watchdog::new(p.WATCHDOG);
        if let Some(ResetReason::TimedOut) = watchdog.reset_reason() {
            last_run::watchdog_bit();
        }
        watchdog.pause_on_debug(true);
        watchdog.start(WATCHDOG);
    }

    fn ticks() -> u32 {
        Instant::now().as_ticks() as u32
    }

    fn receive() -> Option<u8> {
        usb::receive()
    }

    fn send(byte: u8) -> bool {
        usb::send(byte)
    }

    fn feed() {
        // SAFETY: core 0 alone uses the watchdog after `start`.
        Watchdog::new(unsafe { embassy_rp::peripherals::WATCHDOG::steal() }).feed(WATCHDOG);
    }

    fn host_left() -> bool {
        usb::host_left()
    }
}

#[cortex_m_rt::entry]
fn main() -> ! {
    static STACK: ConstStaticCell<Stack<8192>> = ConstStaticCell::new(Stack::new());
    static mut GUESSES: [u8; serve::GUESSES] = [0; serve::GUESSES];
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    static mut WEIGHTS: [i32; PACKED] = [0; PACKED];

    let p = embassy_rp::init(embassy_rp::config::Config::default());
    let port = p.USB;
    spawn_core1(p.CORE1, STACK.take(), move || {
        static EXECUTOR: StaticCell<Executor> = StaticCell::new();
        // The interrupt of the port is enabled on the core that makes its driver.
        EXECUTOR.init(Executor::new()).run(|spawner| {
            if let Ok(task) = usb::run(port) {
                spawner.spawn(task);
            }
        })
    });
    serve::main::<Board>([MEMORY, &mut []], WEIGHTS, GUESSES)
}
