//! A trained float model as files: `model.safetensors` with its architecture and record inside, and `model.json` with the same to read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{FileReference, decode_tensors, encode_tensors, write_atomic};
use crate::engine::fused::FusedEngine;
use crate::engine::{Engine, Tensors};
use crate::run_config::{EngineKind, RunConfig};
use crate::spec::ModelSpec;

/// Key of the JSON in the metadata of the safetensors file.
const KEY: &str = "hrm-model";

/// How a model came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Data protocol.
    pub protocol: String,
    /// Puzzles trained on, of how many before the split and the exclusions, and a CRC-32 of all their tokens.
    pub data: DataRecord,
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step of these weights, of the steps of the run.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Wall time up to these weights, over all resumes, in seconds.
    pub seconds: f64,
    /// Score on the held-out training puzzles that chose these weights.
    pub holdout: crate::evaluate::HoldoutScore,
    /// Trained parameters.
    pub parameters: usize,
    /// Version of hrm-train.
    pub hrm_version: String,
    /// The whole config.
    pub config: RunConfig,
}

/// What a run was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRecord {
    /// Puzzles trained on.
    pub train: usize,
    /// Puzzles held out to choose the checkpoint.
    pub holdout: usize,
    /// Puzzles dropped because an unseen set or the held-out part shares their solution class, and duplicates.
    pub dropped: usize,
    /// CRC-32 of the tokens of the training and the held-out puzzles.
    pub crc32: u32,
}

/// Architecture, weights and record.
#[derive(Clone, Debug)]
pub struct FloatModel {
    /// The architecture.
    pub spec: ModelSpec,
    /// Weights by public name.
    pub weights: Tensors,
    /// How they were trained; `None` for weights from elsewhere.
    pub record: Option<TrainingRecord>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    spec: ModelSpec,
    #[serde(default)]
    record: Option<TrainingRecord>,
    /// In `model.json` only: the file it describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights: Option<FileReference>,
}

impl FloatModel {
    /// Writes `{stem}.safetensors` and `{stem}.json` into `folder`, each in one rename; the first is complete without the second.
    ///
    /// # Errors
    /// The file system refuses; the old files stay.
    pub fn save(&self, folder: &Path, stem: &str) -> anyhow::Result<()> {
        let mut description = Description { spec: self.spec.clone(), record: self.record.clone(), weights: None };
        let bytes = encode_tensors(&self.weights, Some((KEY, serde_json::to_string(&description)?)))?;
        let name = format!("{stem}.safetensors");
        write_atomic(&folder.join(&name), &bytes)?;
        description.weights = Some(FileReference::new(name, &bytes));
        write_atomic(&folder.join(format!("{stem}.json")), &serde_json::to_vec_pretty(&description)?)
    }

    /// Reads a model: a run folder (its `model.safetensors`) or a safetensors file. Weights from elsewhere need a JSON of the same stem
    /// beside them with a field `spec`.
    ///
    /// # Errors
    /// A file is missing or damaged, or the architecture is invalid. Names and shapes of the tensors are checked by the engine.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let path: PathBuf = if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
        let bytes = fs::read(&path).with_context(|| format!("cannot read the model {}", path.display()))?;
        let (weights, metadata) = decode_tensors(&bytes).with_context(|| format!("model {}", path.display()))?;
        let (source, text) = match metadata.get(KEY) {
            Some(text) => (path.clone(), text.clone()),
            None => {
                let beside = path.with_extension("json");
                let text = fs::read_to_string(&beside)
                    .with_context(|| format!("{} does not say its architecture and {} cannot be read", path.display(), beside.display()))?;
                (beside, text)
            }
        };
        let description: Description =
            serde_json::from_str(&text).with_context(|| format!("the description of the model in {}", source.display()))?;
        description.spec.validate().with_context(|| format!("the architecture in {}", source.display()))?;
        Ok(Self { spec: description.spec, weights, record: description.record })
    }

    /// An engine that runs these weights; for evaluation and calibration, not to train on.
    ///
    /// # Errors
    /// As [`build_engine`], or the weights do not fit to the architecture.
    pub fn engine(&self, kind: EngineKind, device: &str, threads: usize) -> anyhow::Result<Box<dyn Engine>> {
        let mut config = self.record.as_ref().map_or_else(RunConfig::default, |r| r.config.clone());
        // The carries of a training batch are not needed, nor a mean of weights that are one already.
        config.train.batch = 1;
        config.train.ema = 0.0;
        config.train.threads = threads;
        config.train.engine = kind;
        config.train.device = device.to_owned();
        build_engine(&config, &self.spec, Some(&self.weights))
    }
}

/// Makes the engine that `[train]` names for the architecture `spec`: fresh, or with `weights`.
///
/// # Errors
/// The engine cannot run this architecture, is not built in, or the weights do not fit.
pub fn build_engine(config: &RunConfig, spec: &ModelSpec, weights: Option<&Tensors>) -> anyhow::Result<Box<dyn Engine>> {
    let options = config.engine_options();
    match config.train.engine {
        EngineKind::Fused => {
            let engine = match weights {
                None => FusedEngine::new(spec, &options)?,
                Some(weights) => FusedEngine::from_weights(spec, &options, weights)?,
            };
            Ok(Box::new(if config.train.device == "cpu" { engine } else { engine.on_gpu(&config.train.device)? }))
        }
        #[cfg(feature = "tch")]
        EngineKind::Torch => {
            use crate::engine::torch::{TorchEngine, TorchOptions};
            let t = &config.train;
            let mut torch = TorchOptions::new(spec, &t.device, t.dtype == crate::run_config::Dtype::Bf16, t.weight_decay);
            if let Some(public) = &mut torch.public {
                public.halt_max_steps = t.halt_max_steps;
                if public.puzzle_emb_ndim > 0 {
                    public.puzzle_identifiers = config.model.identifiers;
                }
            }
            torch.puzzle_emb_lr_ratio = t.identifier_lr;
            Ok(match weights {
                None => Box::new(TorchEngine::new(spec, &options, &torch)?),
                Some(weights) => Box::new(TorchEngine::from_weights(spec, &options, &torch, weights)?),
            })
        }
        #[cfg(not(feature = "tch"))]
        EngineKind::Torch => anyhow::bail!(
            "train.engine is `torch`, but this hrm-train was built without libtorch: `cargo xtask train ARGS` fetches it and runs hrm-train \
             with it"
        ),
    }
}
