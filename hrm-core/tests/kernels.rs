//! Every kernel against the scalar one, bit for bit: random shapes with all tails, random values with the extremes.
#![cfg(feature = "std")]

use std::time::{Duration, Instant};

use hrm_core::kernels::{Bases, Columns, GroupInputs, Kernel, Mlp, MlpScratch, Requant, reference};
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
    products(&mut Values::new(1), ROUNDS);
}

fn products(v: &mut Values, rounds: usize) {
    for round in 0..rounds {
        let (rows, n, k) =
            (1 + v.below(40), length(v, &[40, 48, 96, 192, 512, 1536]), length(v, &[40, 48, 64, 96, 97, 128, 192, 512, 701]));
        product(v, round, (rows, n, k));
    }
}

/// More rows and more columns than kernels hold at a time.
#[test]
#[cfg_attr(miri, ignore)]
fn large_products_are_those_of_the_scalar_kernel() {
    let mut v = Values::new(4);
    for (round, shape) in
        [(200, 20, 512), (130, 40, 701), (75, 50, 1000), (20, 18, 2048), (20, 49, 2049), (13, 20, 4500)].into_iter().enumerate()
    {
        product(&mut v, round, shape);
    }
}

fn product(v: &mut Values, round: usize, (rows, n, k): (usize, usize, usize)) {
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
    Kernel::REFERENCE.accumulate(&a, &plain, bases.as_ref(), &mut wide).unwrap();
    Kernel::REFERENCE.project(&a, &plain, &q, bases.as_ref(), &mut narrow).unwrap();
    for kernel in others() {
        let mut packed = vec![-1; kernel.packed_words(n, k)];
        kernel.pack(&plain, &mut packed).unwrap();
        let columns = Columns::new(&weights, n, first, k, &packed);
        // One element behind the end must stay as it is.
        let (mut wide_2, mut narrow_2) = (vec![77; rows * n + 1], vec![77; rows * n + 1]);
        kernel.accumulate(&a, &columns, bases.as_ref(), &mut wide_2[..rows * n]).unwrap();
        kernel.project(&a, &columns, &q, bases.as_ref(), &mut narrow_2[..rows * n]).unwrap();
        assert_eq!((&wide_2[..rows * n], wide_2[rows * n]), (&wide[..], 77), "{} round {round}: {rows}x{n}x{k}", kernel.name());
        assert_eq!((&narrow_2[..rows * n], narrow_2[rows * n]), (&narrow[..], 77), "{} round {round}: {rows}x{n}x{k}", kernel.name());
        // Without the packed form: still right.
        let mut again = vec![0; rows * n];
        kernel.project(&a, &plain, &q, bases.as_ref(), &mut again).unwrap();
        assert_eq!(again, narrow);
        // With the gate behind it.
        if n.is_multiple_of(2) {
            let gate_shift = k as u32 % 5;
            let (mut hidden, mut hidden_2) = (vec![0; rows * n / 2], vec![77; rows * n / 2 + 1]);
            Kernel::REFERENCE.glu(&narrow, n / 2, gate_shift, &mut hidden).unwrap();
            kernel.gated(&a, &columns, &q, bases.as_ref(), gate_shift, &mut again, &mut hidden_2[..rows * n / 2]).unwrap();
            let (found, behind) = hidden_2.split_at(rows * n / 2);
            assert_eq!((found, behind), (&hidden[..], &[77][..]), "{} round {round}: {rows}x{n}x{k} gated", kernel.name());
        }
    }
}

#[test]
fn views_hidden_values_and_sums_are_those_of_the_scalar_kernel() {
    rows(&mut Values::new(2), ROUNDS);
}

