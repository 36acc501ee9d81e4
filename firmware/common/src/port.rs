//! A serial port with an asynchronous driver, polled: its interrupts keep what comes in while a segment is under way.

use core::cell::RefCell;
use core::task::Poll;

use critical_section::Mutex;
use embassy_futures::poll_once;
use embedded_io_async::{Read, Write};

/// The two halves of a driver, once it is there.
pub struct Port<R, W>(Mutex<RefCell<Option<(R, W)>>>);

impl<R: Read, W: Write> Port<R, W> {
    /// No driver yet: nothing comes in, and no byte is taken.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(RefCell::new(None)))
    }

    /// The driver, which has buffers of its own.
    pub fn open(&self, reader: R, writer: W) {
        critical_section::with(|cs| self.0.replace(cs, Some((reader, writer))));
    }

    /// A byte that has come in. One that came in damaged counts as none: the CRC of its frame tells.
    pub fn receive(&self) -> Option<u8> {
        let mut byte = [0];
        critical_section::with(|cs| match self.0.borrow_ref_mut(cs).as_mut().map(|(reader, _)| poll_once(reader.read(&mut byte))) {
            Some(Poll::Ready(Ok(1..))) => Some(byte[0]),
            _ => None,
        })
    }

    /// Takes a byte to send if there is room.
    pub fn send(&self, byte: u8) -> bool {
        critical_section::with(|cs| {
            let sent = self.0.borrow_ref_mut(cs).as_mut().map(|(_, writer)| poll_once(writer.write(&[byte])));
            matches!(sent, Some(Poll::Ready(Ok(1..))))
        })
    }
}

impl<R: Read, W: Write> Default for Port<R, W> {
    fn default() -> Self {
        Self::new()
    }
}
