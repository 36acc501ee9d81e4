//! TensorBoard event files: `TFRecord` frames around `Event` messages.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use crc::{CRC_32_ISCSI, Crc};
use prost::Message;
use serde_json::Value;

/// One file a run, written anew when it is resumed: TensorBoard wants `tfevents` in the name.
const NAME: &str = "events.out.tfevents.0.hrm-train";

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// `tensorflow.Event`, the fields in use.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// An event file under way.
pub(super) struct EventFile {
    file: File,
    /// Unix time at second 0 of the run, as if it had been running without a break.
    start: f64,
}

impl EventFile {
    pub(super) fn create(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let mut this = Self { file, start };
        this.put(&Event { wall_time: start, file_version: Some("brain.Event:2".into()), ..Event::default() })?;
        Ok(this)
    }

    /// The numbers of one record of `metrics.jsonl` as scalars.
    pub(super) fn write(&mut self, record: &Value) -> anyhow::Result<()> {
        let (group, object) = match record["kind"].as_str() {
            Some("train") => ("train", record),
            Some("eval") => ("holdout", &record["score"]),
            _ => return Ok(()),
        };
        let numbers = object.as_object().into_iter().flatten().filter(|(key, _)| !["step", "seconds"].contains(&key.as_str()));
        let mut value: Vec<Scalar> =
            numbers.filter_map(|(key, v)| Some(Scalar { tag: format!("{group}/{key}"), simple_value: v.as_f64()? as f32 })).collect();
        if let (Some(exact), Some(puzzles)) = (object["exact"].as_f64(), object["puzzles"].as_f64()) {
            value.push(Scalar { tag: format!("{group}/exact_share"), simple_value: (exact / puzzles.max(1.0)) as f32 });
        }
        let wall_time = self.start + record["seconds"].as_f64().unwrap_or(0.0);
        self.put(&Event { wall_time, step: record["step"].as_i64().unwrap_or(0), summary: Some(Summary { value }), ..Event::default() })
    }

    fn put(&mut self, event: &Event) -> anyhow::Result<()> {
        self.file.write_all(&frame(&event.encode_to_vec())).context("cannot write the TensorBoard event file")
    }
}

/// Length, its check sum, the data, its check sum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [length.as_slice(), &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// The check sum of `TFRecord`: CRC-32C, rotated and shifted so that sums of sums differ.
fn masked(data: &[u8]) -> u32 {
    CRC32C.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn check_sums_are_those_of_the_format() {
        // CRC-32C of "123456789" is e3069283 (RFC 3720, appendix B.4 polynomial); rotated right by 15 and shifted.
        assert_eq!(masked(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(frame(b"ab").len(), 8 + 4 + 2 + 4);
    }

    #[test]
    fn records_become_scalars_that_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path()).unwrap();
        file.write(&json!({ "kind": "train", "step": 7, "seconds": 1.5, "loss": 0.25, "halted": 3, "exact_at_halt": null })).unwrap();
        file.write(&json!({ "kind": "eval", "step": 9, "score": { "step": 9, "puzzles": 8, "exact": 2 } })).unwrap();
        let bytes = std::fs::read(folder.path().join(NAME)).unwrap();
        let (mut at, mut events) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let data = &bytes[at + 12..at + 12 + length];
            assert_eq!(bytes[at..at + 12 + length + 4], frame(data));
            events.push(Event::decode(data).unwrap());
            at += 12 + length + 4;
        }
        let scalars = |event: &Event| -> Vec<(String, f32)> {
            event.summary.iter().flat_map(|s| s.value.iter().map(|v| (v.tag.clone(), v.simple_value))).collect()
        };
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((events[1].step, scalars(&events[1])), (7, vec![("train/halted".into(), 3.0), ("train/loss".into(), 0.25)]));
        assert!((events[1].wall_time - events[0].wall_time - 1.5).abs() < 1e-3);
        let share = ("holdout/exact_share".to_owned(), 0.25);
        assert!(events[2].step == 9 && scalars(&events[2]).contains(&share));
    }
}
