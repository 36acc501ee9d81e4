//! A plan as a `.hrm` file.

use anyhow::{Context as _, bail};
use hrm_core::format::layout::params;
use hrm_core::format::{Header, Kind, ModelWriter, TaskKind};
use hrm_core::{Mixer, Start};

use super::matrix::QuantMatrix;
use super::plan::{AttentionPlan, GatedPlan, ModelPlan};
use super::weights::NetWeights;

/// A value of the stream in Q5.10.
fn q10(values: &[f32], what: &str) -> anyhow::Result<Vec<i64>> {
    values
        .iter()
        .map(|&v| {
            let q = (v * 1024.0).round();
            if q.abs() > 32767.0 {
                bail!("{what} holds {v}, outside the range of the stream (-32 to 32)");
            }
            Ok(q as i64)
        })
        .collect()
}

fn wide<T: Copy + Into<i64>>(values: &[T]) -> Vec<i64> {
    values.iter().map(|&v| v.into()).collect()
}

/// Tensor kinds of one sublayer: parameters, then weight, multiplier and bias of both matrices.
type Kinds = [Kind; 7];
const ATTENTION: Kinds =
    [Kind::AttentionParams, Kind::QkvWeight, Kind::QkvMult, Kind::QkvBias, Kind::OutWeight, Kind::OutMult, Kind::OutBias];
const TOKEN: Kinds = [
    Kind::TokenParams,
    Kind::TokenUpWeight,
    Kind::TokenUpMult,
    Kind::TokenUpBias,
    Kind::TokenDownWeight,
    Kind::TokenDownMult,
    Kind::TokenDownBias,
];
const MLP: Kinds = [Kind::MlpParams, Kind::UpWeight, Kind::UpMult, Kind::UpBias, Kind::DownWeight, Kind::DownMult, Kind::DownBias];

struct Sublayers<'a> {
    writer: &'a mut ModelWriter,
    module: usize,
    layer: usize,
}

impl Sublayers<'_> {
    fn set(&mut self, kinds: Kinds, mut values: [i64; params::LEN], first: &QuantMatrix, second: &QuantMatrix) -> anyhow::Result<()> {
        values[params::FIRST_SHIFT] = first.shift.into();
        values[params::SECOND_SHIFT] = second.shift.into();
        let tensors = [
            values.to_vec(),
            wide(&first.weights),
            wide(&first.mult),
            wide(&first.bias),
            wide(&second.weights),
            wide(&second.mult),
            wide(&second.bias),
        ];
        for (kind, values) in kinds.into_iter().zip(tensors) {
            self.writer.set(kind, self.module, self.layer, &values).with_context(|| format!("{kind:?}"))?;
        }
        Ok(())
    }

    fn gated(&mut self, kinds: Kinds, p: &GatedPlan) -> anyhow::Result<()> {
        let mut values = [0; params::LEN];
        values[params::M_IN] = p.input.m.into();
        values[params::RESIDUAL_SHIFT] = p.residual_shift.into();
        values[params::GATE_SHIFT] = p.gate_shift.into();
        for (v, view) in values[params::M_GROUP..].iter_mut().zip(&p.sums) {
            *v = view.m.into();
        }
        self.set(kinds, values, &p.up, &p.down)
    }

    fn attention(&mut self, p: &AttentionPlan) -> anyhow::Result<()> {
        let mut values = [0; params::LEN];
        values[params::M_IN] = p.input.m.into();
        values[params::RESIDUAL_SHIFT] = p.residual_shift.into();
        for (v, view) in values[params::M_QKV..].iter_mut().zip(&p.qkv_views) {
            *v = view.m.into();
        }
        values[params::M_OUT] = p.output.m.into();
        values[params::M_SCORE] = p.m_score;
        self.set(ATTENTION, values, &p.qkv, &p.out)
    }
}

/// Puts all tensors of `plan` into a writer.
///
/// # Errors
/// A value of the stream is outside Q5.10, the name is longer than 32 bytes, or the writer refuses a tensor.
pub fn write(weights: &NetWeights, plan: &ModelPlan, task: TaskKind, name: &str) -> anyhow::Result<ModelWriter> {
    let c = weights.spec.config;
    let mut padded = [0; 32];
    padded
        .get_mut(..name.len())
        .with_context(|| format!("the name `{name}` has {} bytes, expected at most 32", name.len()))?
        .copy_from_slice(name.as_bytes());
    let merge_fields = weights.spec.groupings.iter().enumerate().fold(0, |bits, (g, grouping)| bits | u8::from(grouping.merge_fields) << g);
    let header = Header { config: c, task, q_continue: weights.q.out == 2, merge_fields, tensors: 0, crc: 0, name: padded };
    let mut writer = ModelWriter::new(header).context("header")?;
    let mut global = |kind, values: &[i64]| writer.set(kind, 0, 0, values).with_context(|| format!("{kind:?}"));
    global(Kind::Embed, &q10(&weights.embed, "the embedding")?)?;
    if c.prefix > 0 {
        global(Kind::Prefix, &q10(&weights.prefix, "the prefix")?)?;
    }
    if c.start == Start::Fixed {
        global(Kind::Init, &q10(&weights.init.concat(), "the start")?)?;
    }
    if c.groupings > 0 {
        let ids: Vec<i64> = weights.spec.groupings.iter().flat_map(|g| wide(&g.ids)).collect();
        global(Kind::Groups, &ids)?;
    }
    if c.rope {
        let q15 = |v: &f32| (f64::from(*v) * 32768.0).round().clamp(-32768.0, 32767.0) as i64;
        let table: Vec<i64> = weights.rope.0.iter().chain(&weights.rope.1).map(q15).collect();
        global(Kind::Rope, &table)?;
    }
    let head = &plan.head;
    global(Kind::HeadWeight, &wide(&head.weights))?;
    global(Kind::HeadBias, &head.bias)?;
    global(Kind::QWeight, &wide(&head.q_weights))?;
    global(Kind::QBias, &head.q_bias)?;
    global(Kind::Global, &[head.input.m.into(), head.q_shift.into(), 0, 0])?;
    writer.set_scales((head.sigma * head.input.step) as f32, head.q_scale as f32);
    for (module, blocks) in plan.modules.iter().enumerate() {
        for (layer, block) in blocks.iter().enumerate() {
            let mut at = Sublayers { writer: &mut writer, module, layer };
            if let Some(attention) = &block.attention {
                at.attention(attention)?;
            }
            if let Some(token) = &block.token {
                at.gated(TOKEN, token)?;
            }
            at.gated(MLP, &block.mlp)?;
        }
    }
    debug_assert!(c.mixer != Mixer::TokenMlp || plan.modules[0][0].token.is_some());
    Ok(writer)
}
