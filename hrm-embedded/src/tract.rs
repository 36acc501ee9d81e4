//! Segments computed by [tract](https://github.com/sonos/tract) from an ONNX file that `hrm-train export --onnx` wrote.
//!
//! The file holds one segment of the integer network: carry in, carry out. Everything around it (starts, guesses, symmetries, the
//! verifier) is the solving loop of [`hrm_core`], so answers and state hashes are those of [`Model::solve_in`] for the same settings and
//! seed. The model file itself is needed beside it, for the starts and the rules of the task.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hrm_core::solve::{Event, Options, SolveError, Solver};
use hrm_core::{Broken, Run};
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::{
    Datum, Framework, InferenceModelExt, IntoRunnable, SpecialOps as _, TValue, Tensor, TractResult, TypedRunnableModel, tvec,
};
use tract_onnx::tract_hir::infer::Solver as Rules;
use tract_onnx::tract_hir::internal::{
    DatumType, Expansion, InferenceResult, OutletId, StaticName, TVec, TensorProxy, TypedModel, check_input_arity, check_output_arity,
    expand,
};

use crate::engine::{MAX_FILE, Model, Solved, Workspace};

/// Why tract cannot run a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TractError {
    /// The file cannot be read.
    #[error("cannot read the ONNX file {}: {cause} (`hrm-train export --onnx MODEL.hrm --out MODEL.onnx` writes one)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The file is no exported segment, or tract cannot load it.
    #[error("{}: {cause}", path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The ONNX file was exported from another model.
    #[error("{} was exported from a model of checksum {found}, this one has {expected:08x}: export it again", path.display())]
    OtherModel {
        /// The ONNX file.
        path: PathBuf,
        /// Checksum noted in it.
        found: String,
        /// Checksum of the model to solve with.
        expected: u32,
    },
    /// tract failed while it ran the segment.
    #[error("tract failed to run the segment: {0}")]
    Run(String),
    /// The Q outputs of the graph are not those that the core reads from the same state.
    #[error("the graph's Q outputs are {graph:?}, the core reads {core:?} from the same state: the ONNX file is damaged")]
    Differs {
        /// Outputs of the graph.
        graph: Vec<i32>,
        /// Halt and continue outputs of the core.
        core: (i32, i32),
    },
    /// The solving loop refuses the puzzle or the settings.
    #[error(transparent)]
    Solve(#[from] SolveError),
    /// The core could not go on.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Outputs of a segment beside the carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Head outputs, `[rows of the task's tokens, head width]`.
    pub logits: Vec<i32>,
    /// Halt output, and continue where the model has it.
    pub q: Vec<i32>,
}

/// A loaded segment; share it between threads.
#[derive(Debug)]
pub struct Tract {
    path: PathBuf,
    crc: String,
    plan: Arc<TypedRunnableModel>,
}