fn rows(v: &mut Values, rounds: usize) {
    for round in 0..rounds {
        let (rows, width) = (1 + v.below(20), length(v, &[48, 96, 192, 512]));
        let x = v.words(rows * 2 * width);
        let m = (1 + v.below(32767) as i16) >> v.below(12);
        let m = m.max(1);
        let (mut view, mut hidden) = (vec![0; x.len()], vec![0; rows * width]);
        Kernel::REFERENCE.view8(&x, m, &mut view).unwrap();
        let shift = v.below(5) as u32;
        Kernel::REFERENCE.glu(&x, width, shift, &mut hidden).unwrap();
        let groupings = 1 + v.below(4);
        let groups = 1 + v.below(9);
        let index: Vec<u16> = (0..rows * groupings).map(|_| v.below(groups) as u16).collect();
        let mut sums = vec![0; groups * width];
        Kernel::REFERENCE.group_sums(&view[..rows * width], width, &index, groupings, &mut sums).unwrap();
        for kernel in others() {
            let (mut view_2, mut hidden_2) = (vec![77; x.len() + 1], vec![77; rows * width + 1]);
            kernel.view8(&x, m, &mut view_2[..x.len()]).unwrap();
            kernel.glu(&x, width, shift, &mut hidden_2[..rows * width]).unwrap();
            assert_eq!((&view_2[..x.len()], view_2[x.len()]), (&view[..], 77), "{} round {round}: {width}", kernel.name());
            assert_eq!((&hidden_2[..rows * width], hidden_2[rows * width]), (&hidden[..], 77), "{} round {round}: {width}", kernel.name());
            let mut sums_2 = vec![0; groups * width + 1];
            kernel.group_sums(&view[..rows * width], width, &index, groupings, &mut sums_2[..groups * width]).unwrap();
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
            Kernel::REFERENCE.glu(&gate_up, gates.len(), shift, &mut hidden).unwrap();
            for kernel in others() {
                let mut hidden_2 = vec![0; gates.len()];
                kernel.glu(&gate_up, gates.len(), shift, &mut hidden_2).unwrap();
                assert_eq!(hidden_2, hidden, "{} up {up} shift {shift}", kernel.name());
            }
        }
    }
}

#[test]
fn normalised_rows_are_those_of_the_scalar_kernel() {
    norms(&mut Values::new(3), ROUNDS);
}

fn norms(v: &mut Values, rounds: usize) {
    for round in 0..rounds {
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
        Kernel::REFERENCE.add_norm(&mut expected, &d, width).unwrap();
        for kernel in others() {
            let mut y = x.clone();
            y.push(77);
            kernel.add_norm(&mut y[..rows * width], &d, width).unwrap();
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
                Kernel::REFERENCE.add_norm(&mut expected, &d, width).unwrap();
                for kernel in others() {
                    let mut y = x.clone();
                    kernel.add_norm(&mut y, &d, width).unwrap();
                    assert_eq!(y, expected, "{} width {width} magnitude {magnitude} last {last}", kernel.name());
                }
            }
        }
    }
}

/// A random matrix `[n, k]` with its requantisation: outputs of all sizes, some saturated. Multipliers are small or fill all their bits.
struct Matrix {
    n: usize,
    k: usize,
    weights: Vec<i8>,
    shift: u32,
    mult: Vec<i32>,
    bias: Vec<i32>,
}

impl Matrix {
    fn new(v: &mut Values, n: usize, k: usize) -> Self {
        let shift = v.below(32 - (128 * 127 * k as i64 + (1 << 21)).ilog2() as usize - 1) as u32;
        let largest = if v.below(2) == 0 { 0 } else { 8 + v.below(10) };
        let mult = (0..n).map(|_| (v.0.next_u32() as i32 & i32::MAX) >> (largest + v.below(6)).min(24)).collect();
        let bias = (0..n).map(|_| v.0.next_u32() as i32 >> 12).collect();
        Self { n, k, weights: v.bytes(n * k, -127), shift, mult, bias }
    }

