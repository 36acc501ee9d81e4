//! Files that are whole or not there: checkpoints of a run, models, tensors.
//!
//! A checkpoint is `last-G.safetensors` (everything the engine needs) and `last-G.json` (everything else, and size and CRC-32 of the
//! tensors); `G` grows by one each time. Tensors of more than 16 MiB are cut into `last-G.safetensors.0`, `.1`, ..: put together in this
//! order they are the safetensors file. `last.json` is a copy of the newest of these and is replaced in one rename, after all it
//! names has reached the disk. So a kill or a full disk at any moment leaves the previous pair in place.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::Tensors;

/// Layout of the JSON; raised when an older reader would misread it. Layout 2 has several files of tensors, layout 1 one.
const FORMATS: [u32; 2] = [1, 2];

/// Largest file of a checkpoint's tensors, in bytes.
const PART: usize = 16 << 20;

/// Writes `bytes` to `path`: into `path.tmp`, to the disk, then renamed. On failure the old file is untouched and the temporary is gone.
///
/// # Errors
/// The file system refuses (no space, no permission); the message names the path and how much was to be written.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // Best effort: on a full disk the half-written temporary would keep the disk full.
        let _ = fs::remove_file(&temporary);
        return Err(error).with_context(|| format!("cannot write {} ({} bytes)", path.display(), bytes.len()));
    }
    // The rename itself must be on the disk before anything relies on it.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("cannot sync the folder {}", folder.display()))
}

/// Tensors as the bytes of a safetensors file, with one line of metadata if given.
///
/// # Errors
/// A shape does not fit to its values.
pub fn encode_tensors(tensors: &Tensors, metadata: Option<(&str, String)>) -> anyhow::Result<Vec<u8>> {
    let bytes: Vec<Vec<u8>> = tensors.values().map(|(_, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, (shape, _)), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).with_context(|| format!("tensor {name}, shape {shape:?}"))?;
            Ok((name.as_str(), view))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
    Ok(safetensors::serialize(views, metadata)?)
}

/// The tensors and the metadata in the bytes of a safetensors file.
///
/// # Errors
/// The bytes are no safetensors file, or a tensor is not F32.
pub fn decode_tensors(bytes: &[u8]) -> anyhow::Result<(Tensors, HashMap<String, String>)> {
    let file = SafeTensors::deserialize(bytes).context("no valid safetensors file")?;
    let (_, header) = SafeTensors::read_metadata(bytes).context("no valid safetensors header")?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        ensure!(view.dtype() == Dtype::F32, "tensor {name} has type {:?}, expected F32", view.dtype());
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        tensors.insert(name.to_owned(), (view.shape().to_vec(), values));
    }
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

/// A file another one relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileReference {
    /// Name, in the same folder.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// CRC-32 (IEEE) of its content.
    pub crc32: u32,
}

impl FileReference {
    /// Describes `bytes` stored as `file`.
    #[must_use]
    pub fn new(file: String, bytes: &[u8]) -> Self {
        Self { file, bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes) }
    }

    /// Reads the file from `folder` and compares it.
    ///
    /// # Errors
    /// It cannot be read, or is not the file that was written.
    pub fn read(&self, folder: &Path) -> anyhow::Result<Vec<u8>> {
        ensure!(Path::new(&self.file).file_name().is_some_and(|n| n == self.file.as_str()), "`{}` is no plain file name", self.file);
        let path = folder.join(&self.file);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found = Self::new(self.file.clone(), &bytes);
        ensure!(
            found == *self,
            "{} is damaged: {} bytes with CRC-32 {:08x}, expected {} bytes with {:08x}",
            path.display(),
            found.bytes,
            found.crc32,
            self.bytes,
            self.crc32
        );
        Ok(bytes)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<T> {
    format: u32,
    hrm_version: String,
    generation: u64,
    tensors: Parts,
    content: T,
}

/// The file of the tensors, or its parts in order.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a file or a list of files")]
enum Parts {
    One(FileReference),
    Many(Vec<FileReference>),
}

impl Parts {
    /// Names `bytes`, cut into parts of at most `size` bytes.
    fn new(name: &str, bytes: &[u8], size: usize) -> Self {
        if bytes.len() <= size {
            return Self::One(FileReference::new(name.to_owned(), bytes));
        }
        Self::Many(bytes.chunks(size).enumerate().map(|(i, part)| FileReference::new(format!("{name}.{i}"), part)).collect())
    }

    fn files(&self) -> &[FileReference] {
        match self {
            Self::One(file) => std::slice::from_ref(file),
            Self::Many(files) => files,
        }
    }
}

/// The part of a [`Document`] that says how to read the rest.
#[derive(Deserialize)]
struct Head {
    format: u32,
    hrm_version: String,
    generation: u64,
}

/// The checkpoints of one run folder.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    generation: u64,
    /// Largest file of tensors.
    part: usize,
    /// Held as long as the run lives, so that two processes never write into one folder. Freed by the system when the process dies.
    _lock: File,
}

