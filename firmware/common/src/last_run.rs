//! Why the run before ended: kept in memory that a reset leaves alone, and told in the firmware's name (`hrm device info`) and in a
//! message over RTT once the board runs again.

use core::fmt::{self, Display, Write};
use core::mem::MaybeUninit;
use core::panic::PanicInfo;
use core::str;

use hrm_embedded::protocol::MAX_FIRMWARE;

// The logger of every message.
use defmt_rtt as _;

/// What `magic` holds while there is something to tell.
const TO_TELL: u32 = 0x7e11_d1ed;
const CRC: crc::Crc<u32, crc::NoTable> = crc::Crc::<u32, crc::NoTable>::new(&crc::CRC_32_ISO_HDLC);

/// Any bits may be in it after the power came on: every field is checked.
#[repr(C)]
struct Record {
    magic: u32,
    crc: u32,
    length: usize,
    text: [u8; MAX_FIRMWARE],
}

/// The record.
fn memory() -> *mut Record {
    #[cfg_attr(target_arch = "arm", unsafe(link_section = ".uninit.last_run"))]
    #[cfg_attr(target_arch = "riscv32", unsafe(link_section = ".rtc_fast.persistent"))]
    static mut RECORD: MaybeUninit<Record> = MaybeUninit::uninit();
    (&raw mut RECORD).cast()
}

impl Write for Record {
    /// What does not fit is left out.
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.text.get_mut(self.length..).unwrap_or_default();
        let taken = s.floor_char_boundary(room.len());
        for (to, from) in room.iter_mut().zip(s.as_bytes()).take(taken) {
            *to = *from;
        }
        self.length += taken;
        Ok(())
    }
}

impl Record {
    fn text(&self) -> Option<&str> {
        let text = self.text.get(..self.length).filter(|text| self.magic == TO_TELL && CRC.checksum(text) == self.crc)?;
        str::from_utf8(text).ok()
    }
}

/// Keeps `why` for the next run. To be called before a reset, by the context that ends the run.
pub(crate) fn record(why: &dyn Display) {
    let mut new = Record { magic: TO_TELL, crc: 0, length: 0, text: [0; MAX_FIRMWARE] };
    let _ = write!(new, "{why}");
    new.crc = CRC.checksum(new.text.get(..new.length).unwrap_or_default());
    // SAFETY: the memory is this module's; nothing reads it while the run ends.
    unsafe { memory().write_volatile(new) };
}

/// Keeps where a panic was, and says the whole of it over RTT.
pub(crate) fn panicked(info: &PanicInfo<'_>) {
    defmt::error!("{}", defmt::Display2Format(info));
    let (file, line) = info.location().map_or(("", 0), |l| (l.file(), l.line()));
    let name = file.rsplit(['/', '\\']).next().unwrap_or(file);
    record(&format_args!("panic at {name}:{line}"));
}

/// Says that the watchdog ended the run before, unless that run has said more. To be called by the board before [`name`].
pub fn watchdog_bit() {
    // SAFETY: the memory is this module's, and every bit pattern is a record.
    if unsafe { &*memory() }.text().is_none() {
        record(&"watchdog");
    }
}

/// The firmware's name with why the run before ended, if it did not end well. To be called once.
#[must_use]
pub(crate) fn name(board: &'static str) -> &'static str {
    // SAFETY: the memory is this module's, every bit pattern is a record, and it is asked for once.
    let record = unsafe { &mut *memory() };
    let Some(why) = record.text() else { return board };
    defmt::error!("{} starts again after: {}", board, why);
    let mut named = Record { magic: 0, crc: 0, length: 0, text: [0; MAX_FIRMWARE] };
    let _ = write!(named, "{board}, after {why}");
    *record = named;
    record.text.get(..record.length).and_then(|text| str::from_utf8(text).ok()).unwrap_or(board)
}
