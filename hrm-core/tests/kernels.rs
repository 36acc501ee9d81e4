//! Every kernel against the scalar one, bit for bit: random shapes with all tails, random values with the extremes.
#![cfg(feature = "std")]

use hrm_core::kernels::{Bases, Columns, Kernel, Requant};
use hrm_core::rng::{Purpose, Stream};

/// Deterministic values of a test.
struct Values(Stream);

impl Values {
    fn new(seed: u64) -> Self {
        Self(Stream::new(seed, Purpose::Start, 0))
    }

    fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// int8 values, one in eight an extreme; `min` is -128 for activations, -127 for weights.
    fn bytes(&mut self, count: usize, min: i8) -> Vec<i8> {
        let mut value = || match self.below(16) {
            0 => min,
            1 => 127,
            _ => (self.0.next_u32() as i8).max(min),
        };
        (0..count).map(|_| value()).collect()
    }

    /// 16-bit values of random magnitude, one in sixteen an extreme.
    fn words(&mut self, count: usize) -> Vec<i16> {
        let mut value = || match self.below(32) {
            0 => i16::MIN,
            1 => i16::MAX,
            _ => (self.0.next_u32() as i16) >> self.below(12),
        };
        (0..count).map(|_| value()).collect()
    }
}

/// All kernels of this CPU but the scalar one.
fn others() -> impl Iterator<Item = Kernel> {
    Kernel::available().filter(|&k| k != Kernel::REFERENCE)
}

const ROUNDS: usize = if cfg!(miri) { 3 } else { 300 };

/// A length: mostly small, sometimes one of the usual ones.
fn length(v: &mut Values, usual: &[usize]) -> usize {
    if cfg!(miri) {
        1 + v.below(20)
    } else if v.below(3) == 0 {
        usual[v.below(usual.len())]
    } else {
        1 + v.below(100)
    }
}

#[test]
fn products_are_those_of_the_scalar_kernel() {
    let v = &mut Values::new(1);
    for round in 0..ROUNDS {
        let (rows, n, k) =
            (1 + v.below(40), length(v, &[40, 48, 96, 192, 512, 1536]), length(v, &[40, 48, 64, 96, 97, 128, 192, 512, 701]));
        // The matrix may be a block of columns of a wider one.
        let (first, extra) = (v.below(20), v.below(20));
        let weights = v.bytes(n * (first + k + extra), -127);
        let a = v.bytes(rows * k, -128);
        let groupings = v.below(5);
        let group_rows = 1 + v.below(20);
        let table: Vec<i32> = (0..group_rows * n).map(|_| v.0.next_u32() as i32 >> 12).collect();
        let index: Vec<u16> = (0..rows * groupings).map(|_| v.below(group_rows) as u16).collect();
        let bias: Vec<i32> = (0..n).map(|_| v.0.next_u32() as i32 >> 10).collect();
        // Small and large multipliers: both ends of the saturation are reached.
        let mult: Vec<i32> = (0..n).map(|_| v.0.next_u32() as i32 >> v.below(16) & i32::MAX).collect();
        let most = 128 * 127 * k as i64 + (1 << 21) + groupings as i64 * (1 << 19);
        let shift = v.below(32 - most.ilog2() as usize - 1) as u32;
        let q = Requant { shift, mult: &mult, bias: &bias };
        let bases = (groupings > 0).then_some(Bases { table: &table, index: &index, groupings });
        let plain = Columns::new(&weights, n, first, k, &[]);
        let (mut wide, mut narrow) = (vec![0; rows * n], vec![0; rows * n]);
        Kernel::REFERENCE.accumulate(&a, &plain, &mut wide);
        Kernel::REFERENCE.project(&a, &plain, &q, bases.as_ref(), &mut narrow);
        for kernel in others() {
            let mut packed = vec![-1; kernel.packed_words(n, k)];
            kernel.pack(&plain, &mut packed);
            let columns = Columns::new(&weights, n, first, k, &packed);
            // One element behind the end must stay as it is.
            let (mut wide_2, mut narrow_2) = (vec![77; rows * n + 1], vec![77; rows * n + 1]);
            kernel.accumulate(&a, &columns, &mut wide_2[..rows * n]);
            kernel.project(&a, &columns, &q, bases.as_ref(), &mut narrow_2[..rows * n]);
            assert_eq!((&wide_2[..rows * n], wide_2[rows * n]), (&wide[..], 77), "{} round {round}: {rows}x{n}x{k}", kernel.name());
            assert_eq!((&narrow_2[..rows * n], narrow_2[rows * n]), (&narrow[..], 77), "{} round {round}: {rows}x{n}x{k}", kernel.name());
            // Without the packed form: still right.
            let mut again = vec![0; rows * n];
            kernel.project(&a, &plain, &q, bases.as_ref(), &mut again);
            assert_eq!(again, narrow);
        }
    }
}