impl Checkpoints {
    /// Opens (makes) a run folder for writing; `keep` older checkpoints stay besides the newest.
    ///
    /// # Errors
    /// The folder cannot be made, or another process trains in it.
    pub fn open(folder: &Path, keep: usize) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the run folder {}", folder.display()))?;
        let path = folder.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => bail!("another process is training in {}", folder.display()),
            Err(fs::TryLockError::Error(error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
        let generation = match fs::read(folder.join("last.json")) {
            Ok(text) => serde_json::from_slice::<Head>(&text).map_or(0, |head| head.generation),
            Err(_) => 0,
        };
        Ok(Self { folder: folder.to_owned(), keep, generation, part: PART, _lock: lock })
    }

    /// Whether the folder holds a checkpoint.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.folder.join("last.json").exists()
    }

    /// Writes a checkpoint and removes the oldest.
    ///
    /// # Errors
    /// The disk is full or refuses; the previous checkpoint is still the last one then.
    pub fn save<T: Serialize>(&mut self, content: &T, state: &Tensors) -> anyhow::Result<()> {
        let generation = self.generation + 1;
        let bytes = encode_tensors(state, None)?;
        let tensors = Parts::new(&format!("last-{generation}.safetensors"), &bytes, self.part);
        let format = FORMATS[usize::from(matches!(tensors, Parts::Many(_)))];
        let document = Document { format, hrm_version: env!("CARGO_PKG_VERSION").to_owned(), generation, tensors, content };
        let json = serde_json::to_vec_pretty(&document)?;
        let mut parts = document.tensors.files().iter().zip(bytes.chunks(self.part));
        let own = self.folder.join(format!("last-{generation}.json"));
        let written =
            parts.try_for_each(|(file, part)| write_atomic(&self.folder.join(&file.file), part)).and_then(|()| write_atomic(&own, &json));
        if let Err(error) = written.and_then(|()| write_atomic(&self.folder.join("last.json"), &json)) {
            // Nothing names these files: give their space back.
            self.remove(|g| g == generation);
            return Err(error).context("the checkpoint could not be written; the previous one is still valid");
        }
        self.generation = generation;
        self.remove_unneeded();
        Ok(())
    }