    fn scale(&self) -> Requant<'_> {
        Requant { shift: self.shift, mult: &self.mult, bias: &self.bias }
    }

    /// The blocks of `width` columns, packed for `kernel`.
    fn packed(&self, kernel: Kernel, width: usize) -> Vec<Vec<i32>> {
        let pack = |first| {
            let mut words = vec![-1; kernel.packed_words(self.n, width)];
            kernel.pack(&Columns::new(&self.weights, self.n, first, width, &[]), &mut words).unwrap();
            words
        };
        (0..self.k).step_by(width).map(pack).collect()
    }
}

/// The whole gated MLP against its steps in the scalar kernel.
#[test]
fn whole_layers_are_those_of_the_scalar_kernel() {
    let done = layers(&mut Values::new(4), if cfg!(miri) { 2 } else { ROUNDS / 2 });
    // A kernel that always refused would pass the comparison.
    let whole = Kernel::available().any(|k| k.name() == "avx512vnni");
    assert!(!whole || done > 0, "no kernel took a whole layer");
}

/// Returns how many layers were done as a whole.
fn layers(v: &mut Values, rounds: usize) -> usize {
    let mut done = 0;
    for round in 0..rounds {
        let (rows, width, inner) = (1 + v.below(60), 16 * (1 + v.below(6)), 16 * (1 + v.below(7)));
        // One in eight is of a shape that no register divides.
        let width = if v.below(8) == 0 { width + 4 } else { width };
        let groupings = v.below(6);
        let (up, down) = (Matrix::new(v, 2 * inner, width * (1 + groupings)), Matrix::new(v, width, inner));
        let (gate_shift, residual_shift) = (v.below(5) as u32, v.below(13) as u32);
        let mut m = || ((1 + v.below(32767)) as i16 >> v.below(12)).max(1);
        let (m_in, m_group): (i16, Vec<i16>) = (m(), (0..groupings).map(|_| m()).collect());
        let sizes: Vec<usize> = (0..groupings).map(|_| 1 + v.below(30)).collect();
        let starts: Vec<usize> = (0..=groupings).map(|g| sizes[..g].iter().sum()).collect();
        let group_rows = starts[groupings];
        let index: Vec<u16> = (0..rows * groupings).map(|i| (starts[i % groupings] + v.below(sizes[i % groupings])) as u16).collect();
        let (mut members, mut ends) = (Vec::new(), Vec::new());
        for group in 0..group_rows {
            members.extend((0..rows).filter(|r| index[r * groupings..(r + 1) * groupings].contains(&(group as u16))).map(|r| r as u16));
            ends.push(members.len() as u32);
        }
        // Some groupings are folded into others: group rows begin with products of earlier ones, and fewer are added to each row.
        let of_row = |v: &mut Values, g: usize| (0..sizes[g] * v.below(3)).map(|_| v.below(starts[g]) as u16).collect();
        let folded: Vec<Vec<u16>> = (0..groupings).map(|g| if g == 0 { Vec::new() } else { of_row(v, g) }).collect();
        let folded: Vec<&[u16]> = folded.iter().map(Vec::as_slice).collect();
        let kept: Vec<usize> = (0..groupings).filter(|_| v.below(4) > 0).collect();
        let added: Vec<u16> = (0..rows).flat_map(|r| kept.iter().map(move |g| (r, g))).map(|(r, g)| index[r * groupings + g]).collect();
        let x = v.words(rows * width);

        // The steps.
        let reference = Kernel::REFERENCE;
        let own = Columns::new(&up.weights, up.n, 0, width, &[]);
        let (mut view, mut sums) = (vec![0; x.len()], vec![0; group_rows * width]);
        reference.view8(&x, m_in, &mut view).unwrap();
        let mut table = vec![0; group_rows * up.n];
        if groupings > 0 {
            reference.group_sums(&view, width, &index, groupings, &mut sums).unwrap();
        }
        for g in 0..groupings {
            let mut views = vec![0; sizes[g] * width];
            reference.view8(&sums[starts[g] * width..starts[g + 1] * width], m_group[g], &mut views).unwrap();
            let columns = Columns::new(&up.weights, up.n, (1 + g) * width, width, &[]);
            let (before, products) = table.split_at_mut(starts[g] * up.n);
            let earlier = Bases { table: before, index: folded[g], groupings: folded[g].len() / sizes[g] };
            reference.accumulate(&views, &columns, Some(&earlier), &mut products[..sizes[g] * up.n]).unwrap();
        }
        let bases = Some(Bases { table: &table, index: &added, groupings: kept.len() });
        let (mut gate_up, mut hidden, mut delta) = (vec![0; rows * up.n], vec![0; rows * inner], vec![0; x.len()]);
        reference.project(&view, &own, &up.scale(), bases.as_ref(), &mut gate_up).unwrap();
        reference.glu(&gate_up, inner, gate_shift, &mut hidden).unwrap();
        reference.project(&hidden, &Columns::new(&down.weights, width, 0, inner, &[]), &down.scale(), None, &mut delta).unwrap();
        let mut expected = x.clone();
        if residual_shift > 0 {
            let half = 1 << (residual_shift - 1);
            expected.iter_mut().for_each(|x| *x = reference::sat16((i32::from(*x) + half) >> residual_shift));
        }
        reference.add_norm(&mut expected, &delta, width).unwrap();

        for kernel in Kernel::available() {
            let (up_packed, down_packed) = (up.packed(kernel, width), down.packed(kernel, inner));
            let block = |g: usize| Columns::new(&up.weights, up.n, g * width, width, &up_packed[g]);
            let columns: Vec<Columns<'_>> = (1..=groupings).map(block).collect();
            let groups = GroupInputs {
                columns: &columns,
                m: &m_group,
                starts: &starts,
                folded: &folded,
                index: &added,
                kept: kept.len(),
                members: &members,
                ends: &ends,
            };
            let mlp = Mlp {
                own: block(0),
                up_scale: up.scale(),
                down: Columns::new(&down.weights, width, 0, inner, &down_packed[0]),
                down_scale: down.scale(),
                m_in,
                gate_shift,
                residual_shift,
                groups: (groupings > 0).then_some(groups),
            };
            let padded = rows.next_multiple_of(12);
            let (mut view, mut hidden) = (vec![77; padded * width], vec![77; padded * inner]);
            let (mut sum_views, mut table, mut delta) = (vec![77; group_rows * width], vec![77; group_rows * 32], vec![77; 8 * width]);
            let mut scratch =
                MlpScratch { view: &mut view, sum_views: &mut sum_views, table: &mut table, hidden: &mut hidden, delta: &mut delta };
            // One element behind the end must stay as it is.
            let mut y = x.clone();
            y.push(77);
            let whole = kernel.gated_mlp(&mlp, &mut y[..rows * width], &mut scratch);
            done += usize::from(whole);
            let expected = if whole { &expected } else { &x };
            assert_eq!((&y[..x.len()], y[x.len()]), (&expected[..], 77), "{} round {round}: {rows}x{width}, {inner}", kernel.name());
            // Scratch that is too small: refused, and nothing is touched.
            scratch.hidden = &mut [];
            let mut y = x.clone();
            assert!(!kernel.gated_mlp(&mlp, &mut y, &mut scratch) && y == x, "{} round {round}", kernel.name());
        }
    }
    done
}

