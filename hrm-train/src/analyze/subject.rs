//! One interface over float networks and `.hrm` files: batches of puzzles whose carries the caller holds.

use std::path::Path;

use anyhow::{Context as _, ensure};
use hrm_core::cost::{GroupFacts, segment_macs};
use hrm_core::{Config, Mixer, Schedule};

use crate::engine::{Carry, Engine, Reading, StartOf};
use crate::evaluate_int8::Int8;
use crate::model_file::FloatModel;
use crate::run_config::EngineKind;

/// A network under analysis.
pub trait Subject {
    /// `float` or `int8`: the label of every figure.
    fn kind(&self) -> &'static str;

    /// The architecture.
    fn config(&self) -> &Config;

    /// Multiplications of one segment, group products taken once a group.
    fn segment_macs(&self) -> u64;

    /// Carries of as many puzzles as there are starts; see [`Engine::begin`].
    ///
    /// # Errors
    /// Failures of the engine.
    fn begin(&mut self, starts: &[StartOf], random: bool) -> anyhow::Result<Carry>;

    /// One segment; `inputs` are tokens `[n, S]`.
    ///
    /// # Errors
    /// Tokens or carries that do not fit, failures of the engine.
    fn advance(&mut self, inputs: &[u8], carry: &mut Carry) -> anyhow::Result<Reading>;

    /// What the heads read from `z_H`.
    ///
    /// # Errors
    /// Carries that do not fit, failures of the engine.
    fn read(&mut self, carry: &Carry) -> anyhow::Result<Reading>;
}

/// A float network.
pub struct Float {
    engine: Box<dyn Engine>,
    config: Config,
    macs: u64,
}

impl Float {
    /// Reads a run folder or a safetensors file.
    ///
    /// # Errors
    /// The model cannot be read, or the engine does not run it.
    pub fn load(path: &Path, kind: EngineKind, device: &str, threads: usize) -> anyhow::Result<Self> {
        let model = FloatModel::load(path)?;
        let engine = model.engine(kind, device, threads)?;
        let config = model.spec.config;
        let fields = usize::from(config.fields);
        let groups =
            |g: &crate::spec::Grouping| g.ids.iter().max().map_or(0, |&m| usize::from(m) + 1) * if g.merge_fields { 1 } else { fields };
        let mut facts = GroupFacts { rows: model.spec.groupings.iter().map(groups).sum(), pairs: 0 };
        if config.mixer == Mixer::GroupAttention {
            for head in 0..usize::from(config.heads) {
                let ids = &model.spec.groupings[head % model.spec.groupings.len()].ids;
                facts.pairs += ids.iter().map(|id| ids.iter().filter(|other| *other == id).count() as u64).sum::<u64>();
            }
        }
        let macs = segment_macs(&config, if config.shared { 1 } else { 2 }, facts, Schedule::Cached);
        Ok(Self { engine, config, macs })
    }
}

impl Subject for Float {
    fn kind(&self) -> &'static str {
        "float"
    }
    fn config(&self) -> &Config {
        &self.config
    }
    fn segment_macs(&self) -> u64 {
        self.macs
    }
    fn begin(&mut self, starts: &[StartOf], random: bool) -> anyhow::Result<Carry> {
        self.engine.begin(starts, random)
    }
    fn advance(&mut self, inputs: &[u8], carry: &mut Carry) -> anyhow::Result<Reading> {
        self.engine.advance(inputs, carry)
    }
    fn read(&mut self, carry: &Carry) -> anyhow::Result<Reading> {
        self.engine.read(carry)
    }
}

/// An int8 file through the deployed core. Its states are handed out as the numbers they stand for, which is exact in both directions.
pub struct Integer {
    int8: Int8,
    config: Config,
    macs: u64,
}

/// One unit of the integer stream (Q5.10).
const UNIT: f32 = 1.0 / 1024.0;

impl Integer {
    /// Wraps a model.
    ///
    /// # Errors
    /// None in practice: the file has been checked.
    pub fn new(int8: Int8) -> anyhow::Result<Self> {
        let view = int8.view()?;
        let (config, macs) = (*view.config(), view.segment_macs(Schedule::Cached));
        Ok(Self { int8, config, macs })
    }

    /// The model.
    #[must_use]
    pub const fn int8(&self) -> &Int8 {
        &self.int8
    }