    /// Reads the last checkpoint.
    ///
    /// # Errors
    /// There is none, or a file of it is missing, damaged or of another layout. The message names an older one where there is one.
    pub fn load<T: DeserializeOwned>(&self) -> anyhow::Result<(T, Tensors)> {
        self.read("last.json").map_err(|error| {
            let older = self.generations().into_iter().rfind(|&g| self.read::<T>(&format!("last-{g}.json")).is_ok());
            match older {
                Some(g) => error.context(format!(
                    "the last checkpoint cannot be used; an older one can: copy last-{g}.json to last.json in {} and resume again",
                    self.folder.display()
                )),
                None => error,
            }
        })
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<(T, Tensors)> {
        let path = self.folder.join(name);
        let document: Document<T> = document(&path)?;
        let mut bytes = Vec::new();
        for file in document.tensors.files() {
            bytes.extend(file.read(&self.folder)?);
        }
        let (tensors, _) = decode_tensors(&bytes).with_context(|| format!("the tensors of {}", path.display()))?;
        Ok((document.content, tensors))
    }

    /// Generations in the folder, ascending.
    fn generations(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut found: Vec<u64> = entries.filter_map(|e| generation_of(e.ok()?.file_name().to_str()?)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Removes checkpoints older than the kept ones, what a killed process left half written, and generations nothing names.
    fn remove_unneeded(&self) {
        let keep = self.keep as u64;
        self.remove(|g| g + keep < self.generation || g > self.generation);
    }

    /// Removes the files of generations, as far as the system lets it.
    fn remove(&self, unneeded: impl Fn(u64) -> bool) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().and_then(generation_of).is_some_and(&unneeded) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// What a run wrote into its last checkpoint besides the tensors, which are not read.
///
/// # Errors
/// The file is missing, damaged or of another layout.
pub fn content<T: DeserializeOwned>(folder: &Path) -> anyhow::Result<T> {
    Ok(document(&folder.join("last.json"))?.content)
}

fn document<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Document<T>> {
    let text = fs::read(path).with_context(|| format!("cannot read the checkpoint {}", path.display()))?;
    let head: Head = serde_json::from_slice(&text).with_context(|| format!("{} is no checkpoint", path.display()))?;
    ensure!(
        FORMATS.contains(&head.format),
        "{} has layout {} (written by hrm-train {}), expected one of {FORMATS:?}",
        path.display(),
        head.format,
        head.hrm_version
    );
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix("last-")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(x: f32) -> Tensors {
        // A NaN with a payload: integers travel as bit patterns.
        Tensors::from([("a".to_owned(), (vec![2, 1], vec![x, f32::from_bits(0x7fa0_0001)])), ("b".to_owned(), (vec![0], vec![]))])
    }

    fn bits(tensors: &Tensors) -> Vec<u32> {
        tensors.values().flat_map(|(_, v)| v.iter().map(|x| x.to_bits())).collect()
    }

    #[test]
    fn state_comes_back_bit_for_bit_and_old_generations_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::open(folder.path(), 1).unwrap();
        assert!(!checkpoints.exists());
        for i in 0..4u32 {
            checkpoints.save(&(i, 0.1 + 0.2), &state(i as f32)).unwrap();
        }
        let ((i, x), tensors) = checkpoints.load::<(u32, f64)>().unwrap();
        assert_eq!((i, x.to_bits()), (3, (0.1f64 + 0.2).to_bits()));
        assert_eq!(bits(&tensors), bits(&state(3.0)));
        assert_eq!(checkpoints.generations(), [3, 4]);
        assert!(Checkpoints::open(folder.path(), 1).unwrap_err().to_string().contains("another process"));
        drop(checkpoints);
        assert_eq!(Checkpoints::open(folder.path(), 1).unwrap().generation, 4);
    }

    #[test]
    fn damage_is_found_and_the_older_checkpoint_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::open(folder.path(), 1).unwrap();
        checkpoints.save(&1, &state(1.0)).unwrap();
        checkpoints.save(&2, &state(2.0)).unwrap();
        let path = folder.path().join("last-2.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let message = format!("{:#}", checkpoints.load::<u32>().unwrap_err());
        assert!(message.contains("damaged") && message.contains("last-1.json"), "{message}");
        fs::write(folder.path().join("last.json"), "{}").unwrap();
        assert!(format!("{:#}", checkpoints.load::<u32>().unwrap_err()).contains("no checkpoint"));
    }

    #[test]
    fn large_tensors_are_cut_and_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::open(folder.path(), 0).unwrap();
        checkpoints.part = 32;
        for i in 0..2u32 {
            checkpoints.save(&i, &state(i as f32)).unwrap();
        }
        let names = || {
            let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name.starts_with("last-"));
            names.sort();
            names
        };
        let parts: Vec<_> = names().into_iter().filter(|name| name.contains("safetensors")).collect();
        assert!(parts.len() >= 3 && parts[0] == "last-2.safetensors.0", "{parts:?}");
        let sizes: Vec<_> = parts.iter().map(|name| fs::metadata(folder.path().join(name)).unwrap().len()).collect();
        assert!(sizes.iter().all(|&bytes| (1..=32).contains(&bytes)), "{sizes:?}");
        let (i, tensors) = checkpoints.load::<u32>().unwrap();
        assert_eq!((i, bits(&tensors)), (1, bits(&state(1.0))));
        let whole: Vec<u8> = parts.iter().flat_map(|name| fs::read(folder.path().join(name)).unwrap()).collect();
        assert_eq!(bits(&decode_tensors(&whole).unwrap().0), bits(&tensors));
        // A part that is missing or damaged is named.
        let path = folder.path().join(&parts[1]);
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[1..]).unwrap();
        let message = format!("{:#}", checkpoints.load::<u32>().unwrap_err());
        assert!(message.contains("last-2.safetensors.1 is damaged"), "{message}");
        fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", checkpoints.load::<u32>().unwrap_err()).contains("last-2.safetensors.1"));
        fs::write(&path, good).unwrap();
        // Fewer parts, or one file: nothing of before stays.
        checkpoints.part = PART;
        checkpoints.save(&2, &state(2.0)).unwrap();
        assert_eq!(names(), ["last-3.json", "last-3.safetensors"]);
        assert_eq!(checkpoints.load::<u32>().unwrap().0, 2);
    }

    #[test]
    fn what_a_killed_save_leaves_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::open(folder.path(), 0).unwrap();
        checkpoints.save(&1, &state(1.0)).unwrap();
        drop(checkpoints);
        // Killed after the tensors and its own JSON of the next generation, before `last.json`.
        fs::write(folder.path().join("last-2.safetensors"), "half").unwrap();
        fs::write(folder.path().join("last-2.json"), "half").unwrap();
        let mut checkpoints = Checkpoints::open(folder.path(), 0).unwrap();
        assert_eq!(checkpoints.load::<u32>().unwrap().0, 1);
        checkpoints.save(&2, &state(2.0)).unwrap();
        assert_eq!(checkpoints.load::<u32>().unwrap().0, 2);
        assert_eq!(checkpoints.generations(), [2]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomic(&path, b"old").unwrap();
        // The temporary's name is taken by a folder: it cannot be created.
        fs::create_dir(folder.path().join("a.tmp")).unwrap();
        assert!(write_atomic(&path, b"new").unwrap_err().to_string().contains("cannot write"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
