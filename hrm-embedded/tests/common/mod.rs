//! A model whose behaviour is known, and the command.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hrm_core::format::{Header, Kind, ModelWriter, SelfTest, TaskKind};
use hrm_core::{Config, Mixer, Start};
use hrm_embedded::Model;

/// A legal 4x4 grid with one blank.
pub const EASY: &str = ".234341221434321";
/// Its only solution.
pub const EASY_ANSWER: &str = "1234341221434321";
/// The same grid with a rectangle open in which two digits may change places.
pub const TWO_WAYS: &str = ".2.4.4.221434321";
/// Nothing fits into the first cell: 1 and 2 in its row, 3 in its column, 4 in its box.
pub const NO_WAY: &str = "..12.4......3...";

/// A 4x4 model that keeps givens and guesses every blank at random: its modules have zero weights, so that the norm of `start + embedding`
/// is all that happens, and the embedding of a given outweighs the random start by far.
pub fn guesser() -> Vec<u8> {
    let config = Config {
        shared: true,
        mixer: Mixer::GroupSum,
        start: Start::Random,
        rope: false,
        tokens: 16,
        prefix: 0,
        vocab: 6,
        fields: 4,
        channels: 4,
        inner: 4,
        token_inner: 0,
        heads: 0,
        groupings: 1,
        h_layers: 1,
        l_layers: 1,
        h_cycles: 1,
        l_cycles: 1,
    };
    let mut name = [0; 32];
    name[..7].copy_from_slice(b"guesser");
    let header = Header { config, task: TaskKind::Sudoku(4), q_continue: false, merge_fields: 0, tensors: 0, crc: 0, name };
    let mut writer = ModelWriter::new(header).unwrap();
    let expected: Vec<_> = writer.expected().copied().collect();
    for e in expected {
        let count = e.dims[0] * e.dims[1];
        let mut values = vec![0; count];
        match e.kind {
            // Blank, this digit, another digit.
            Kind::Embed => values = vec![0, 0, 0, 0, 16000, 0, 0, 0, 0, 16000, 0, 0],
            Kind::HeadWeight => values = vec![127, -127, 0, 0],
            Kind::Groups => values = (0..16).map(|cell| cell / 4).collect(),
            Kind::Global => values = vec![512, 10, 0, 0],
            Kind::MlpParams => {
                values[0] = 512;
                values[4] = 512;
            }
            _ => {}
        }
        writer.set(e.kind, usize::from(e.module), usize::from(e.layer), &values).unwrap();
    }
    writer.set_scales(0.5, 0.25);
    writer.set_record("{\"about\":\"made by hand\"}");
    let tokens: Vec<u8> = EASY.bytes().map(|b| if b == b'.' { 1 } else { b - b'0' + 1 }).collect();
    let test = |hash| SelfTest { seed: 3, segments: 2, hash, tokens: &tokens };
    writer.set_self_test(&test(0));
    let draft = writer.finish().unwrap();
    let (_, found) = Model::from_bytes(draft.as_slice()).unwrap().self_test().unwrap().unwrap();
    writer.set_self_test(&test(found));
    writer.finish().unwrap().as_slice().to_vec()
}

/// A folder with the model in it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("guesser.hrm", &guesser());
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs `hrm` in the folder.
    pub fn hrm(&self, args: &[&str]) -> Ran {
        self.hrm_with(args, b"", &[])
    }

    pub fn hrm_with(&self, args: &[&str], stdin: &[u8], env: &[(&str, &str)]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hrm"));
        command.args(args).current_dir(self.path()).env_remove("HRM_KERNEL").envs(env.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The command may end without reading.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Ran::new(child.wait_with_output().unwrap())
    }
}

/// What a command did.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The last line of standard error.
    pub fn last(&self) -> &str {
        self.err.lines().last().unwrap_or("")
    }

    /// Asserts exit status 1 and one line `error: ..` that contains all of `parts`.
    #[track_caller]
    pub fn refused(&self, parts: &[&str]) {
        assert_eq!(self.code, 1, "{self:?}");
        let last = self.last();
        assert!(last.starts_with("error: ") && self.err.matches("error: ").count() == 1, "{self:?}");
        for part in parts {
            assert!(last.contains(part), "expected {part:?} in {last:?}");
        }
        assert!(!self.err.contains("panicked") && !self.err.contains("backtrace"), "{self:?}");
    }
}
