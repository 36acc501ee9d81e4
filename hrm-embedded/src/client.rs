//! The host's side of [`crate::protocol`]: a device behind a serial port or a TCP connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use crate::protocol::frame::{Inbox, Outbox};
use crate::protocol::{Cancel, Event, Fault, Header, Info, Ping, Request, Solve, Versions, frame_capacity};

/// Frames of the largest model that the format allows.
const FRAME: usize = frame_capacity(4096);
/// How long a read waits before the clock is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often the first question is repeated: a board may start when its port is opened.
const KNOCK: Duration = Duration::from_millis(500);

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The port cannot be opened.
    #[error("cannot open {port}: {cause}")]
    Open {
        /// Its name.
        port: String,
        /// What the system says.
        cause: io::Error,
    },
    /// The name of the port cannot be read.
    #[error("port {port:?}: expected tcp:HOST:PORT or the path of a serial port")]
    Name {
        /// The name.
        port: String,
    },
    /// The device does not answer.
    #[error("{port} does not answer for {seconds} s: is this the device's port, at its baud rate, and does its firmware run?")]
    Silent {
        /// The port.
        port: String,
        /// How long.
        seconds: f32,
    },
    /// The device has gone while something was expected from it.
    #[error("{port}: the device has gone: {cause}")]
    Gone {
        /// The port.
        port: String,
        /// What the system says.
        cause: io::Error,
    },
    /// No common version of the protocol.
    #[error("{port}: the device speaks protocol version {} to {}, this program {} to {}: update the older of the two",
            spoken.min, spoken.max, Versions::OURS.min, Versions::OURS.max)]
    Version {
        /// The port.
        port: String,
        /// The device's versions.
        spoken: Versions,
    },
    /// The device refuses.
    #[error("the device refuses: {0}")]
    Refused(Fault),
    /// The device says something that does not fit.
    #[error("{port}: the device answers with a message of kind {kind} that does not belong there")]
    Unexpected {
        /// The port.
        port: String,
        /// Kind of the message.
        kind: u8,
    },
    /// Another request keeps the device busy.
    #[error("{port}: the device is busy with another request (tag {tag}), which it does not let go")]
    Busy {
        /// The port.
        port: String,
        /// Tag of that request.
        tag: u16,
    },
    /// The request is longer than the device's frames.
    #[error("a request for this puzzle is longer than the device's frames of {frame_bytes} bytes")]
    TooLong {
        /// Bytes of a frame.
        frame_bytes: u16,
    },
}

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// `host:port`.
    Tcp(String),
    /// Path or name of a serial port.
    Serial {
        /// Path or name.
        path: String,
        /// Bits a second.
        baud: u32,
    },
}

impl Port {
    /// Reads `tcp:HOST:PORT` or the path of a serial port.
    ///
    /// # Errors
    /// An empty name, or a TCP address without a port.
    pub fn parse(name: &str, baud: u32) -> Result<Self, ClientError> {
        let wrong = || ClientError::Name { port: name.to_owned() };
        match name.strip_prefix("tcp:") {
            Some(address) => {
                let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
                port.parse::<u16>().ok().filter(|_| !host.is_empty()).ok_or_else(wrong)?;
                Ok(Self::Tcp(address.to_owned()))
            }
            None if name.is_empty() => Err(wrong()),
            None => Ok(Self::Serial { path: name.to_owned(), baud }),
        }
    }

    fn open(&self) -> io::Result<Box<dyn Link>> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TICK))?;
                stream.set_write_timeout(Some(Duration::from_secs(5)))?;
                Ok(Box::new(stream))
            }
            Self::Serial { path, baud } => {
                let mut port = serial2::SerialPort::open(path, *baud)?;
                port.set_read_timeout(TICK)?;
                port.set_write_timeout(Duration::from_secs(5))?;
                // A board with USB talks when the host says that it listens.
                port.set_dtr(true).ok();
                Ok(Box::new(port))
            }
        }
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Serial { path, .. } => f.write_str(path),
        }
    }
}

trait Link: Read + Write + Send {}
impl<T: Read + Write + Send> Link for T {}

