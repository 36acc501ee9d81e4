//! A run of `hrm-train train` in a folder of its own, and what it left there.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use hrm_train::checkpoint::decode_tensors;
use hrm_train::engine::Tensors;
use serde_json::Value;
use tempfile::TempDir;

/// The folder: `run.toml`, and the run in `out`.
pub struct Run {
    pub folder: TempDir,
}

impl Run {
    pub fn new(config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("run.toml"), config).unwrap();
        Self { folder }
    }

    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hrm-train"));
        command.arg("train").arg(self.folder.path().join("run.toml")).arg("--out").arg(self.out()).args(arguments);
        command
    }

    /// `last.json`.
    pub fn last(&self) -> Value {
        serde_json::from_slice(&fs::read(self.out().join("last.json")).unwrap()).unwrap()
    }

    /// Bytes of the engine's whole state in the last checkpoint.
    pub fn state(&self) -> Vec<u8> {
        let name = self.last()["tensors"]["file"].as_str().unwrap().to_owned();
        fs::read(self.out().join(name)).unwrap()
    }

    pub fn weights(&self) -> Tensors {
        decode_tensors(&fs::read(self.out().join("model.safetensors")).unwrap()).unwrap().0
    }

    /// metrics.jsonl without what depends on the clock.
    pub fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.out().join("metrics.jsonl")).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            for key in ["seconds", "sample_segments_per_second"] {
                line.as_object_mut().unwrap().remove(key);
            }
        }
        lines
    }

    /// The JSON of the last checkpoint without what depends on the clock or on the number of checkpoints.
    pub fn position(&self) -> Value {
        let mut content = self.last()["content"].take();
        content.as_object_mut().unwrap().remove("seconds");
        content
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn bits(tensors: &Tensors) -> Vec<(&String, Vec<u32>)> {
    tensors.iter().map(|(name, (_, values))| (name, values.iter().map(|x| x.to_bits()).collect())).collect()
}
