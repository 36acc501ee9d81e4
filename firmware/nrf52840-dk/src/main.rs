//! Nordic's nRF52840-DK.
#![no_std]
#![no_main]

use cortex_m::peripheral::DWT;
use embassy_nrf::buffered_uarte::{BufferedUarte, BufferedUarteRx, BufferedUarteTx, InterruptHandler};
use embassy_nrf::peripherals::{UARTE0, WDT};
use embassy_nrf::wdt::{self, HaltConfig, Watchdog, WatchdogHandle};
use embassy_nrf::{bind_interrupts, config, pac, uarte};
use hrm_firmware::memories::NRF52840;
use hrm_firmware::port::Port;
use hrm_firmware::{Plan, last_run, serve};

bind_interrupts!(struct Interrupts {
    UARTE0 => InterruptHandler<UARTE0>;
});

static PORT: Port<BufferedUarteRx<'static>, BufferedUarteTx<'static>> = Port::new();

/// The board.
struct Board;

/// Seconds without a segment's end after which the board starts anew.
const WATCHDOG: u32 = 60;
/// 64-bit words of the arena.
const ARENA: usize = NRF52840.arena;

impl hrm_firmware::Board for Board {
    const NAME: &'static str = "nrf52840-dk";
    const SIZES: (u32, u32) = (512 << 10, 256 << 10);
    const PLAN: Plan = NRF52840.plan;
    // The cycle counter at 64 MHz.
    const NANOSECONDS_OF_TICKS: (u32, u32) = (125, 8);

    fn start() {}

    fn ticks() -> u32 {
        DWT::cycle_count()
    }

    fn receive() -> Option<u8> {
        PORT.receive()
    }

    fn send(byte: u8) -> bool {
        PORT.send(byte)
    }

    fn feed() {
        // SAFETY: `main` has started the watchdog with this handle, which nothing else uses.
        unsafe { WatchdogHandle::steal::<WDT>(0) }.pet();
    }
}

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut GUESSES: [u8; serve::GUESSES] = [0; serve::GUESSES];
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    static mut RECEIVED: [u8; 1024] = [0; 1024];
    static mut TO_SEND: [u8; 1024] = [0; 1024];

    let p = embassy_nrf::init(config::Config::default());
    if let Some(mut core) = cortex_m::Peripherals::take() {
        core.DCB.enable_trace();
        core.DWT.enable_cycle_counter();
    }
    let reasons = pac::POWER.resetreas();
    if reasons.read().dog() {
        last_run::watchdog_bit();
    }
    // A set bit is cleared by writing it.
    reasons.write_value(reasons.read());

    let mut config = wdt::Config::default();
    config.timeout_ticks = WATCHDOG * 32768;
    config.action_during_debug_halt = HaltConfig::Pause;
    // One that runs with another configuration is fed all the same.
    let _ = Watchdog::try_new::<_, 1>(p.WDT, config);

    // P0.06 and P0.08 lead to the debugger's virtual serial port; 115200 baud, 8N1.
    let uart = BufferedUarte::new(
        p.UARTE0,
        p.TIMER0,
        p.PPI_CH0,
        p.PPI_CH1,
        p.PPI_GROUP0,
        p.P0_08,
        p.P0_06,
        Interrupts,
        uarte::Config::default(),
        RECEIVED,
        TO_SEND,
    );
    let (reader, writer) = uart.split();
    PORT.open(reader, writer);
    serve::main::<Board>([MEMORY, &mut []], &mut [], GUESSES)
}
