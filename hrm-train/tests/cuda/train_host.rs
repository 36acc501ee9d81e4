//! A [`Device`] without a GPU: the kernels of training steps, compiled for this host by its C++ compiler, in a process of their own.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};
use hrm_train::engine::fused::device::{Buffer, Device, Kernel, Operand, Program};

/// Threads of a block.
const THREADS: u32 = 64;

/// The running program.
pub struct HostDevice {
    child: Child,
    to: Option<ChildStdin>,
    from: ChildStdout,
    _folder: tempfile::TempDir,
}

impl HostDevice {
    /// Compiles the kernels of `program` and starts them for `slots` puzzles. `flags`: further arguments for the compiler, such as a sanitizer.
    pub fn start(program: &Program, slots: usize, flags: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (macros, out) = (folder.path().join("model.h"), folder.path().join("host"));
        std::fs::write(&macros, &program.macros)?;
        let target = env!("HRM_TARGET");
        let mut compiler = cc::Build::new();
        compiler.cpp(true).std("c++17").target(target).host(target).opt_level(2).debug(false).cargo_metadata(false);
        let mut command = compiler.try_get_compiler().context("no C++ compiler: install one (Debian: apt-get install g++)")?.to_command();
        command
            .args(["-fno-strict-aliasing", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"])
            .args(flags);
        if program.operand == Operand::F32 {
            command.arg("-DHRM_F32");
        }
        command.arg("-include").arg(&macros).arg("-I").arg(here.join("src/engine/fused/device"));
        command.arg(here.join("tests/cuda/train_host.cpp")).arg("-o").arg(&out);
        let output = command.output().context("the C++ compiler cannot be started")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let mut child = Command::new(out).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (mut to, from) = (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
        for word in [slots as u32, THREADS, program.tables.len() as u32, program.packing.len() as u32]
            .iter()
            .chain(&program.tables)
            .chain(&program.packing)
        {
            to.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { child, to: Some(to), from, _folder: folder })
    }

    /// Ends the program, which fails if a sanitizer found something.
    fn end(&mut self) -> anyhow::Result<()> {
        self.to = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "the kernels on this host: {status}");
        Ok(())
    }

    fn order(&mut self, order: [usize; 6], bytes: &[u8]) -> anyhow::Result<()> {
        let to = self.to.as_mut().context("the program has ended")?;
        for word in order {
            to.write_all(&(word as u64).to_le_bytes())?;
        }
        to.write_all(bytes)?;
        Ok(to.flush()?)
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        // A failed test must not leave the process behind, nor hide what failed first.
        if std::thread::panicking() {
            let _ = self.child.kill();
        } else if let Err(error) = self.end() {
            panic!("{error:#}");
        }
    }
}

impl Device for HostDevice {
    fn name(&self) -> String {
        "this host".to_owned()
    }

    fn reserve(&mut self, slots: usize, calls: usize) -> anyhow::Result<()> {
        self.order([3, slots, calls, 0, 0, 0], &[])
    }

    fn write(&mut self, buffer: Buffer, at: usize, bytes: &[u8]) -> anyhow::Result<()> {
        self.order([0, buffer as usize, at, bytes.len(), 0, 0], bytes)
    }

    fn read(&mut self, buffer: Buffer, at: usize, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.order([1, buffer as usize, at, bytes.len(), 0, 0], &[])?;
        self.from.read_exact(bytes).context("the kernels on this host ended early")
    }

    fn launch(&mut self, kernel: Kernel, blocks: usize, [a, b, c]: [u32; 3]) -> anyhow::Result<()> {
        self.order([2, kernel as usize, blocks, a as usize, b as usize, c as usize], &[])
    }
}
