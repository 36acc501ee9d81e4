//! Every kernel of this core against `reference`, bit for bit: random shapes with all tails, random values with the extremes.

use hrm_core::kernels::{Bases, Columns, Kernel, Requant, reference};
use hrm_core::rng::{Purpose, Stream};

const ROWS: usize = 13;
const N: usize = 210;
const K: usize = 210;
/// Behind the end of every output stand elements that must stay as they are.
const GUARD: usize = 8;

/// Weights that start at a whole word, as those of a file do.
#[repr(align(4))]
struct Words([i8; N * (K + 8)]);

/// Memory of the check.
pub struct Buffers {
    a: [i8; ROWS * K],
    weights: Words,
    packed: [i32; N * K],
    table: [i32; 9 * N],
    bias: [i32; N],
    mult: [i32; N],
    index: [u16; ROWS * 8],
    wide: [[i32; ROWS * N + GUARD]; 2],
    narrow: [[i16; ROWS * N + GUARD]; 2],
    scratch: [i16; ROWS * N],
    delta: [i16; ROWS * N],
    bytes: [[i8; ROWS * N + GUARD]; 2],
}

impl Buffers {
    /// All zero.
    pub const EMPTY: Self = Self {
        a: [0; ROWS * K],
        weights: Words([0; N * (K + 8)]),
        packed: [0; N * K],
        table: [0; 9 * N],
        bias: [0; N],
        mult: [0; N],
        index: [0; ROWS * 8],
        wide: [[0; ROWS * N + GUARD]; 2],
        narrow: [[0; ROWS * N + GUARD]; 2],
        scratch: [0; ROWS * N],
        delta: [0; ROWS * N],
        bytes: [[0; ROWS * N + GUARD]; 2],
    };
}

struct Values(Stream);

impl Values {
    fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// A length: one of the usual ones, or any up to `most`.
    fn length(&mut self, usual: &[usize], most: usize) -> usize {
        if self.below(2) == 0 { usual[self.below(usual.len())] } else { 1 + self.below(most) }
    }

    /// int8 values, one in eight an extreme; `min` is -128 for activations, -127 for weights.
    fn bytes(&mut self, out: &mut [i8], min: i8) {
        // Sometimes nothing but extremes: the largest sums.
        let extremes = if self.below(8) == 0 { 2 } else { 16 };
        for o in out {
            *o = match self.below(extremes) {
                0 => min,
                1 => 127,
                _ => (self.0.next_u32() as i8).max(min),
            };
        }
    }

    /// 16-bit values of random magnitude, one in sixteen an extreme.
    fn words(&mut self, out: &mut [i16]) {
        for o in out {
            *o = match self.below(32) {
                0 => i16::MIN,
                1 => i16::MAX,
                _ => (self.0.next_u32() as i16) >> self.below(12),
            };
        }
    }
}

/// What a kernel gives that is not what `reference` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Kernel.
    pub kernel: &'static str,
    /// Operation.
    pub operation: &'static str,
    /// Round, from 0.
    pub round: usize,
    /// Rows, channels, columns.
    pub shape: [usize; 3],
    /// First element that differs.
    pub at: usize,
}

/// Runs `rounds` rounds from `seed` on every kernel but `reference`; returns how many comparisons were made.
///
/// # Errors
/// The first difference.
pub fn run(b: &mut Buffers, seed: u64, rounds: usize) -> Result<usize, Difference> {
    let mut v = Values(Stream::new(seed, Purpose::Start, 0));
    let mut comparisons = 0;
    for round in 0..rounds {
        for kernel in Kernel::available().filter(|&k| k != Kernel::REFERENCE) {
            comparisons += products(b, &mut v, kernel, round)?;
            comparisons += elements(b, &mut v, kernel, round)?;
        }
    }
    Ok(comparisons)
}

/// Compares the first `n` elements, and the guard behind them, which is `guard`.
fn same<T: PartialEq + Copy>(found: &[T], expected: &[T], n: usize, guard: T) -> Option<usize> {
    (0..n).find(|&i| found[i] != expected[i]).or_else(|| (n..n + GUARD).find(|&i| found[i] != guard))
}

