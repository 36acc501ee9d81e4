//! All members of the family in one form: the weights as the plain float network and the quantiser read them.

use anyhow::{Context as _, bail, ensure};
use hrm_core::{Mixer, Start};

use crate::engine::Tensors;
use crate::spec::ModelSpec;

/// Prefix of the tensor names of public HRM and TRM models.
const PUBLIC: &str = "model.inner.";
/// Base of the rotary position embedding, the one of [`hrm_core::Config::rope`].
const ROPE_THETA: f64 = 10_000.0;

/// A matrix `[out, in]`, row-major, with its bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Name of its tensor.
    pub name: String,
    /// Output channels.
    pub out: usize,
    /// Input columns.
    pub inp: usize,
    /// `[out, in]`.
    pub w: Vec<f32>,
    /// `[out]`; zeros where the model has none.
    pub bias: Vec<f32>,
}

/// Both matrices of a gated MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct Gated {
    /// `[2 I, columns]`, gate rows first. Columns of group sums carry their `alpha_g`: they multiply plain sums.
    pub up: Linear,
    /// `[columns of the row, I]`.
    pub down: Linear,
}

/// One block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockWeights {
    /// `[3C, C]` of q, k, v and `[C, C]` of the output.
    pub attention: Option<(Linear, Linear)>,
    /// Gated MLP over tokens.
    pub token: Option<Gated>,
    /// Gated MLP over channels.
    pub mlp: Gated,
}

/// All weights of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct NetWeights {
    /// The architecture.
    pub spec: ModelSpec,
    /// `[input classes, C]`: what is added to the carry, scaled.
    pub embed: Vec<f32>,
    /// `[P, C]`, scaled.
    pub prefix: Vec<f32>,
    /// Fixed starts of z_H and z_L, `[C]` each; empty with random starts.
    pub init: [Vec<f32>; 2],
    /// Blocks by stored module (0 = L or shared, 1 = H).
    pub modules: Vec<Vec<BlockWeights>>,
    /// `[head width, C]`.
    pub head: Linear,
    /// `[1 or 2, C]`: halt, continue; of the mean over the Q rows.
    pub q: Linear,
    /// Cosines and sines, `[P + S, d / 2]` each; empty without rope.
    pub rope: (Vec<f32>, Vec<f32>),
}

/// Takes a tensor of a known shape and refuses values that are not finite.
fn take<'a>(tensors: &'a Tensors, name: &str, shape: &[usize]) -> anyhow::Result<&'a [f32]> {
    let (found, values) = tensors.get(name).with_context(|| format!("tensor `{name}` is missing"))?;
    let count = shape.iter().product::<usize>();
    ensure!(found == shape && values.len() == count, "tensor `{name}` has shape {found:?} and {} values, expected {shape:?}", values.len());
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        bail!("tensor `{name}` holds {} at element {i}, expected finite numbers", values[i]);
    }
    Ok(values)
}

struct Source<'a> {
    tensors: &'a Tensors,
    public: bool,
}

impl Source<'_> {
    fn linear(&self, name: &str, out: usize, inp: usize, bias: Option<&str>) -> anyhow::Result<Linear> {
        let w = take(self.tensors, name, &[out, inp])?.to_vec();
        let bias = match bias {
            Some(name) => take(self.tensors, name, &[out])?.to_vec(),
            None => vec![0.0; out],
        };
        Ok(Linear { name: name.to_owned(), out, inp, w, bias })
    }

    /// `{layer}.{part}.weight`, and `.bias` in structured models if it is the first matrix of a gated MLP.
    fn part(&self, layer: &str, public: &str, ours: &str, out: usize, inp: usize) -> anyhow::Result<Linear> {
        let name = format!("{layer}.{}", if self.public { public } else { ours });
        let bias = (!self.public && ours == "up").then(|| format!("{name}.bias"));
        self.linear(&format!("{name}.weight"), out, inp, bias.as_deref())
    }
}

