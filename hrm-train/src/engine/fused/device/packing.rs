//! Which parameter every number comes from that the kernels read, and which place of the padded gradient it gets its own from.

use std::collections::BTreeMap;

use crate::engine::OptimizerKind;
use crate::engine::fused::layout::Dims;
use crate::engine::fused::rounding::BlockSteps;

/// Words of the description of an element of an operand.
const NOTHING: [u32; 4] = [0; 4];
/// Kinds of a float.
const CONSTANT: u32 = 0;
const PARAMETER: u32 = 1;
const FACTOR: u32 = 2;
/// Bits of a parameter.
const DECAYS: u32 = 1;
const MATRIX: u32 = 2;

/// The table `packing` of optimizer.cu, and the extents that go with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    pub elements: Vec<[u32; 4]>,
    pub floats: Vec<[u32; 2]>,
    pub channels: Vec<[u32; 3]>,
    pub units: Vec<f32>,
    pub parameters: Vec<[u32; 3]>,
    /// Flat index, rows, columns, place in the scratch memory.
    pub matrices: Vec<[u32; 4]>,
    /// Values of the scratch memory.
    pub scratch_len: usize,
}

fn constant(value: f32) -> [u32; 2] {
    [CONSTANT, value.to_bits()]
}

/// Where a block's parameters lie in the flat vector, and its units.
struct Block<'a> {
    d: &'a Dims,
    up: usize,
    bias: usize,
    down: usize,
    /// Number of the channel of its first row of W_up; those of W_down follow.
    channel: usize,
    rounding: bool,
    /// Units of the input and of the sums of each grouping, `[1 + G]`, ones without rounding.
    input: Vec<f32>,
    /// Units of the hidden channels, `[Ip]`, ones without rounding.
    hidden: Vec<f32>,
}

impl Block<'_> {
    fn width(&self) -> usize {
        (1 + self.d.g) * self.d.c
    }

    fn alpha(&self, part: usize) -> f32 {
        if part == 0 { 1.0 } else { self.d.alpha[part - 1] }
    }

    /// Row of W_up that is row `n` of the padded ones.
    fn row(&self, n: usize) -> Option<usize> {
        let (i, ip) = (self.d.i, self.d.ip);
        if n < ip { (n < i).then_some(n) } else { (n - ip < i).then_some(i + n - ip) }
    }

    /// The element of W_up at padded row `n`, channel `c` of a part.
    fn up(&self, part: usize, n: usize, c: usize, backward: bool) -> [u32; 4] {
        let Some(row) = self.row(n).filter(|_| c < self.d.c) else { return NOTHING };
        let (alpha, step) = (self.alpha(part), self.input[part]);
        // alpha is part of the integer weights.
        self.element(self.up + row * self.width() + part * self.d.c + c, self.channel + row, alpha * step, step, backward)
    }

    fn down(&self, c: usize, i: usize, backward: bool) -> [u32; 4] {
        if c >= self.d.c || i >= self.d.i {
            return NOTHING;
        }
        let step = self.hidden[i];
        self.element(self.down + c * self.d.i + i, self.channel + 2 * self.d.i + c, step, step, backward)
    }

    fn element(&self, at: usize, channel: usize, unit: f32, step: f32, backward: bool) -> [u32; 4] {
        let back = if backward && self.rounding { 1.0 / step } else { 0.0 };
        [at as u32 + 1, channel as u32, unit.to_bits(), back.to_bits()]
    }

    /// Both orientations of both matrices, in the order of layout.cuh.
    fn elements(&self, out: &mut Vec<[u32; 4]>) {
        let (n, cp, ip) = (2 * self.d.ip, self.d.cp, self.d.ip);
        let grid = |rows: usize, columns: usize| (0..rows).flat_map(move |r| (0..columns).map(move |c| (r, c)));
        for backward in [false, true] {
            for part in 0..=self.d.g {
                if backward {
                    out.extend(grid(cp, n).map(|(c, n)| self.up(part, n, c, true)));
                } else {
                    out.extend(grid(n, cp).map(|(n, c)| self.up(part, n, c, false)));
                }
            }
        }
        out.extend(grid(cp, ip).map(|(c, i)| self.down(c, i, false)));
        out.extend(grid(ip, cp).map(|(i, c)| self.down(c, i, true)));
    }

    /// Factors, biases and units, in the order of layout.cuh.
    fn floats(&self, out: &mut Vec<[u32; 2]>) {
        let (n, cp, i) = (2 * self.d.ip, self.d.cp, self.d.i);
        let factor = |channel: Option<usize>| match channel {
            Some(channel) if self.rounding => [FACTOR, (self.channel + channel) as u32],
            _ => constant(1.0),
        };
        out.extend((0..n).map(|n| factor(self.row(n))));
        out.extend((0..n).map(|n| self.row(n).map_or(constant(0.0), |row| [PARAMETER, (self.bias + row) as u32])));
        out.extend((0..cp).map(|c| factor((c < self.d.c).then_some(2 * i + c))));
        out.extend(self.hidden.iter().chain(&self.input).map(|&step| constant(step)));
    }

    /// What each channel's weights multiply.
    fn channels(&self, out: &mut Packing) {
        let unit = out.units.len() as u32;
        out.units.extend((0..=self.d.g).flat_map(|part| std::iter::repeat_n(self.alpha(part) * self.input[part], self.d.c)));
        let hidden = out.units.len() as u32;
        out.units.extend(&self.hidden[..self.d.i]);
        let (width, i) = (self.width(), self.d.i);
        out.channels.extend((0..2 * i).map(|row| [(self.up + row * width) as u32, width as u32, unit]));
        out.channels.extend((0..self.d.c).map(|c| [(self.down + c * i) as u32, i as u32, hidden]));
    }
}

