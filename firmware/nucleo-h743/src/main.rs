//! ST's Nucleo-H743ZI2.
#![no_std]
#![no_main]

use core::mem::MaybeUninit;

use cortex_m::peripheral::DWT;
use embassy_stm32::peripherals::{IWDG1, USART3};
use embassy_stm32::usart::{self, BufferedInterruptHandler, BufferedUart, BufferedUartRx, BufferedUartTx};
use embassy_stm32::wdg::IndependentWatchdog;
use embassy_stm32::{Config, Peri, bind_interrupts, pac, rcc};
use hrm_firmware::memories::STM32H743;
use hrm_firmware::port::Port;
use hrm_firmware::{Plan, last_run, serve};

bind_interrupts!(struct Interrupts {
    USART3 => BufferedInterruptHandler<USART3>;
});

static PORT: Port<BufferedUartRx<'static>, BufferedUartTx<'static>> = Port::new();

/// The board.
struct Board;

/// Microseconds without a segment's end after which the board starts anew.
const WATCHDOG: u32 = 16_000_000;
/// 64-bit words of the arena, all of the RAM on the AXI bus.
const ARENA: usize = STM32H743.arena;
/// Words for weights in the form that the kernel wants, in the RAM of domain 2.
const PACKED: usize = STM32H743.packed;

impl hrm_firmware::Board for Board {
    const NAME: &'static str = "nucleo-h743";
    const SIZES: (u32, u32) = (1 << 20, (128 + 512 + 288) << 10);
    const PLAN: Plan = STM32H743.plan;
    // The cycle counter at 400 MHz.
    const NANOSECONDS_OF_TICKS: (u32, u32) = (5, 2);

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
        pac::IWDG1.kr().write(|w| w.set_key(pac::iwdg::vals::Key::RESET));
    }
}

/// 400 MHz out of the internal oscillator of 64 MHz.
fn clocks() -> Config {
    let mut config = Config::default();
    config.rcc.hsi = Some(rcc::HSIPrescaler::DIV1);
    config.rcc.pll1 = Some(rcc::Pll {
        source: rcc::PllSource::HSI,
        prediv: rcc::PllPreDiv::DIV4,
        mul: rcc::PllMul::MUL50,
        fracn: None,
        divp: Some(rcc::PllDiv::DIV2),
        divq: None,
        divr: None,
    });
    config.rcc.sys = rcc::Sysclk::PLL1_P;
    config.rcc.ahb_pre = rcc::AHBPrescaler::DIV2;
    config.rcc.apb1_pre = rcc::APBPrescaler::DIV2;
    config.rcc.apb2_pre = rcc::APBPrescaler::DIV2;
    config.rcc.apb3_pre = rcc::APBPrescaler::DIV2;
    config.rcc.apb4_pre = rcc::APBPrescaler::DIV2;
    config.rcc.voltage_scale = rcc::VoltageScale::Scale1;
    config
}

/// The RAM on the AXI bus and that of domain 2, zeroed.
///
/// # Safety
/// To be called once.
unsafe fn memories() -> (&'static mut [u64], &'static mut [i32]) {
    #[unsafe(link_section = ".axi")]
    static mut WORDS: MaybeUninit<[u64; ARENA]> = MaybeUninit::uninit();
    #[unsafe(link_section = ".d2")]
    static mut WEIGHTS: MaybeUninit<[i32; PACKED]> = MaybeUninit::uninit();
    pac::RCC.ahb2enr().modify(|w| {
        w.set_sram1en(true);
        w.set_sram2en(true);
        w.set_sram3en(true);
    });
    cortex_m::asm::dsb();
    let (words, weights) = (&raw mut WORDS, &raw mut WEIGHTS);
    // SAFETY: the only references, as the caller promises.
    let (words, weights) = unsafe { (&mut *words, &mut *weights) };
    (words.write([0; ARENA]), weights.write([0; PACKED]))
}

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut GUESSES: [u8; serve::GUESSES] = [0; serve::GUESSES];
    static mut RECEIVED: [u8; 1024] = [0; 1024];
    static mut TO_SEND: [u8; 1024] = [0; 1024];

    let p = embassy_stm32::init(clocks());
    if let Some(mut core) = cortex_m::Peripherals::take() {
        core.SCB.enable_icache();
        core.SCB.enable_dcache(&mut core.CPUID);
        core.DCB.enable_trace();
        DWT::unlock();
        core.DWT.enable_cycle_counter();
    }
    if pac::RCC.rsr().read().iwdg1rstf() {
        last_run::watchdog_bit();
    }
    pac::RCC.rsr().modify(|w| w.set_rmvf(true));
    start_watchdog(p.IWDG1);

    // PD8 and PD9 lead to the ST-LINK's virtual serial port; 115200 baud, 8N1.
    let uart = BufferedUart::new(p.USART3, p.PD9, p.PD8, TO_SEND, RECEIVED, Interrupts, usart::Config::default());
    if let Ok(uart) = uart {
        let (writer, reader) = uart.split();
        PORT.open(reader, writer);
    }
    // SAFETY: called once.
    let (arena, packed) = unsafe { memories() };
    serve::main::<Board>([arena, &mut []], packed, GUESSES)
}

fn start_watchdog(watchdog: Peri<'static, IWDG1>) {
    IndependentWatchdog::new(watchdog, WATCHDOG).unleash();
}
