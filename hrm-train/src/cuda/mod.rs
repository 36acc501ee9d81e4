//! int8 models of structured cells on a GPU: `hrm-train eval --device cuda:0`. Same integers, same bits as [`hrm_core`].
//!
//! `segment.cu` computes a segment of every puzzle of a batch; [`Program`] makes its text and its tables from a model file; [`drive`]
//! keeps the batch full: a puzzle that is done leaves its slot to the next one. What a puzzle's next guess is, and when it is solved, is decided
//! on the host by [`hrm_core::solve::Guesses`] from answer, Q, residual and state hash alone, so that results are those of `--device cpu`.
//!
//! A [`Device`] is what runs the kernels. With feature `cuda` there is `Gpu`, an NVIDIA GPU. The tests have another: the same source
//! compiled for the host.

mod batch;
#[cfg(feature = "cuda")]
mod gpu;
mod image;
mod slot;

pub use batch::{Batched, Job, drive};
#[cfg(feature = "cuda")]
pub use gpu::{Gpu, THREADS, compile};
#[cfg(feature = "cuda")]
pub(crate) use gpu::{compile_source, open_context};
pub use image::{HASH_SHARED_BYTES, HASH_THREADS, Program, SOURCE};
pub use slot::{Slot, Starts};

use crate::evaluate_int8::Int8;

/// Does `work` with `model` on the GPU named `device`, `cuda:N`.
///
/// # Errors
/// This program is built without feature `cuda`; no driver, compiler, device or memory for it; a model of another kind; errors of `work`.
#[cfg(feature = "cuda")]
pub fn with<T>(model: &Int8, device: &str, work: impl FnOnce(&mut Batched<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (mut gpu, program) = Gpu::open(device, &model.view()?)?;
    eprintln!("int8 model on {device}, {}: {LANES} batches of {} puzzles", gpu.name(), gpu.slots());
    work(&mut Batched::new(model, program, &mut gpu))
}

/// Fails: this program is built without feature `cuda`.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn with<T>(_: &Int8, device: &str, _: impl FnOnce(&mut Batched<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
    anyhow::bail!(
        "device `{device}` for an int8 model needs feature cuda: cargo run --release -p hrm-train --features cuda -- ..; without it --device cpu"
    )
}

/// Batches in turns: while the device works on one, the host judges the other.
pub const LANES: usize = 2;

/// Something that runs the two kernels of `segment.cu` on batches.
pub trait Device {
    /// Puzzles of a batch.
    fn slots(&self) -> usize;

    /// Begins to run `segment` and `hash` on batch `lane`: `commands` has [`Program::command_words`] words a slot.
    ///
    /// # Errors
    /// The device fails.
    fn launch(&mut self, lane: usize, commands: &[u32]) -> anyhow::Result<()>;

    /// Waits for what was launched last on `lane`: [`Program::result_words`] words a slot, those of slots that did not run left as they were.
    ///
    /// # Errors
    /// The device fails.
    fn wait(&mut self, lane: usize) -> anyhow::Result<Vec<u32>>;
}
