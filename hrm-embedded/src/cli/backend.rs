//! What computes the segments of `hrm solve`: the core, or tract from an exported file.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use hrm_core::solve::Options;
use hrm_embedded::{Model, Solved, Workspace};

use super::Backend;

/// A backend, ready to run.
pub(super) enum Engine {
    /// The integer core.
    Core,
    /// The exported network.
    #[cfg(feature = "tract")]
    Tract(Box<hrm_embedded::tract::Tract>),
}

impl Engine {
    /// `onnx`: the value of `--onnx`; `model`: that of `--model`, opened.
    ///
    /// # Errors
    /// A backend that this program does not have, options that do not fit together, an ONNX file that does not go with the model.
    pub(super) fn new(backend: Backend, onnx: Option<&Path>, model: Option<(&Path, &Model)>) -> anyhow::Result<Self> {
        if backend == Backend::Core {
            ensure!(onnx.is_none(), "--onnx is for --backend tract");
            return Ok(Self::Core);
        }
        let beside = || model.map(|(path, _)| path.with_extension("onnx"));
        let path = onnx.map(Path::to_owned).or_else(beside);
        let Some(path) = path else {
            anyhow::bail!("--backend tract needs --model MODEL.hrm with MODEL.onnx beside it, or --onnx FILE");
        };
        Self::tract(path, model.map(|(_, model)| model))
    }

    #[cfg(feature = "tract")]
    fn tract(path: PathBuf, model: Option<&Model>) -> anyhow::Result<Self> {
        let tract = hrm_embedded::tract::Tract::open(path)?;
        // Embedded models are checked when a puzzle has told which.
        model.map_or(Ok(()), |m| tract.check(m))?;
        Ok(Self::Tract(Box::new(tract)))
    }

    #[cfg(not(feature = "tract"))]
    fn tract(_: PathBuf, _: Option<&Model>) -> anyhow::Result<Self> {
        anyhow::bail!("this hrm was built without the tract backend: cargo build --release --features tract")
    }

    /// Solves one puzzle.
    ///
    /// # Errors
    /// Those of [`Model::solve_in`], and of the backend.
    pub(super) fn solve(&self, model: &Model, workspace: &mut Workspace, tokens: &[u8], options: &Options) -> anyhow::Result<Solved> {
        match self {
            Self::Core => Ok(model.solve_in(workspace, tokens, options, |_, _| {})?),
            #[cfg(feature = "tract")]
            Self::Tract(tract) => Ok(tract.solve_in(model, workspace, tokens, options, |_, _| {})?),
        }
    }
}
