//! The USB serial port (CDC-ACM), and the bytes between it and the core that solves.

use core::sync::atomic::{AtomicBool, Ordering};

use embassy_futures::join::join4;
use embassy_rp::peripherals::USB;
use embassy_rp::usb::{Driver, InterruptHandler};
use embassy_rp::{Peri, bind_interrupts};
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::pipe::Pipe;
use embassy_usb::class::cdc_acm::{CdcAcmClass, ControlChanged, Receiver, Sender, State};
use embassy_usb::{Builder, Config};
use static_cell::{ConstStaticCell, StaticCell};

bind_interrupts!(struct Interrupts {
    USBCTRL_IRQ => InterruptHandler<USB>;
});

type Bytes = Pipe<CriticalSectionRawMutex, 1024>;

/// Bytes of a packet, full speed.
const PACKET: usize = 64;

static FROM_HOST: Bytes = Bytes::new();
static TO_HOST: Bytes = Bytes::new();
static HOST_LEFT: AtomicBool = AtomicBool::new(false);

/// A byte that has come in.
pub fn receive() -> Option<u8> {
    let mut byte = [0];
    FROM_HOST.try_read(&mut byte).ok().map(|_| byte[0])
}

/// Takes a byte to send if there is room.
pub fn send(byte: u8) -> bool {
    TO_HOST.try_write(&[byte]).is_ok()
}

/// Whether the host has closed the port since this was asked last.
pub fn host_left() -> bool {
    HOST_LEFT.swap(false, Ordering::Relaxed)
}

/// Runs the port.
#[embassy_executor::task]
pub async fn run(port: Peri<'static, USB>) {
    static STATE: StaticCell<State<'static>> = StaticCell::new();
    static CONFIGURATION: ConstStaticCell<[u8; 128]> = ConstStaticCell::new([0; 128]);
    static CONTROL: ConstStaticCell<[u8; PACKET]> = ConstStaticCell::new([0; PACKET]);

    // The pid.codes identifiers for tests: a product needs its own.
    let mut config = Config::new(0x1209, 0x0001);
    config.manufacturer = Some("hrm");
    config.product = Some("hrm puzzle solver");
    config.max_power = 100;
    let driver = Driver::new(port, Interrupts);
    let mut builder = Builder::new(driver, config, CONFIGURATION.take(), &mut [], &mut [], CONTROL.take());
    let class = CdcAcmClass::new(&mut builder, STATE.init(State::new()), PACKET as u16);
    let (sender, receiver, control) = class.split_with_control();
    let mut device = builder.build();
    join4(device.run(), from_host(receiver), to_host(sender), watch(control)).await;
}

type Port = Driver<'static, USB>;

async fn from_host(mut receiver: Receiver<'static, Port>) -> ! {
    let mut packet = [0; PACKET];
    loop {
        receiver.wait_connection().await;
        while let Ok(n) = receiver.read_packet(&mut packet).await {
            FROM_HOST.write_all(packet.get(..n).unwrap_or_default()).await;
        }
        HOST_LEFT.store(true, Ordering::Relaxed);
    }
}

async fn to_host(mut sender: Sender<'static, Port>) -> ! {
    let mut packet = [0; PACKET];
    loop {
        sender.wait_connection().await;
        loop {
            let n = TO_HOST.read(&mut packet).await;
            let sent = sender.write_packet(packet.get(..n).unwrap_or_default()).await;
            // A transfer that ends with a full packet ends with an empty one too.
            let ended = if n == PACKET && TO_HOST.is_empty() { sender.write_packet(&[]).await } else { Ok(()) };
            if sent.and(ended).is_err() {
                break;
            }
        }
    }
}

/// The host has closed the port when it takes back "data terminal ready".
async fn watch(control: ControlChanged<'static>) -> ! {
    let mut open = false;
    loop {
        control.control_changed().await;
        if open && !control.dtr() {
            TO_HOST.clear();
            HOST_LEFT.store(true, Ordering::Relaxed);
        }
        open = control.dtr();
    }
}
