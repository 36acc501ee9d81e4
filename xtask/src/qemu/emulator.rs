//! Running an image and hearing what it says.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::{Image, Machine};

/// Nothing that is asked of an image takes so long, even on a busy machine: it has hung.
const PATIENCE: Duration = Duration::from_secs(3600);

/// QEMU for an image, with this file in the region of the model (none: the region is empty). An instruction takes 1 ns.
pub fn command(machine: &Machine, image: Image, model: Option<&Path>) -> Command {
    let (program, args) = machine.qemu;
    let mut command = Command::new(program);
    command.arg("-M").args(args).args(["-icount", "shift=0", "-display", "none", "-monitor", "none"]);
    if let Some(model) = model {
        command.arg("-device").arg(format!("loader,file={},addr={:#x},force-raw=on", model.display(), machine.model));
    }
    command.arg("-kernel").arg(machine.image(image));
    command
}

/// What a verify image said, and how it ended.
pub struct Said {
    /// Its lines.
    pub lines: Vec<String>,
    /// Exit code of the emulator; none if a signal ended it.
    pub code: Option<i32>,
    /// The emulator's own words.
    pub errors: String,
}

/// Gives `requests` to the verify image and waits until it ends.
///
/// # Errors
/// QEMU cannot be run, or does not end.
pub fn ask(machine: &Machine, model: Option<&Path>, requests: &str) -> Result<Said> {
    let mut command = command(machine, Image::Verify, model);
    command.args(["-serial", "null", "-semihosting-config", "enable=on,target=native"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", machine.qemu.0))?;
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let text = requests.to_owned();
    let writer = thread::spawn(move || stdin.take().map(|mut s| s.write_all(text.as_bytes())));
    let reader = thread::spawn(move || read(&mut stdout));
    let errors = thread::spawn(move || read(&mut stderr));
    let code = wait(&mut child)?;
    // An image that stops early leaves requests unread: that shows in its lines.
    drop(writer.join());
    let text = reader.join().unwrap_or_default();
    Ok(Said { lines: text.lines().map(str::to_owned).collect(), code, errors: errors.join().unwrap_or_default() })
}

fn read(from: &mut Option<impl Read>) -> String {
    let mut text = Vec::new();
    drop(from.as_mut().map(|f| f.read_to_end(&mut text)));
    String::from_utf8_lossy(&text).into_owned()
}

fn wait(child: &mut Child) -> Result<Option<i32>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            bail!("the emulator does not end");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