fn products(b: &mut Buffers, v: &mut Values, kernel: Kernel, round: usize) -> Result<usize, Difference> {
    let (rows, n, k) = (1 + v.below(ROWS), v.length(&[48, 96, 192], N - 1), v.length(&[16, 32, 48, 64, 96, 97, 128, 192], K));
    let n = if v.below(2) == 0 { n.next_multiple_of(2).min(N) } else { n };
    // The matrix may be a block of columns of a wider one, of whole words or not.
    let (first, extra) = if v.below(2) == 0 { (4 * v.below(2), 0) } else { (v.below(5), v.below(4)) };
    let weights = &mut b.weights.0[..n * (first + k + extra)];
    v.bytes(weights, -127);
    let a = &mut b.a[..rows * k];
    v.bytes(a, -128);
    // Small ones too: some kernels go through the sums of their magnitudes.
    let smaller = v.below(5);
    a.iter_mut().for_each(|a| *a >>= smaller);
    let groupings = v.below(9);
    let group_rows = 1 + v.below(9);
    b.table[..group_rows * n].iter_mut().for_each(|t| *t = v.0.next_u32() as i32 >> 12);
    b.index[..rows * groupings].iter_mut().for_each(|i| *i = v.below(group_rows) as u16);
    b.bias[..n].iter_mut().for_each(|t| *t = v.0.next_u32() as i32 >> 10);
    for m in &mut b.mult[..n] {
        *m = v.0.next_u32() as i32 >> v.below(16) & i32::MAX;
    }
    let most = 128 * 127 * k as i64 + (1 << 21) + groupings as i64 * (1 << 19);
    let shift = v.below(32 - most.ilog2() as usize - 1) as u32;
    let q = Requant { shift, mult: &b.mult[..n], bias: &b.bias[..n] };
    let bases = Bases { table: &b.table[..group_rows * n], index: &b.index[..rows * groupings], groupings };
    let bases = (groupings > 0).then_some(&bases);
    let plain = Columns::new(weights, n, first, k, &[]);
    let words = kernel.packed_words(n, k);
    kernel.pack(&plain, &mut b.packed[..words]).unwrap();
    let columns = Columns::new(weights, n, first, k, &b.packed[..words]);
    let fail = |operation, at| Difference { kernel: kernel.name(), operation, round, shape: [rows, n, k], at };
    let count = rows * n;
    let [wide, wide_2] = &mut b.wide;
    let [narrow, narrow_2] = &mut b.narrow;
    Kernel::REFERENCE.accumulate(a, &plain, bases, &mut wide[..count]).unwrap();
    Kernel::REFERENCE.project(a, &plain, &q, bases, &mut narrow[..count]).unwrap();
    let gate_shift = v.below(5) as u32;
    let [hidden, hidden_2] = &mut b.bytes;
    if n.is_multiple_of(2) {
        reference::glu_rows(&narrow[..count], n / 2, gate_shift, &mut hidden[..count / 2]).unwrap();
    }
    // On the packed form, and without it: still right.
    for (columns, operations) in
        [(&columns, ["accumulate", "project", "gated"]), (&plain, ["accumulate in place", "project in place", "gated in place"])]
    {
        wide_2[..count + GUARD].fill(77);
        kernel.accumulate(a, columns, bases, &mut wide_2[..count]).unwrap();
        if let Some(at) = same(wide_2, wide, count, 77) {
            return Err(fail(operations[0], at));
        }
        narrow_2[..count + GUARD].fill(77);
        kernel.project(a, columns, &q, bases, &mut narrow_2[..count]).unwrap();
        if let Some(at) = same(narrow_2, narrow, count, 77) {
            return Err(fail(operations[1], at));
        }
        if n.is_multiple_of(2) {
            hidden_2[..count / 2 + GUARD].fill(77);
            kernel.gated(a, columns, &q, bases, gate_shift, &mut b.scratch[..count], &mut hidden_2[..count / 2]).unwrap();
            if let Some(at) = same(hidden_2, hidden, count / 2, 77) {
                return Err(fail(operations[2], at));
            }
        }
    }
    Ok(if n.is_multiple_of(2) { 6 } else { 4 })
}

