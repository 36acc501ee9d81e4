//! An image that serves the wire protocol, and its serial port.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hrm_embedded::protocol::frame::{Inbox, Outbox};
use hrm_embedded::protocol::{Event, Header, Ping, Request};

use super::emulator;
use super::machine::{Image, Machine};

const FRAME: usize = 1024;
/// Tag of the pings that wait for the image to come up.
const GREETING: u16 = 0xfffe;
/// An answer that takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(600);

/// A running image; it is ended with this value.
pub struct Device {
    child: Child,
    stream: UnixStream,
    socket: PathBuf,
    inbox: Box<Inbox<FRAME>>,
    waiting: Vec<u8>,
}

impl Device {
    /// Starts the serve image of `machine` with this file in the region of the model.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(machine: &Machine, model: &Path) -> Result<Self> {
        let socket = machine.folder().join("target/serial");
        drop(fs::remove_file(&socket));
        // QEMU comes to us: where it waits for somebody, it says so on every start.
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let mut command = emulator::command(machine, Image::Serve, Some(model));
        command.arg("-serial").arg(format!("unix:{}", socket.display()));
        let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {}", machine.qemu.0))?;
        let start = Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) if start.elapsed() < Duration::from_secs(30) && child.try_wait()?.is_none() => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(e) => bail!("no serial port of {}: {e}", machine.name),
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut device = Self { child, stream, socket, inbox: Box::default(), waiting: Vec::new() };
        device.greet().with_context(|| format!("{} does not come up", machine.name))?;
        Ok(device)
    }

    /// Pings until one is answered: what comes before the image has switched its serial port on is lost.
    fn greet(&mut self) -> Result<()> {
        let start = Instant::now();
        for value in 0.. {
            self.send(&frame(GREETING, &Request::Ping(Ping { value })))?;
            let pong = |header: Header, event: &Event<'_>| (matches!(event, Event::Pong(_)) && header.tag == GREETING).then_some(());
            if self.wait_for(Duration::from_secs(1), pong).is_ok() {
                break;
            }
            ensure!(start.elapsed() < PATIENCE, "no answer in {} s", PATIENCE.as_secs());
        }
        Ok(())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The image has gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the serial port is closed")
    }

    /// Waits for the next event that `wanted` takes; others are dropped.
    ///
    /// # Errors
    /// The image has gone, or no such event comes.
    pub fn wait<T>(&mut self, wanted: impl FnMut(Header, &Event<'_>) -> Option<T>) -> Result<T> {
        self.wait_for(PATIENCE, wanted)
    }

    fn wait_for<T>(&mut self, patience: Duration, mut wanted: impl FnMut(Header, &Event<'_>) -> Option<T>) -> Result<T> {
        let start = Instant::now();
        let mut bytes = [0; 512];
        loop {
            while !self.waiting.is_empty() {
                let taken = self.inbox.feed(&self.waiting);
                self.waiting.drain(..taken);
                let Some((header, payload)) = self.inbox.message().and_then(Header::split) else { continue };
                let event = Event::read(header.kind, payload);
                let found = event.ok().and_then(|event| wanted(header, &event));
                self.inbox.clear();
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the image has ended"),
                Ok(n) => self.waiting.extend_from_slice(&bytes[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => return Err(e.into()),
            }
            ensure!(start.elapsed() < patience, "no answer in {} s", patience.as_secs());
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        drop(self.stream.shutdown(Shutdown::Both));
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.socket));
    }
}

/// The bytes of a request.
#[must_use]
pub fn frame(tag: u16, request: &Request<'_>) -> Vec<u8> {
    let mut outbox = Outbox::<FRAME>::default();
    // The longest request is far shorter than the buffer.
    let _ = outbox.put(Header::new(request.kind(), tag), request);
    outbox.rest().to_vec()
}
