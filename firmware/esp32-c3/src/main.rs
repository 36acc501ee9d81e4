//! A board with an ESP32-C3 whose USB port is the chip's own.
#![no_std]
#![no_main]

mod flash;

use core::cell::RefCell;

use critical_section::Mutex;
use esp_hal::clock::CpuClock;
use esp_hal::rtc_cntl::{Rtc, Rwdt, RwdtStage, SocResetReason, reset_reason};
use esp_hal::system::Cpu;
use esp_hal::time::{Duration, Instant};
use esp_hal::usb::usb_serial_jtag::UsbSerialJtag;
use esp_hal::{Blocking, Config};
use hrm_firmware::memories::ESP32_C3;
use hrm_firmware::{Plan, last_run, serve};
use static_cell::ConstStaticCell;

esp_bootloader_esp_idf::esp_app_desc!();

/// The serial port. Its buffers are the hardware's, and the host waits while they are full.
static PORT: Mutex<RefCell<Option<UsbSerialJtag<'static, Blocking>>>> = Mutex::new(RefCell::new(None));
static WATCHDOG: Mutex<RefCell<Option<Rwdt>>> = Mutex::new(RefCell::new(None));

/// The board.
struct Board;

/// After this long without a segment's end the board starts anew.
const PATIENCE: Duration = Duration::from_secs(60);
/// 64-bit words of the arena.
const ARENA: usize = ESP32_C3.arena;

impl hrm_firmware::Board for Board {
    const NAME: &'static str = "esp32-c3";
    const SIZES: (u32, u32) = (0x18_0000, 313 << 10);
    const PLAN: Plan = ESP32_C3.plan;
    const NANOSECONDS_OF_TICKS: (u32, u32) = (1000, 1);

    fn start() {}

    fn ticks() -> u32 {
        Instant::now().duration_since_epoch().as_micros() as u32
    }

    fn receive() -> Option<u8> {
        critical_section::with(|cs| PORT.borrow_ref_mut(cs).as_mut()?.read_byte().ok())
    }

    fn send(byte: u8) -> bool {
        critical_section::with(|cs| {
            let mut port = PORT.borrow_ref_mut(cs);
            let Some(port) = port.as_mut() else { return false };
            let taken = port.write_byte_nb(byte).is_ok();
            // A frame ends with a zero: what the buffer holds may go.
            if taken && byte == 0 {
                let _ = port.flush_tx_nb();
            }
            taken
        })
    }

    fn feed() {
        critical_section::with(|cs| {
            if let Some(watchdog) = WATCHDOG.borrow_ref_mut(cs).as_mut() {
                watchdog.feed();
            }
        });
    }
}

#[esp_hal::main]
fn main() -> ! {
    static GUESSES: ConstStaticCell<[u8; serve::GUESSES]> = ConstStaticCell::new([0; serve::GUESSES]);
    static ARENA_MEMORY: ConstStaticCell<[u64; ARENA]> = ConstStaticCell::new([0; ARENA]);

    let p = esp_hal::init(Config::default().with_cpu_clock(CpuClock::max()));
    if matches!(reset_reason(Cpu::ProCpu), Some(SocResetReason::SysRtcWdt | SocResetReason::CoreRtcWdt)) {
        last_run::watchdog_bit();
    }
    let mut watchdog = Rtc::new(p.RTC_TIMER).rwdt;
    watchdog.set_timeout(RwdtStage::Stage0, PATIENCE);
    watchdog.enable();
    critical_section::with(|cs| {
        WATCHDOG.replace(cs, Some(watchdog));
        PORT.replace(cs, Some(UsbSerialJtag::new(p.USB_DEVICE)));
    });
    flash::map_model();
    serve::main::<Board>([ARENA_MEMORY.take(), &mut []], &mut [], GUESSES.take())
}