impl NetWeights {
    /// Reads a model from its tensors: structured names (docs/architecture.md) or the public `model.inner...` ones.
    ///
    /// # Errors
    /// The specification is invalid; a tensor is missing, has another shape or a value that is not finite; the model has a part that
    /// the integer network does not know (learned positions, a Q head on a task token).
    pub fn new(spec: &ModelSpec, tensors: &Tensors) -> anyhow::Result<Self> {
        spec.validate()?;
        let c = &spec.config;
        let [ch, inner, token_inner, prefix, vocab] = [c.channels, c.inner, c.token_inner, c.prefix, c.vocab].map(usize::from);
        let rows = usize::from(c.tokens) + prefix;
        let public = tensors.keys().any(|name| name.starts_with(PUBLIC));
        let source = Source { tensors, public };
        let mut modules = Vec::new();
        for m in 0..c.modules() {
            let mut blocks = Vec::new();
            for i in 0..c.layers(m) {
                let layer = if public { format!("{PUBLIC}{}_level.layers.{i}", ["L", "H"][m]) } else { format!("module.{m}.{i}") };
                let attention = if c.has_attention() {
                    let qkv = source.part(&layer, "self_attn.qkv_proj", "qkv", 3 * ch, ch)?;
                    Some((qkv, source.part(&layer, "self_attn.o_proj", "out", ch, ch)?))
                } else {
                    None
                };
                let token = if c.mixer == Mixer::TokenMlp {
                    let up = source.part(&layer, "mlp_t.gate_up_proj", "token_up", 2 * token_inner, rows)?;
                    Some(Gated { up, down: source.part(&layer, "mlp_t.down_proj", "token_down", rows, token_inner)? })
                } else {
                    None
                };
                let mut up = source.part(&layer, "mlp.gate_up_proj", "up", 2 * inner, c.mix_width())?;
                if c.mixer == Mixer::GroupSum {
                    fold_alpha(&mut up, spec, ch);
                }
                let down = source.part(&layer, "mlp.down_proj", "down", ch, inner)?;
                blocks.push(BlockWeights { attention, token, mlp: Gated { up, down } });
            }
            modules.push(blocks);
        }

        let (embed, prefix_rows, init, head, q) = if public {
            ensure!(
                !tensors.contains_key(&format!("{PUBLIC}embed_pos.embedding_weight")),
                "the model adds learned positions (`{PUBLIC}embed_pos.embedding_weight`), which the integer network does not have"
            );
            ensure!(
                prefix > 0,
                "the Q head of a public model reads row 0, the integer network reads it only with prefix tokens; found none"
            );
            let scale = (ch as f32).sqrt();
            let embed = take(tensors, &format!("{PUBLIC}embed_tokens.embedding_weight"), &[vocab, ch])?.iter().map(|v| v * scale).collect();
            let name = format!("{PUBLIC}q_head");
            let mut q = source.linear(&format!("{name}.weight"), 2, ch, Some(&format!("{name}.bias")))?;
            if c.shared {
                // TRM halts on a positive halt output; its second output is not trained.
                q.out = 1;
                q.w.truncate(ch);
                q.bias.truncate(1);
            }
            let init =
                [take(tensors, &format!("{PUBLIC}H_init"), &[ch])?.to_vec(), take(tensors, &format!("{PUBLIC}L_init"), &[ch])?.to_vec()];
            let head = source.linear(&format!("{PUBLIC}lm_head.weight"), vocab, ch, None)?;
            (embed, puzzle_rows(tensors, prefix * ch, scale)?, init, head, q)
        } else {
            ensure!(prefix == 0, "structured models have no prefix tokens, found {prefix}");
            let init = match c.start {
                Start::Fixed => [take(tensors, "init.H", &[ch])?.to_vec(), take(tensors, "init.L", &[ch])?.to_vec()],
                Start::Random => [Vec::new(), Vec::new()],
            };
            let embed = take(tensors, "embed", &[c.input_classes(), ch])?.to_vec();
            let head = source.linear("head.weight", c.head_width(), ch, None)?;
            (embed, Vec::new(), init, head, source.linear("q.weight", 1, ch, Some("q.bias"))?)
        };
        let rope = if c.rope { rope_table(rows, ch / usize::from(c.heads)) } else { (Vec::new(), Vec::new()) };
        Ok(Self { spec: spec.clone(), embed, prefix: prefix_rows, init, modules, head, q, rope })
    }

    /// Rows that the Q head averages.
    #[must_use]
    pub fn q_rows(&self) -> usize {
        if self.spec.config.prefix > 0 { 1 } else { self.spec.config.rows() }
    }
}

/// The first row of the table of puzzle embeddings, padded with zeros to all prefix tokens.
fn puzzle_rows(tensors: &Tensors, len: usize, scale: f32) -> anyhow::Result<Vec<f32>> {
    let name = format!("{PUBLIC}puzzle_emb.weights");
    let (shape, _) = tensors.get(&name).with_context(|| format!("tensor `{name}` is missing"))?;
    let &[identifiers, width] = shape.as_slice() else { bail!("tensor `{name}` has shape {shape:?}, expected two axes") };
    ensure!(identifiers > 0 && width <= len, "tensor `{name}` has shape {shape:?}, expected at least one row of at most {len}");
    let values = take(tensors, &name, &[identifiers, width])?;
    let mut rows: Vec<f32> = values[..width].iter().map(|v| v * scale).collect();
    rows.resize(len, 0.0);
    Ok(rows)
}

/// `alpha_g = 1 / sqrt(rows of the largest group)`, into the columns that multiply the sums.
fn fold_alpha(up: &mut Linear, spec: &ModelSpec, ch: usize) {
    let width = up.inp;
    for (g, grouping) in spec.groupings.iter().enumerate() {
        let alpha = 1.0 / (grouping.largest(usize::from(spec.config.fields)).max(1) as f32).sqrt();
        for row in up.w.chunks_exact_mut(width) {
            row[(1 + g) * ch..(2 + g) * ch].iter_mut().for_each(|w| *w *= alpha);
        }
    }
}

/// Angles `position * theta^(-2i / d)`, in f32 as the published code forms them.
fn rope_table(positions: usize, d: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |p: usize, i: usize| p as f32 * (ROPE_THETA.powf(-2.0 * i as f64 / d as f64) as f32);
    let table = |f: fn(f32) -> f32| (0..positions * (d / 2)).map(|k| f(angle(k / (d / 2), k % (d / 2)))).collect();
    (table(f32::cos), table(f32::sin))
}