#[test]
fn views_hidden_values_and_sums_are_those_of_the_scalar_kernel() {
    let v = &mut Values::new(2);
    for round in 0..ROUNDS {
        let (rows, width) = (1 + v.below(20), length(v, &[48, 96, 192, 512]));
        let x = v.words(rows * 2 * width);
        let m = (1 + v.below(32767) as i16) >> v.below(12);
        let m = m.max(1);
        let (mut view, mut hidden) = (vec![0; x.len()], vec![0; rows * width]);
        Kernel::REFERENCE.view8(&x, m, &mut view);
        let shift = v.below(5) as u32;
        Kernel::REFERENCE.glu(&x, width, shift, &mut hidden);
        let groupings = 1 + v.below(4);
        let groups = 1 + v.below(9);
        let index: Vec<u16> = (0..rows * groupings).map(|_| v.below(groups) as u16).collect();
        let mut sums = vec![0; groups * width];
        Kernel::REFERENCE.group_sums(&view[..rows * width], width, &index, groupings, &mut sums);
        for kernel in others() {
            let (mut view_2, mut hidden_2) = (vec![77; x.len() + 1], vec![77; rows * width + 1]);
            kernel.view8(&x, m, &mut view_2[..x.len()]);
            kernel.glu(&x, width, shift, &mut hidden_2[..rows * width]);
            assert_eq!((&view_2[..x.len()], view_2[x.len()]), (&view[..], 77), "{} round {round}: {width}", kernel.name());
            assert_eq!((&hidden_2[..rows * width], hidden_2[rows * width]), (&hidden[..], 77), "{} round {round}: {width}", kernel.name());
            let mut sums_2 = vec![0; groups * width + 1];
            kernel.group_sums(&view[..rows * width], width, &index, groupings, &mut sums_2[..groups * width]);
            assert_eq!((&sums_2[..groups * width], sums_2[groups * width]), (&sums[..], 0), "{} round {round}: {width}", kernel.name());
        }
    }
}

/// All gates with the ups that matter: the whole table and both saturations.
#[test]
#[cfg_attr(miri, ignore)]
fn hidden_values_agree_for_every_gate() {
    let gates: Vec<i16> = (i16::MIN..=i16::MAX).collect();
    for up in [i16::MIN, -32767, -12345, -1024, -1, 0, 1, 77, 1024, 20000, i16::MAX] {
        let gate_up: Vec<i16> = gates.iter().copied().chain(gates.iter().map(|_| up)).collect();
        for shift in 0..=4 {
            let mut hidden = vec![0; gates.len()];
            Kernel::REFERENCE.glu(&gate_up, gates.len(), shift, &mut hidden);
            for kernel in others() {
                let mut hidden_2 = vec![0; gates.len()];
                kernel.glu(&gate_up, gates.len(), shift, &mut hidden_2);
                assert_eq!(hidden_2, hidden, "{} up {up} shift {shift}", kernel.name());
            }
        }
    }
}

#[test]
fn normalised_rows_are_those_of_the_scalar_kernel() {
    let v = &mut Values::new(3);
    for round in 0..ROUNDS {
        let (rows, width) = (1 + v.below(20), length(v, &[48, 81, 97, 512, 1024]));
        let mut x = v.words(rows * width);
        let mut d = v.words(rows * width);
        // Rows of zeros, of the smallest value, and of one magnitude: the ends of the square root.
        for (i, (x, d)) in x.chunks_exact_mut(width).zip(d.chunks_exact_mut(width)).enumerate() {
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
        let mut expected = x.clone();
        Kernel::REFERENCE.add_norm(&mut expected, &d, width);
        for kernel in others() {
            let mut y = x.clone();
            y.push(77);
            kernel.add_norm(&mut y[..rows * width], &d, width);
            assert_eq!((&y[..rows * width], y[rows * width]), (&expected[..], 77), "{} round {round}: {width}", kernel.name());
        }
    }
}

/// Sums around the squares of integers and around multiples of the width, where a rounded root or quotient would show.
#[test]
#[cfg_attr(miri, ignore)]
fn norms_agree_where_roots_and_quotients_are_near_integers() {
    for width in [1usize, 3, 48, 97] {
        for magnitude in (0..=32767i32).step_by(7).chain([32766, 32767, 32768]) {
            for last in [magnitude, magnitude - 1, magnitude + 1] {
                let mut x = vec![(-magnitude) as i16; width];
                x[width - 1] = (-last).clamp(-32768, 32767) as i16;
                let d = vec![0; width];
                let mut expected = x.clone();
                Kernel::REFERENCE.add_norm(&mut expected, &d, width);
                for kernel in others() {
                    let mut y = x.clone();
                    kernel.add_norm(&mut y, &d, width);
                    assert_eq!(y, expected, "{} width {width} magnitude {magnitude} last {last}", kernel.name());
                }
            }
        }
    }
}

#[test]
fn kernels_are_found_by_name() {
    assert_eq!(Kernel::by_name("reference"), Some(Kernel::REFERENCE));
    assert_eq!(Kernel::by_name("none such"), None);
    for kernel in Kernel::available() {
        assert_eq!(Kernel::by_name(kernel.name()), Some(kernel));
    }
    assert_eq!(Kernel::available().last(), Some(Kernel::best()));
}
