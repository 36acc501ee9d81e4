//! A trained model as the beginning of another: with other cycles, which have no weights, and of `group-sum` models of a larger one, with more
//! groupings, channels or hidden units.
//!
//! What the model does not have starts so that it changes nothing and can learn: a new grouping's weights are zero; new channels and hidden
//! units have fresh weights in `up` and zeros everywhere else. The norm divides by the mean over all channels, so `C` channels become `C'`
//! with states `sqrt(C' / C)` times as large: `embed`, `down` and fixed starts are multiplied by that, what reads a state is divided. From a
//! fixed start the larger model computes what the smaller one does. A random start fills the new channels too; its traces fade with each norm.

use anyhow::{Context as _, ensure};
use hrm_core::{Config, Mixer};

use crate::engine::Tensors;
use crate::model_file::{FloatModel, build_engine};
use crate::run_config::RunConfig;
use crate::spec::ModelSpec;

/// The weights of `model` for the architecture `spec`, fresh ones from `train.seed`.
///
/// # Errors
/// `spec` is not the model's with other cycles, or more groupings after its own, channels or hidden units; a tensor has another shape than
/// the model says.
pub fn weights_for(model: FloatModel, config: &RunConfig, spec: &ModelSpec) -> anyhow::Result<Tensors> {
    let (new, old) = (spec.config, model.spec.config);
    // Cycles have no weights.
    let old = Config { h_cycles: new.h_cycles, l_cycles: new.l_cycles, ..old };
    if old == new && model.spec.groupings == spec.groupings {
        return Ok(model.weights);
    }
    let same_but_larger = Config { groupings: old.groupings, channels: old.channels, inner: old.inner, ..new } == old
        && new.mixer == Mixer::GroupSum
        && spec.groupings.starts_with(&model.spec.groupings)
        && new.channels >= old.channels
        && new.inner >= old.inner;
    ensure!(same_but_larger, "the model has another architecture than [model] and no smaller one: {old:?}, expected {new:?}");
    // Rows and columns come in units, whose lengths may grow: gate and linear half of `up`, the channels of a row, of its sums ..
    let channels = (usize::from(old.channels), usize::from(new.channels));
    let hidden = (usize::from(old.inner), usize::from(new.inner));
    let one = (1, 1);
    let place = |unit: (usize, usize), k: usize| k / unit.0 * unit.1 + k % unit.0;
    let scale = (channels.1 as f32 / channels.0 as f32).sqrt();
    // An engine looks at all names and shapes.
    let trained = build_engine(config, &model.spec, Some(&model.weights))?.weights();
    let mut grown = build_engine(config, spec, None)?.weights();
    for (name, (shape, values)) in &mut grown {
        let (found, source) = trained.get(name).with_context(|| format!("tensor `{name}` is missing"))?;
        let (width, from) = (shape.last().copied().unwrap_or(1), found.last().copied().unwrap_or(1));
        // The last of each: columns that keep their fresh values.
        let parts: Vec<&str> = name.split('.').collect();
        let (row, column, factor, fresh) = match parts[..] {
            [.., "up", "weight"] => (hidden, channels, 1.0 / scale, place(channels, from)),
            [.., "up", "bias"] => (one, hidden, 1.0, 0),
            [.., "down", "weight"] => (channels, hidden, scale, 0),
            ["q", "bias"] => (one, one, 1.0, 0),
            ["head" | "q", "weight"] => (one, channels, 1.0 / scale, 0),
            _ => (one, channels, scale, 0),
        };
        values.chunks_exact_mut(width).for_each(|line| line[fresh..].fill(0.0));
        for (r, line) in source.chunks_exact(from).enumerate() {
            for (k, value) in line.iter().enumerate() {
                values[place(row, r) * width + place(column, k)] = value * factor;
            }
        }
    }
    Ok(grown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fused::reference::run;

    /// 4x4 without intersections and the same with more of everything.
    fn configs() -> [RunConfig; 2] {
        let few = ["data.generate={n=1,seed=1}", "task.size=4", "model.channels=8", "model.inner=12", "model.start=fixed"];
        let more = ["model.intersections=true", "model.channels=12", "model.inner=20"];
        let config = |sets: &[&str]| RunConfig::parse("", &sets.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()).unwrap();
        [config(&few), config(&[&few[..], &more[..]].concat())]
    }

    fn model(config: &RunConfig) -> FloatModel {
        let spec = config.spec().unwrap();
        let mut weights = build_engine(config, &spec, None).unwrap().weights();
        // Fresh biases and halt weights are zero, which any place is right for.
        for (_, values) in weights.values_mut() {
            values.iter_mut().zip(1u8..=50).for_each(|(v, k)| *v += f32::from(k) / 100.0);
        }
        FloatModel { spec, weights, record: None }
    }

    #[test]
    fn a_grown_model_answers_as_before() {
        let [few, more] = configs();
        let (model, spec) = (model(&few), more.spec().unwrap());
        let tokens: Vec<u8> = (0..16).map(|k| if k % 3 == 0 { 2 + k / 4 } else { 1 }).collect();
        let before = run(&model.spec, &model.weights, &tokens, 2, 0, 0, &mut ()).unwrap();
        let weights = weights_for(model, &more, &spec).unwrap();
        assert_eq!(weights["module.0.1.up.weight"].0, [40, 7 * 12]);
        let after = run(&spec, &weights, &tokens, 2, 0, 0, &mut ()).unwrap();
        for ((_, before), (carry, after)) in before.iter().zip(&after) {
            assert!((before.q_halt - after.q_halt).abs() < 1e-4, "{} and {}", before.q_halt, after.q_halt);
            assert!(before.logits.iter().zip(&after.logits).all(|(a, b)| (a - b).abs() < 1e-4), "{before:?} and {after:?}");
            assert!(carry.z_h.chunks(12).all(|row| row[8..] == [0.0; 4]), "a new channel moved");
        }
        // Yet they can learn: the hidden units see new channels, and new ones see all but new groups.
        let up = &weights["module.0.0.up.weight"].1;
        assert!(up[8..12].iter().all(|&w| w != 0.0) && up[12 * 84..][..5 * 12].iter().all(|&w| w != 0.0));
        assert!(up.chunks(84).all(|row| row[5 * 12..] == [0.0; 24]));
    }

    #[test]
    fn smaller_and_damaged_ones_are_refused() {
        let [few, more] = configs();
        let text = format!("{:#}", weights_for(model(&more), &few, &few.spec().unwrap()).unwrap_err());
        assert!(text.contains("no smaller one"), "{text}");
        let mut damaged = model(&few);
        damaged.weights.get_mut("embed").unwrap().0 = vec![0, 8];
        let text = format!("{:#}", weights_for(damaged, &more, &more.spec().unwrap()).unwrap_err());
        assert!(text.contains("`embed` has shape [0, 8]"), "{text}");
    }
}