impl Packing {
    /// The tables of a model that rounds in these steps or not at all.
    pub fn new(d: &Dims, rounding: Option<&[BlockSteps]>, init: &[Vec<f32>; 2], optimizer: OptimizerKind) -> Self {
        let mut out = Self::default();
        let at: BTreeMap<&str, usize> = d.params.iter().map(|p| (p.name.as_str(), p.offset)).collect();
        let names = (0..d.layers.len()).flat_map(|m| (0..d.layers[m]).map(move |block| format!("module.{m}.{block}")));
        for (number, name) in names.enumerate() {
            let steps = rounding.map(|r| &r[number]);
            let block = Block {
                d,
                up: at[format!("{name}.up.weight").as_str()],
                bias: at[format!("{name}.up.bias").as_str()],
                down: at[format!("{name}.down.weight").as_str()],
                channel: out.channels.len(),
                rounding: rounding.is_some(),
                input: steps.map_or_else(|| vec![1.0; 1 + d.g], BlockSteps::input_steps),
                hidden: steps.map_or_else(|| vec![1.0; d.ip], |s| s.hidden_steps().to_vec()),
            };
            block.elements(&mut out.elements);
            block.floats(&mut out.floats);
            block.channels(&mut out);
        }
        let rows = |offset: usize, count: usize| {
            (0..count).flat_map(move |row| {
                (0..d.cp).map(move |c| if c < d.c { [PARAMETER, (offset + row * d.c + c) as u32] } else { constant(0.0) })
            })
        };
        out.floats.extend(rows(at["embed"], d.classes).chain(rows(at["head.weight"], d.head)).chain(rows(at["q.weight"], 1)));
        out.floats.push([PARAMETER, at["q.bias"] as u32]);
        out.floats.extend(init.iter().flatten().map(|&v| constant(v)));
        out.parameters(d, optimizer);
        out
    }

    fn parameters(&mut self, d: &Dims, optimizer: OptimizerKind) {
        // `unpack_gradient` tells where a gradient comes from if the padded one holds places, and what it is multiplied with if it holds ones.
        let plain = Dims { alpha: vec![1.0; d.g], ..d.clone() };
        let places = plain.unpack_gradient(&(0..d.grad_len).map(|i| i as f32).collect::<Vec<_>>());
        let factors = d.unpack_gradient(&vec![1.0; d.grad_len]);
        for p in &d.params {
            let matrix = p.matrix.filter(|_| optimizer == OptimizerKind::Muon);
            let bits = if p.decay { DECAYS } else { 0 } | if matrix.is_some() { MATRIX } else { 0 };
            self.parameters.extend((p.offset..p.offset + p.len).map(|i| [places[i] as u32, factors[i].to_bits(), bits]));
            if let Some((rows, columns)) = matrix {
                self.matrices.push([p.offset as u32, rows as u32, columns as u32, self.scratch_len as u32]);
                let (height, width) = (rows.min(columns).next_multiple_of(32), rows.max(columns).next_multiple_of(32));
                self.scratch_len += 2 * height * (width + height);
            }
        }
    }

    /// As one table.
    pub fn words(&self) -> Vec<u32> {
        let units = self.units.iter().map(|u| u.to_bits());
        let mut out = self.elements.concat();
        out.extend(self.floats.iter().flatten().chain(self.channels.iter().flatten()));
        out.extend(units);
        out.extend(self.parameters.iter().flatten().chain(self.matrices.iter().flatten()));
        out
    }
}