impl Tract {
    /// Reads, checks and optimises an exported file: seconds for a 9x9 model.
    ///
    /// # Errors
    /// The file cannot be read, was not written by `hrm-train export --onnx`, or tract refuses it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TractError> {
        let path = path.as_ref();
        let read = |cause| TractError::Read { path: path.to_owned(), cause };
        let found = fs::metadata(path).map_err(read)?.len();
        if found > MAX_FILE {
            let cause = format!("{found} bytes are too many for an exported segment, at most {MAX_FILE} are read");
            return Err(TractError::Graph { path: path.to_owned(), cause });
        }
        Self::from_bytes(&fs::read(path).map_err(read)?, path)
    }

    /// As [`Tract::open`], from memory; `path` is what messages call it.
    ///
    /// # Errors
    /// As [`Tract::open`].
    pub fn from_bytes(mut bytes: &[u8], path: &Path) -> Result<Self, TractError> {
        let graph = |cause| TractError::Graph { path: path.to_owned(), cause };
        let mut onnx = tract_onnx::onnx();
        onnx.op_register.insert("Cast", |_, node| Ok((expand(PlainCast { to: node.get_attr("to")? }), vec![])));
        let proto = onnx.proto_model_for_read(&mut bytes).map_err(|e| graph(format!("no ONNX file: {e}")))?;
        let crc = exported_crc(&proto).ok_or_else(|| graph("not written by `hrm-train export --onnx`".to_owned()))?;
        // Code generation alone: tract 0.23.9's `declutter` propagates regions of interest through the constants of the whole graph, in
        // expressions that grow exponentially with its depth.
        let load = || {
            let mut model = onnx.model_for_proto_model(&proto)?.into_typed()?;
            model.optimize()?;
            model.into_runnable()
        };
        let plan = load().map_err(|e| graph(format!("tract cannot load it: {e:#}")))?;
        Ok(Self { path: path.to_owned(), crc, plan })
    }

    /// Refuses every model but the one that the file was exported from.
    ///
    /// # Errors
    /// [`TractError::OtherModel`].
    pub fn check(&self, model: &Model) -> Result<(), TractError> {
        let expected = model.view().crc();
        if self.crc == format!("{expected:08x}") {
            return Ok(());
        }
        Err(TractError::OtherModel { path: self.path.clone(), found: self.crc.clone(), expected })
    }

    /// Runs one segment: `tokens` `[S]`; `z_h` and `z_l` `[R, C]` Q5.10 are replaced.
    ///
    /// # Errors
    /// tract fails, such as for lengths that are not the model's; the carry is left as it was.
    pub fn segment(&self, tokens: &[u8], z_h: &mut [i16], z_l: &mut [i16]) -> Result<Heads, TractError> {
        let run = || -> TractResult<(Vec<i16>, Vec<i16>, Heads)> {
            // z is [R, C]: C is known from the graph's input.
            let channels = self.plan.model().input_fact(1)?.shape.as_concrete().and_then(|s| s.last().copied()).unwrap_or(1);
            let carry = |z: &[i16]| -> TractResult<TValue> {
                let wide: Vec<i32> = z.iter().map(|&v| i32::from(v)).collect();
                Ok(Tensor::from_shape(&[z.len() / channels, channels], &wide)?.into())
            };
            let wide: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
            let outputs = self.plan.run(tvec!(Tensor::from_shape(&[tokens.len()], &wide)?.into(), carry(z_h)?, carry(z_l)?))?;
            let [h, l, logits, q] = &*outputs else { anyhow::bail!("{} outputs, expected 4", outputs.len()) };
            let narrow = |z: &TValue| -> TractResult<Vec<i16>> { integers(z)?.into_iter().map(|v| Ok(i16::try_from(v)?)).collect() };
            Ok((narrow(h)?, narrow(l)?, Heads { logits: integers(logits)?, q: integers(q)? }))
        };
        let (h, l, heads) = run().map_err(|e| TractError::Run(format!("{e:#}")))?;
        if h.len() != z_h.len() || l.len() != z_l.len() {
            return Err(TractError::Run(format!("a carry of {} and {} elements, expected {}", h.len(), l.len(), z_h.len())));
        }
        z_h.copy_from_slice(&h);
        z_l.copy_from_slice(&l);
        Ok(heads)
    }

    /// Solves one puzzle as [`Model::solve_in`] does, with every segment computed by tract.
    ///
    /// # Errors
    /// Those of [`Model::solve_in`], another model's file, and failures of tract.
    pub fn solve_in(
        &self,
        model: &Model,
        workspace: &mut Workspace,
        tokens: &[u8],
        options: &Options,
        observe: impl FnMut(&mut Solver<'_, '_, '_>, &Event),
    ) -> Result<Solved, TractError> {
        self.check(model)?;
        model.solve_by(workspace, tokens, options, |run| self.advance(run), observe)
    }

    fn advance(&self, run: &mut Run<'_, '_>) -> Result<u16, TractError> {
        let mut heads = Err(TractError::Run("no segment was run".to_owned()));
        let changed = run.segment_by(|tokens, z_h, z_l| heads = self.segment(tokens, z_h, z_l))?;
        let graph = heads?.q;
        let core = run.q();
        if graph != [core.0, core.1][..graph.len().min(2)] {
            return Err(TractError::Differs { graph, core });
        }
        Ok(changed)
    }
}

/// ONNX `Cast` as the standard has it: tract's own turns `int64` into symbolic dimensions, whose arithmetic is another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PlainCast {
    to: DatumType,
}

impl Expansion for PlainCast {
    fn name(&self) -> StaticName {
        "PlainCast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(&'s self, s: &mut Rules<'r>, inputs: &'p [TensorProxy], outputs: &'p [TensorProxy]) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, self.to)?;
        s.equals(&outputs[0].rank, &inputs[0].rank)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)?;
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, tract_onnx::tract_core::ops::cast::cast(self.to), inputs)
    }
}

fn integers(value: &TValue) -> TractResult<Vec<i32>> {
    let tensor = value.cast_to_dt(i32::datum_type())?;
    Ok(tensor.try_as_plain_ram()?.as_slice::<i32>()?.to_vec())
}

/// The checksum that the exporter noted, if the inputs are those of an exported segment.
fn exported_crc(proto: &ModelProto) -> Option<String> {
    let inputs = &proto.graph.as_ref()?.input;
    let ours = inputs.iter().map(|i| i.name.as_str()).eq(["tokens", "z_h", "z_l"]);
    let entry = proto.metadata_props.iter().find(|p| p.key == "hrm.crc")?;
    ours.then(|| entry.value.clone())
}
