//! Export of one segment of the integer network as standard ONNX: carry in, carry out.
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `tokens` | `int64` | `[S]` | the puzzle |
//! | `z_h`, `z_l` | `int32` | `[R, C]` | the carry, Q5.10, each element in the range of `i16` |
//! | `z_h_next`, `z_l_next` | `int32` | `[R, C]` | the carry after the segment |
//! | `logits` | `int32` | `[R - P, N]` | head outputs of all rows but the prefix, in units of the file's logit scale |
//! | `q` | `int32` | `[1 or 2]` | halt, and continue where the model has it |
//!
//! Everything is integer arithmetic of `docs/numerics.md`, so that a runtime which computes ONNX operators as the standard defines them
//! gives the bits of the core. The only float is the `double` square root of an integer below `2^32`: IEEE 754 rounds it
//! correctly, and for `w < 2^32`, `s = floor(sqrt(w))`, the true root is at most `(s + 1) - 2^-17.1`, while doubles near `2^16` are `2^-37`
//! apart; so it never rounds up to `s + 1`, and truncation gives the exact integer root.
//!
//! Random starts, latent noise, symmetries and the verifier are not in the graph: they belong to the loop around it
//! (`hrm_core::rng`, `hrm_core::solve`). The metadata `hrm.crc` names the model file by its checksum.
//!
//! All mixers are supported. Operator set 17: Add, Cast, Concat, Div, Gather, Identity, MatMulInteger, Max, Min, Mul, ReduceMax,
//! ReduceSum, Reshape, Slice, Sqrt, Sub, Transpose.

mod attention;
mod graph;
mod proto;
mod segment;

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use hrm_core::ModelView;
use hrm_core::format::AlignedBytes;
use prost::Message as _;

use proto::{Entry, Model, OperatorSet};

/// Operator set of the exported files.
pub const OPSET: i64 = 17;
/// Most nodes written: far above any model that was trained, far below what a runtime can load.
const MAX_NODES: usize = 200_000;

/// The ONNX file of one segment of `view`.
///
/// # Errors
/// The model unrolls to too many nodes.
pub fn onnx(view: &ModelView<'_>) -> anyhow::Result<Vec<u8>> {
    let c = view.config();
    let runs = usize::from(c.h_cycles) * (usize::from(c.l_cycles) * c.layers(0) + c.layers(c.modules() - 1));
    // Attention and the gated MLP together have fewer than 150 nodes.
    ensure!(
        150 * runs <= MAX_NODES,
        "a segment of this model runs {runs} blocks, more than {} do not unroll to a usable graph",
        MAX_NODES / 150
    );
    // The offset of a flooring shift must stay above the sum; the core itself would take any bias.
    let bias = view.heads().q_bias.iter().map(|b| b.unsigned_abs()).max().unwrap_or(0);
    ensure!(bias < 1 << 61, "the Q head has a bias of {bias}, expected below 2^61 to export it");
    let entry = |key: &str, value: String| Entry { key: key.to_owned(), value };
    let model = Model {
        // The version that belongs to operator set 17.
        ir_version: 8,
        producer_name: "hrm-train".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: "One segment of an integer Hierarchical Reasoning Model; the carry is Q5.10.".to_owned(),
        graph: Some(segment::graph(view)),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: vec![entry("hrm.crc", format!("{:08x}", view.crc())), entry("hrm.carry", "q5.10".to_owned())],
    };
    Ok(model.encode_to_vec())
}

/// Writes the ONNX file of the `.hrm` file `model` to `out`, at once or not at all. Returns its bytes.
///
/// # Errors
/// `model` cannot be read or is refused, `out` cannot be written.
pub fn export(model: &Path, out: &Path) -> anyhow::Result<usize> {
    let bytes = std::fs::read(model).with_context(|| format!("cannot read {}", model.display()))?;
    let file = AlignedBytes::new(&bytes);
    let view = ModelView::new_checked(file.as_slice()).with_context(|| model.display().to_string())?;
    let onnx = onnx(&view)?;
    let part = out.with_extension("onnx.part");
    let write = || {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(&onnx)?;
        file.sync_all()?;
        std::fs::rename(&part, out)
    };
    write().with_context(|| format!("cannot write {}", out.display()))?;
    Ok(onnx.len())
}
