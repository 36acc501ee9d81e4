//! `hrm serve`: the service of a device as a process, for trying out the protocol without a board.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hrm_core::{Aligned, Plan};
use hrm_embedded::Model;
use hrm_embedded::protocol::frame_capacity;
use hrm_embedded::service::{Activity, Board, Service};

/// Frames of the largest model that the format allows.
const FRAME: usize = frame_capacity(4096);
/// Guesses that a vote may choose among.
const VOTES: usize = 256;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Model file [default: the embedded model of --size].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Size of the embedded model: 4, 6 or 9.
    #[arg(long, default_value_t = 9, conflicts_with = "model")]
    size: usize,
    /// Where to listen; port 0: any free one. The address is printed.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4750")]
    listen: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let model = match &args.model {
        Some(path) => Model::open(path)?,
        None => Model::builtin(args.size)?,
    };
    let network = *model.network();
    let address = args.listen.strip_prefix("tcp:").unwrap_or(&args.listen);
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    println!("listening at tcp:{}", listener.local_addr()?);
    io::stdout().flush()?;
    let mut arena = Aligned::new(network.required_bytes(Plan::HOST).div_ceil(8));
    let mut memory = vec![0; (3 + VOTES) * usize::from(model.config().tokens)];
    let board = Board { firmware: concat!("hrm serve ", env!("CARGO_PKG_VERSION")), flash_bytes: 0, ram_bytes: 0 };
    let mut service = Service::<FRAME>::new(network, &mut arena, Plan::HOST, &mut memory, board)?;
    let clock = Instant::now();
    // One host at a time, as at a serial port.
    for stream in listener.incoming() {
        match stream.and_then(|stream| talk(&mut service, stream, clock)) {
            Ok(()) => {}
            Err(e) if is_gone(&e) => {}
            Err(e) => eprintln!("note: {e}"),
        }
        service.reset();
    }
    Ok(ExitCode::SUCCESS)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

/// Serves one host until it goes.
fn talk(service: &mut Service<'_, '_, FRAME>, mut stream: TcpStream, clock: Instant) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let (mut buffer, mut waiting) = ([0; 4096], 0..0);
    loop {
        if waiting.is_empty() {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => waiting = 0..n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        waiting.start += service.feed(&buffer[waiting.clone()]);
        let mut failure = None;
        let activity = service.step(clock.elapsed().as_millis() as u64, &mut |bytes| match stream.write(bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => {
                failure = Some(e);
                0
            }
        });
        if let Some(e) = failure {
            return Err(e);
        }
        if activity != Activity::Working && waiting.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
