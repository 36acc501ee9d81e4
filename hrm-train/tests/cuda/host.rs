//! A [`Device`] without a GPU: the CUDA source, compiled for this host by its C++ compiler, in a process of its own.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};
use hrm_train::cuda::{Device, HASH_SHARED_BYTES, HASH_THREADS, LANES, Program};

/// How to compile and run.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Puzzles of a batch.
    pub slots: usize,
    /// Arguments for the compiler, such as a sanitizer.
    pub flags: &'static [&'static str],
}

/// The running program.
pub struct HostDevice {
    child: Child,
    to: Option<ChildStdin>,
    from: ChildStdout,
    slots: usize,
    result_words: usize,
    _folder: tempfile::TempDir,
}

/// Compiles `program`; returns the executable in `folder`.
fn build(program: &Program, flags: &[&str], folder: &Path) -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (macros, out) = (folder.join("model.h"), folder.join("host"));
    std::fs::write(&macros, &program.macros)?;
    let target = env!("HRM_TARGET");
    let mut compiler = cc::Build::new();
    compiler.cpp(true).std("c++17").target(target).host(target).opt_level(2).debug(false).cargo_metadata(false);
    let mut command = compiler.try_get_compiler().context("no C++ compiler: install one (Debian: apt-get install g++)")?.to_command();
    // One storage is read as bytes, as words and as fours of words: no optimisation may rest on their types.
    command.args(["-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]).args(flags);
    command.arg("-include").arg(&macros).arg("-I").arg(here.join("src/cuda")).arg(here.join("tests/cuda/host.cpp")).arg("-o").arg(&out);
    let output = command.output().context("the C++ compiler cannot be started")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(out)
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

impl HostDevice {
    /// Compiles the kernels of `program` and starts them.
    ///
    /// # Errors
    /// No compiler, or it refuses the source.
    pub fn start(program: &Program, host: Host) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let executable = build(program, host.flags, folder.path())?;
        let mut child = Command::new(executable).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (mut to, from) = (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
        let mut header: Vec<u32> = [
            host.slots,
            LANES,
            program.threads as usize,
            HASH_THREADS as usize,
            program.image.len(),
            program.command_words(),
            program.result_words(),
            program.shared_bytes,
            HASH_SHARED_BYTES,
            0,
        ]
        .map(|v| v as u32)
        .to_vec();
        header.extend([program.slot_bytes as u32, (program.slot_bytes as u64 >> 32) as u32]);
        header.extend(program.image.iter().map(|&w| w as u32));
        to.write_all(&bytes(&header))?;
        Ok(Self { child, to: Some(to), from, slots: host.slots, result_words: program.result_words(), _folder: folder })
    }

    /// Ends the program, which fails if a sanitizer found something.
    ///
    /// # Errors
    /// It did not end well.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.to = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "the kernels on this host: {status}");
        Ok(())
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        // A failed test must not leave the process behind; one that has ended needs nothing.
        self.to = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Device for HostDevice {
    fn slots(&self) -> usize {
        self.slots
    }

    fn launch(&mut self, lane: usize, commands: &[u32]) -> anyhow::Result<()> {
        let to = self.to.as_mut().context("the program has ended")?;
        to.write_all(&(lane as u32).to_le_bytes())?;
        to.write_all(&bytes(commands))?;
        Ok(to.flush()?)
    }

    /// Results come in the order of the launches, which is that of the waits.
    fn wait(&mut self, _: usize) -> anyhow::Result<Vec<u32>> {
        let mut results = vec![0; 4 * self.slots * self.result_words];
        self.from.read_exact(&mut results).context("the kernels on this host ended early")?;
        Ok(results.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
    }
}