    fn run(&self, inputs: Option<&[u8]>, carry: &Carry) -> anyhow::Result<(Carry, Reading)> {
        let (s, len) = (usize::from(self.config.tokens), self.config.state_len());
        ensure!(carry.h.len().is_multiple_of(len) && carry.h.len() == carry.l.len(), "carries of {} elements", carry.h.len());
        let n = carry.h.len() / len;
        ensure!(inputs.is_none_or(|i| i.len() == n * s), "inputs for another number of puzzles than {n}");
        let blank = vec![1u8; s];
        let puzzles: Vec<&[u8]> = (0..n).map(|i| inputs.map_or(&blank[..], |t| &t[i * s..(i + 1) * s])).collect();
        let heads = self.int8.view()?;
        let heads = heads.heads();
        let fields = usize::from(self.config.fields);
        let ch = usize::from(self.config.channels);
        let prefix = usize::from(self.config.prefix);
        let integers = |z: &[f32], to: &mut [i16]| to.iter_mut().zip(z).for_each(|(t, &v)| *t = (v / UNIT) as i16);
        let floats = |z: &[i16]| z.iter().map(|&v| f32::from(v) * UNIT).collect::<Vec<f32>>();
        let each = self.int8.each(&puzzles, |i, run| {
            run.start(puzzles[i], 0, 0).with_context(|| format!("puzzle {i}"))?;
            let set = |h: &mut [i16], l: &mut [i16]| {
                integers(&carry.h[i * len..(i + 1) * len], h);
                integers(&carry.l[i * len..(i + 1) * len], l);
            };
            if inputs.is_some() {
                let (h, l) = run.carry_mut();
                set(h, l);
                run.segment()?;
            } else {
                run.segment_by(|_, h, l| set(h, l))?;
            }
            let (h, l) = run.carry();
            let view8 = |x: i16| ((i32::from(x) * i32::from(heads.m_head) + (1 << 14)) >> 15).clamp(-128, 127);
            let mut logits = Vec::new();
            for row in h[prefix * fields * ch..].chunks_exact(ch) {
                let row: Vec<i32> = row.iter().map(|&x| view8(x)).collect();
                for (w, &bias) in heads.weights.chunks_exact(ch).zip(heads.bias) {
                    let acc = bias + w.iter().zip(&row).map(|(&w, &a)| i32::from(w) * a).sum::<i32>();
                    logits.push(acc as f32 * heads.logit_scale);
                }
            }
            Ok((floats(h), floats(l), logits, run.answer().to_vec(), run.q()))
        })?;
        let (mut next, mut out) = (Carry::default(), Reading::default());
        for (h, l, logits, answer, q) in each {
            next.h.extend(h);
            next.l.extend(l);
            out.logits.extend(logits);
            out.tokens.extend(answer);
            out.q_halt.push(q.0 as f32 * heads.q_scale);
            if heads.q_bias.len() > 1 {
                out.q_continue.push(q.1 as f32 * heads.q_scale);
            }
        }
        Ok((next, out))
    }
}

impl Subject for Integer {
    fn kind(&self) -> &'static str {
        "int8"
    }
    fn config(&self) -> &Config {
        &self.config
    }
    fn segment_macs(&self) -> u64 {
        self.macs
    }
    /// The start of (`seed`, `number`) is that of guess `number` of `hrm solve --seed seed`.
    fn begin(&mut self, starts: &[StartOf], random: bool) -> anyhow::Result<Carry> {
        let blank = vec![1u8; usize::from(self.config.tokens)];
        let puzzles: Vec<&[u8]> = starts.iter().map(|_| &blank[..]).collect();
        let each = self.int8.each(&puzzles, |i, run| {
            run.start(&blank, starts[i].seed, starts[i].number)?;
            if random {
                run.start_randomly(starts[i].seed, starts[i].number);
            }
            let floats = |z: &[i16]| z.iter().map(|&v| f32::from(v) * UNIT).collect::<Vec<f32>>();
            let (h, l) = run.carry();
            Ok((floats(h), floats(l)))
        })?;
        let mut carry = Carry::default();
        for (h, l) in each {
            carry.h.extend(h);
            carry.l.extend(l);
        }
        Ok(carry)
    }
    fn advance(&mut self, inputs: &[u8], carry: &mut Carry) -> anyhow::Result<Reading> {
        let (next, reading) = self.run(Some(inputs), carry)?;
        *carry = next;
        Ok(reading)
    }
    fn read(&mut self, carry: &Carry) -> anyhow::Result<Reading> {
        Ok(self.run(None, carry)?.1)
    }
}