/// A connected device.
pub struct Client {
    port: Port,
    link: Box<dyn Link>,
    inbox: Inbox<FRAME>,
    /// Read, but not looked at.
    unread: Vec<u8>,
    tag: u16,
    timeout: Duration,
    frame_bytes: u16,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("port", &self.port).field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens the port and asks what is there; `info` sees [`Event::Info`]. Silence longer than `timeout` is an error, now and later.
    ///
    /// # Errors
    /// The port cannot be opened, nothing answers, or it speaks another protocol.
    pub fn connect(port: Port, timeout: Duration) -> Result<Self, ClientError> {
        let link = port.open().map_err(|cause| ClientError::Open { port: port.to_string(), cause })?;
        // Answers to a host before us carry other tags, most likely.
        let tag = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.subsec_nanos() as u16);
        let mut client = Self { port, link, inbox: Inbox::default(), unread: Vec::new(), tag, timeout, frame_bytes: u16::MAX };
        client.frame_bytes = client.info(|info| info.frame_bytes)?;
        Ok(client)
    }

    /// What the device is; `read` sees its answer.
    ///
    /// # Errors
    /// Silence, another protocol.
    pub fn info<T>(&mut self, read: impl Fn(&Info<'_>) -> T) -> Result<T, ClientError> {
        let begin = Instant::now();
        loop {
            let tag = self.send(&Request::Info(Versions::OURS))?;
            let left = self.timeout.saturating_sub(begin.elapsed());
            let answer = self.wait(tag, left.min(KNOCK), |event| match event {
                Event::Info(info) => Some(Ok(read(info))),
                Event::Error(Fault::Version { spoken, .. }) => Some(Err(*spoken)),
                _ => None,
            });
            match answer {
                Ok(Ok(info)) => return Ok(info),
                Ok(Err(spoken)) => return Err(ClientError::Version { port: self.port.to_string(), spoken }),
                Err(ClientError::Silent { .. }) if begin.elapsed() < self.timeout => {}
                Err(ClientError::Silent { port, .. }) => return Err(ClientError::Silent { port, seconds: self.timeout.as_secs_f32() }),
                Err(e) => return Err(e),
            }
        }
    }

    /// Solves one puzzle; `see` sees every event of it, the last of which is [`Event::Answer`] or [`Event::Declined`].
    ///
    /// # Errors
    /// The device refuses the puzzle, falls silent or goes.
    pub fn solve(&mut self, solve: &Solve<'_>, see: impl FnMut(&Event<'_>)) -> Result<(), ClientError> {
        self.work(&Request::Solve(*solve), see)
    }

    /// Runs the self-test; `see` sees [`Event::SelfTest`].
    ///
    /// # Errors
    /// The model has none; the device falls silent or goes.
    pub fn self_test(&mut self, see: impl FnMut(&Event<'_>)) -> Result<(), ClientError> {
        self.work(&Request::SelfTest, see)
    }

    /// A request that takes the device some time. Whatever keeps it busy, a host before us has left it there: it is stopped.
    fn work(&mut self, request: &Request<'_>, mut see: impl FnMut(&Event<'_>)) -> Result<(), ClientError> {
        let mut stopped = None;
        loop {
            let tag = self.send(request)?;
            let end = self.wait(tag, self.timeout, |event| match event {
                Event::Busy(busy) => Some(Err(busy.tag)),
                Event::Error(fault) => Some(Ok(Err(ClientError::Refused(*fault)))),
                event => {
                    see(event);
                    event.is_last().then_some(Ok(Ok(())))
                }
            })?;
            match end {
                Ok(done) => return done,
                Err(tag) if stopped == Some(tag) => return Err(ClientError::Busy { port: self.port.to_string(), tag }),
                Err(tag) => {
                    stopped = Some(tag);
                    let cancel = self.send(&Request::Cancel(Cancel { tag }))?;
                    self.wait(cancel, self.timeout, |event| event.is_last().then_some(()))?;
                }
            }
        }
    }

    /// Sends a request; returns its tag.
    fn send(&mut self, request: &Request<'_>) -> Result<u16, ClientError> {
        self.tag = self.tag.wrapping_add(1);
        self.write(self.tag, request)?;
        Ok(self.tag)
    }

    fn write(&mut self, tag: u16, request: &Request<'_>) -> Result<(), ClientError> {
        let mut frame = Outbox::<FRAME>::default();
        if frame.put(Header::new(request.kind(), tag), request).is_err() || frame.rest().len() > usize::from(self.frame_bytes) {
            return Err(ClientError::TooLong { frame_bytes: self.frame_bytes });
        }
        self.link.write_all(frame.rest()).and_then(|()| self.link.flush()).map_err(|e| self.gone(e))
    }

    fn gone(&self, cause: io::Error) -> ClientError {
        ClientError::Gone { port: self.port.to_string(), cause }
    }

    /// Hands the events of request `tag` to `see` until it has what it wants. Any whole frame is a sign of life; half-way to the end of
    /// patience the device is asked for one, because a self-test says nothing on its way.
    fn wait<T>(&mut self, tag: u16, patience: Duration, mut see: impl FnMut(&Event<'_>) -> Option<T>) -> Result<T, ClientError> {
        let (mut heard, mut asked) = (Instant::now(), false);
        loop {
            if self.unread.is_empty() {
                self.read()?;
            }
            let mut bytes = std::mem::take(&mut self.unread);
            while !bytes.is_empty() {
                bytes.drain(..self.inbox.feed(&bytes));
                let Some((header, payload)) = self.inbox.message().and_then(Header::split) else { continue };
                (heard, asked) = (Instant::now(), false);
                let unexpected = || ClientError::Unexpected { port: self.port.to_string(), kind: header.kind };
                let event = Event::read(header.kind, payload).map_err(|_| unexpected());
                let found = if header.tag == tag { event.map(|e| see(&e)) } else { Ok(None) };
                self.inbox.clear();
                if let Some(found) = found? {
                    self.unread = bytes;
                    return Ok(found);
                }
            }
            if heard.elapsed() >= patience {
                return Err(ClientError::Silent { port: self.port.to_string(), seconds: patience.as_secs_f32() });
            }
            if !asked && heard.elapsed() >= patience / 2 {
                asked = true;
                let ping = Request::Ping(Ping { value: 0 });
                self.write(tag.wrapping_sub(1), &ping)?;
            }
        }
    }

    /// Reads what has arrived, if anything has within [`TICK`].
    fn read(&mut self) -> Result<(), ClientError> {
        let mut buffer = [0; 1024];
        match self.link.read(&mut buffer) {
            Ok(0) => Err(self.gone(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"))),
            Ok(n) => {
                self.unread.extend_from_slice(&buffer[..n]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(e) => Err(self.gone(e)),
        }
    }
}