/// Says which values were compared when a comparison fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("HRM_FUZZ_SEED={} repeats it", self.0);
        }
    }
}

/// `HRM_FUZZ_SECONDS` of all comparisons with ever new values (`cargo xtask fuzz kernels --seconds N`).
#[test]
#[ignore = "runs as long as HRM_FUZZ_SECONDS says"]
fn fuzz_for_a_while() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let end = Instant::now() + Duration::from_secs(number("HRM_FUZZ_SECONDS").unwrap_or(10));
    let first = number("HRM_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32);
    let (mut rounds, mut whole) = (0u64, 0);
    while rounds == 0 || Instant::now() < end {
        let seed = Seed(first + rounds);
        let v = &mut Values::new(seed.0);
        products(v, 20);
        rows(v, 20);
        norms(v, 20);
        whole += layers(v, 20);
        rounds += 1;
    }
    let kernels: Vec<_> = others().map(Kernel::name).collect();
    println!("{rounds} rounds of 80 comparisons with {}, seeds from {first} on, {whole} whole layers: all equal", kernels.join(", "));
}

/// Slices of other shapes than they should have are an error on every kernel.
#[test]
fn other_shapes_are_refused() {
    let (rows, n, k) = (3, 4, 8);
    let (weights, mult, bias) = (vec![1; n * k], vec![1; n], vec![1; n]);
    let q = Requant { shift: 1, mult: &mult, bias: &bias };
    let short = Requant { shift: 1, mult: &mult, bias: &bias[1..] };
    let (a, wide, x) = (vec![1i8; rows * k], vec![0i32; rows * n], vec![1i16; rows * n]);
    let index = vec![0u16; rows * 2];
    for kernel in Kernel::available() {
        let mut packed = vec![0; kernel.packed_words(n, k)];
        kernel.pack(&Columns::new(&weights, n, 0, k, &[]), &mut packed).unwrap();
        let fitting = kernel.packed_words(n, k) > 0;
        assert!(!fitting || kernel.pack(&Columns::new(&weights, n, 0, k, &[]), &mut packed[1..]).is_err(), "{}", kernel.name());
        assert!(!fitting || kernel.pack(&Columns::new(&weights[..k], n, 0, k, &[]), &mut packed).is_err(), "{}", kernel.name());
        let w = Columns::new(&weights, n, 0, k, &packed);
        let none = Columns::new(&weights, n, 0, 0, &[]);
        let few = Columns::new(&weights[..k], n, 0, k, &[]);
        let (mut sums, mut narrow, mut view, mut hidden) = (wide.clone(), x.clone(), vec![0; rows * n], vec![0; rows * n / 2]);
        let outside = Bases { table: &wide[..n], index: &[0, 1, 0], groupings: 1 };
        let unnamed = Bases { table: &wide, index: &index[..2], groupings: 1 };
        let errors = [
            kernel.accumulate(&a, &w, None, &mut sums[1..]),
            kernel.accumulate(&a[1..], &w, None, &mut sums),
            kernel.accumulate(&a, &none, None, &mut sums),
            kernel.accumulate(&a, &few, None, &mut sums),
            kernel.accumulate(&a, &w, Some(&outside), &mut sums),
            kernel.accumulate(&a, &w, Some(&unnamed), &mut sums),
            kernel.project(&a, &w, &q, None, &mut narrow[n..]),
            kernel.project(&a, &w, &short, None, &mut narrow),
            kernel.project(&a, &w, &q, Some(&outside), &mut narrow),
            kernel.project(&a, &w, &q, Some(&unnamed), &mut narrow),
            kernel.gated(&a, &w, &q, Some(&outside), 0, &mut narrow, &mut hidden),
            kernel.gated(&a, &w, &q, None, 0, &mut narrow, &mut hidden[1..]),
            kernel.glu(&x, n / 2, 0, &mut hidden[1..]),
            kernel.glu(&x, 0, 0, &mut hidden),
            kernel.view8(&x[1..], 1, &mut view),
            kernel.add_norm(&mut narrow, &x[n..], n),
            kernel.add_norm(&mut narrow, &x, 0),
            kernel.group_sums(&view, n, &index[1..], 2, &mut narrow),
            kernel.group_sums(&view, n, &[0, 1, 2, 3, 0, 1], 2, &mut narrow),
            kernel.group_sums(&view, 0, &index, 2, &mut narrow),
        ];
        for (i, error) in errors.into_iter().enumerate() {
            assert!(error.is_err(), "{}: number {i} is taken", kernel.name());
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
