//! What the kernels of `step.cu` are made for: the macros of a model, its tables, its weights as the products read them, and sizes.

use std::fmt::Write as _;

use half::bf16;
use hrm_core::Start;

use crate::engine::fused::layout::{Dims, Packed, PackedBlock};

/// Text of the kernels.
pub const SOURCE: &str =
    concat!(include_str!("layout.cuh"), include_str!("products.cuh"), include_str!("block.cuh"), include_str!("step.cu"));

/// Threads of a block.
pub const THREADS: u32 = 512;

/// Words of a command and of a result before the tokens.
pub(super) const COMMAND_HEAD: usize = 11;
pub(super) const RESULT_HEAD: usize = 4;

/// Numbers that enter the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// bf16, what the tensor cores of a GPU multiply.
    Bf16,
    /// f32: the kernels on a host, so that their logic can be compared closely.
    F32,
}

impl Operand {
    const fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn put(self, values: impl Iterator<Item = f32>, out: &mut Vec<u8>) {
        match self {
            Self::Bf16 => values.for_each(|v| out.extend(bf16::from_f32(v).to_le_bytes())),
            Self::F32 => values.for_each(|v| out.extend(v.to_le_bytes())),
        }
    }
}

/// The kernels of one model.
#[derive(Clone, Debug)]
pub struct Program {
    /// What is defined before [`SOURCE`].
    pub macros: String,
    /// Index tables.
    pub tables: Vec<u32>,
    /// What products multiply.
    pub operand: Operand,
    /// Bytes of a slot's carry and scratch memory. It begins with z_H and z_L, f32 `[R][Cp]` each.
    pub work_bytes: usize,
    /// Bytes that the backward pass needs for each module call.
    pub call_bytes: usize,
    /// Words of a slot's command.
    pub command_words: usize,
    /// Words of a slot's result.
    pub result_words: usize,
    /// Values of the padded gradient.
    pub gradient_len: usize,
    /// Bytes of [`Program::weights`].
    pub weight_bytes: usize,
    /// Values of [`Program::floats`].
    pub float_len: usize,
}

impl Program {
    /// The kernels for models of these extents that round (`rounding`) or not.
    pub(in crate::engine::fused) fn new(d: &Dims, rounding: bool, operand: Operand, threads: u32) -> Self {
        let config = &d.spec.config;
        let (r, cp, ip, n, g, groups) = (d.r, d.cp, d.ip, 2 * d.ip, d.g, d.groups());
        let mut tiles = Vec::new();
        for (j, range) in d.group_base.windows(2).enumerate() {
            tiles.extend((range[0]..range[1]).step_by(16).flat_map(|first| [first as u32, j as u32]));
        }
        let group_tiles = tiles.len() / 2;
        let grouping_of = d.group_base.windows(2).enumerate().flat_map(|(j, range)| std::iter::repeat_n(j as u32, range[1] - range[0]));
        let tables = [&d.ids[..], &d.starts, &d.members].concat();
        let tables = tables.into_iter().chain(grouping_of).chain(d.group_base.iter().map(|&b| b as u32)).chain(tiles).collect();
        let layers = d.layers.iter().copied().max().unwrap_or(0);
        let (blocks, elem, align) = (d.blocks.len(), operand.bytes(), |bytes: usize| bytes.next_multiple_of(16));
        let state = r * cp;
        let call_bytes = 4 * (layers + 1) * state + layers * align(4 * r * n + elem * groups * cp + 4 * r);
        let rows = elem * (2 * state + r * ip + r * n) + 4 * groups * n + elem * groups * n + 4 * groups * cp;
        let heads = 4 * r * d.head + 8 * d.s + 4 * 16 * d.head.max(d.classes) * cp + 4 * (cp + 2);
        let work_bytes = align(16 * state + rows + heads) + call_bytes;
        let token_words = d.s.div_ceil(4);
        let mut program = Self {
            macros: String::new(),
            tables,
            operand,
            work_bytes,
            call_bytes,
            command_words: COMMAND_HEAD + 2 * token_words,
            result_words: RESULT_HEAD + token_words,
            gradient_len: d.grad_len,
            weight_bytes: blocks * elem * (2 * (1 + g) * n * cp + 2 * cp * ip),
            float_len: blocks * (2 * n + cp + ip + 1 + g) + (d.classes + d.head + 3) * cp + 1,
        };
        let values = [
            ("TOKENS", d.s),
            ("FIELDS", d.f),
            ("CHANNELS", d.c),
            ("INNER", d.i),
            ("GROUPINGS", g),
            ("GROUP_ROWS", groups),
            ("GROUP_TILES", group_tiles),
            ("HEAD", d.head),
            ("CLASSES", d.classes),
            ("MODULES", d.layers.len()),
            ("L_LAYERS", d.layers[0]),
            ("H_LAYERS", d.layers[d.h_module()]),
            ("RANDOM_START", usize::from(config.start == Start::Random)),
            ("ROUND", usize::from(rounding)),
            ("THREADS", threads as usize),
            ("WORK_BYTES", work_bytes),
            ("CALL_BYTES", call_bytes),
            ("COMMAND_WORDS", program.command_words),
            ("RESULT_WORDS", program.result_words),
            ("GRADIENT_LEN", program.gradient_len),
            ("WEIGHT_LEN", program.weight_bytes / elem),
            ("FLOAT_LEN", program.float_len),
            ("TABLE_LEN", program.tables.len()),
        ];
        for (name, value) in values {
            // Writing to a string cannot fail.
            let _ = writeln!(program.macros, "#define HRM_{name} {value}");
        }
        program
    }