fn elements(b: &mut Buffers, v: &mut Values, kernel: Kernel, round: usize) -> Result<usize, Difference> {
    let (rows, width) = (1 + v.below(ROWS), v.length(&[48, 81, 96, 104], N / 2 - 1));
    let count = rows * width;
    let fail = |operation, at| Difference { kernel: kernel.name(), operation, round, shape: [rows, width, 0], at };
    let [x, x_2] = &mut b.narrow;
    // At whole words or not.
    let from = v.below(2);
    let (x, x_2) = (&mut x[from..], &mut x_2[from..]);
    v.words(&mut x[..2 * count]);
    let m = ((1 + v.below(32767)) as i16 >> v.below(12)).max(1);
    let [out, out_2] = &mut b.bytes;
    Kernel::REFERENCE.view8(&x[..2 * count], m, &mut out[..2 * count]).unwrap();
    out_2[..2 * count + GUARD].fill(77);
    kernel.view8(&x[..2 * count], m, &mut out_2[..2 * count]).unwrap();
    if let Some(at) = same(out_2, out, 2 * count, 77) {
        return Err(fail("view8", at));
    }
    let (groupings, groups) = (1 + v.below(4), 1 + v.below(9));
    b.index[..rows * groupings].iter_mut().for_each(|i| *i = v.below(groups) as u16);
    let index = &b.index[..rows * groupings];
    let sums = &mut b.scratch[..groups * width + GUARD];
    sums.fill(0);
    Kernel::REFERENCE.group_sums(&out[..count], width, index, groupings, &mut sums[..groups * width]).unwrap();
    let sums_2 = &mut b.delta[..groups * width + GUARD];
    sums_2.fill(0);
    kernel.group_sums(&out[..count], width, index, groupings, &mut sums_2[..groups * width]).unwrap();
    if let Some(at) = same(sums_2, sums, groups * width, 0) {
        return Err(fail("group_sums", at));
    }
    let shift = v.below(5) as u32;
    Kernel::REFERENCE.glu(&x[..2 * count], width, shift, &mut out[..count]).unwrap();
    out_2[..count + GUARD].fill(77);
    kernel.glu(&x[..2 * count], width, shift, &mut out_2[..count]).unwrap();
    if let Some(at) = same(out_2, out, count, 77) {
        return Err(fail("glu", at));
    }
    let shift = v.below(6) as u32;
    x_2[..count].copy_from_slice(&x[..count]);
    x_2[count..count + GUARD].fill(77);
    Kernel::REFERENCE.scale_down(&mut x[..count], shift);
    kernel.scale_down(&mut x_2[..count], shift);
    if let Some(at) = same(x_2, x, count, 77) {
        return Err(fail("scale_down", at));
    }
    v.words(&mut b.delta[..2 * count]);
    x_2[..count].copy_from_slice(&x[..count]);
    Kernel::REFERENCE.add(&mut x[..count], &b.delta[..count]);
    Kernel::REFERENCE.inject(&mut x[..count], &b.delta[..count], &b.delta[count..2 * count]);
    kernel.add(&mut x_2[..count], &b.delta[..count]);
    kernel.inject(&mut x_2[..count], &b.delta[..count], &b.delta[count..2 * count]);
    if let Some(at) = same(x_2, x, count, 77) {
        return Err(fail("add and inject", at));
    }
    // Rows of zeros, of the ends of the range, and of one magnitude: the ends of the square root.
    for (i, (x, d)) in x[..count].chunks_exact_mut(width).zip(b.delta.chunks_exact_mut(width)).enumerate() {
        match i % 5 {
            0 => {
                x.fill([0, i16::MIN, i16::MAX, -1, 4][v.below(5)]);
                d.fill([0, i16::MIN, i16::MAX, 0, 0][v.below(5)]);
            }
            1 => {
                let shift = v.below(16);
                x.iter_mut().for_each(|x| *x >>= shift);
                d.iter_mut().for_each(|d| *d >>= shift);
            }
            _ => {}
        }
    }
    x_2[..count].copy_from_slice(&x[..count]);
    x_2[count..count + GUARD].fill(77);
    Kernel::REFERENCE.add_norm(&mut x[..count], &b.delta[..count], width).unwrap();
    kernel.add_norm(&mut x_2[..count], &b.delta[..count], width).unwrap();
    if let Some(at) = same(x_2, x, count, 77) {
        return Err(fail("add_norm", at));
    }
    Ok(6)
}