    /// Both orientations of the matrices of every block. Where the model rounds, the forward ones are whole numbers: what they stand for is the
    /// product of [`Program::floats`]'s factor of the channel and one unit of what they multiply.
    pub(in crate::engine::fused) fn weights(&self, d: &Dims, packed: &Packed) -> Vec<u8> {
        let (n, cp, ip) = (2 * d.ip, d.cp, d.ip);
        let mut out = Vec::with_capacity(self.weight_bytes);
        for b in &packed.blocks {
            let scales = Scales::new(d, b);
            let up = b.up.iter().enumerate().map(|(at, &w)| {
                let (part, row) = (at / (n * cp), at / cp % n);
                scales.units(w, scales.input[part], scales.up[row])
            });
            self.operand.put(up, &mut out);
            // [part][c][n], rows of padding included.
            for part in b.up_t.chunks_exact(d.c * n) {
                self.operand.put(part.iter().copied().chain(std::iter::repeat_n(0.0, (cp - d.c) * n)), &mut out);
            }
            let padding = std::iter::repeat_n(0.0, (cp - d.c) * ip);
            let down = b.down.iter().enumerate().map(|(at, &w)| scales.units(w, scales.hidden[at % ip], scales.down[at / ip]));
            self.operand.put(down.chain(padding), &mut out);
            self.operand.put(b.down_t.iter().copied(), &mut out);
        }
        out
    }

    /// Factors, biases, units, embeddings, heads, starts.
    pub(in crate::engine::fused) fn floats(&self, d: &Dims, packed: &Packed, init: &[Vec<f32>; 2]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.float_len);
        for b in &packed.blocks {
            let scales = Scales::new(d, b);
            out.extend(&scales.up);
            out.extend(&b.bias);
            out.extend(&scales.down);
            out.extend(&scales.hidden);
            out.extend(&scales.input);
        }
        for values in [&packed.embed, &packed.head, &packed.q, &vec![packed.q_bias], &init[0], &init[1]] {
            out.extend(values);
        }
        out
    }
}

/// What one unit of an operand stands for; all ones where nothing is rounded.
struct Scales {
    rounds: bool,
    /// `[1 + G]`: the input, the sums of each grouping.
    input: Vec<f32>,
    /// `[Ip]`.
    hidden: Vec<f32>,
    /// Factor of each channel of W_up, `[2 Ip]`.
    up: Vec<f32>,
    /// Factor of each channel of W_down, `[Cp]`.
    down: Vec<f32>,
}

impl Scales {
    fn new(d: &Dims, b: &PackedBlock) -> Self {
        let (n, cp, ip) = (2 * d.ip, d.cp, d.ip);
        let ones = |len| vec![1.0; len];
        let Some(steps) = &b.rounding else {
            return Self { rounds: false, input: ones(1 + d.g), hidden: ones(ip), up: ones(n), down: ones(cp) };
        };
        let (input, hidden) = (steps.input_steps(), steps.hidden_steps().to_vec());
        // The largest weight of a channel is 127 units (`BlockSteps::up`); a channel of zeros keeps the factor 1.
        let factor = |largest: f32| if largest > 0.0 { largest / 127.0 } else { 1.0 };
        let up = (0..n).map(|row| {
            let values = input
                .iter()
                .enumerate()
                .flat_map(|(part, &step)| b.up[(part * n + row) * cp..][..cp].iter().map(move |w| (w * step).abs()));
            factor(values.fold(0.0, f32::max))
        });
        let down = (0..cp).map(|c| {
            let row = if c < d.c { &b.down[c * ip..][..ip] } else { &[] };
            factor(row.iter().zip(&hidden).map(|(w, step)| (w * step).abs()).fold(0.0, f32::max))
        });
        let (up, down) = (up.collect(), down.collect());
        Self { rounds: true, up, down, input, hidden }
    }

    /// A weight that multiplies units of `step`, in units of its channel's `factor`.
    fn units(&self, weight: f32, step: f32, factor: f32) -> f32 {
        if self.rounds { (weight * step / factor).round() } else { weight }
    }
}
