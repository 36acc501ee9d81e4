//! The symmetry group of Sudoku: relabelled digits, transposition, permuted bands and stacks, rows in bands, columns in stacks.
//!
//! The 6x6 grid has boxes of 2 rows x 3 columns; transposing makes them 3 x 2, so there it is no symmetry. Orders without digits:
//! 128 (4x4), 3,456 (6x6), 3,359,232 (9x9).

use super::PuzzleError;
use super::sudoku::{BLANK, MAX_CELLS, MAX_SIZE, Sudoku};

/// One symmetry: where each cell comes from, and what each token becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symmetry {
    cells: u8,
    /// `source[i]`: the cell whose token goes to cell `i`.
    source: [u8; MAX_CELLS],
    /// `token[t]`: what token `t` becomes; padding and blank stay.
    token: [u8; MAX_SIZE + 2],
}

const fn factorial(n: u32) -> u32 {
    if n < 2 { 1 } else { n * factorial(n - 1) }
}

/// Permutation number `index` of `0..n` (factorial number system), `n <= 9`.
fn permutation(n: usize, mut index: u32) -> [u8; MAX_SIZE] {
    let mut pool = [0u8; MAX_SIZE];
    for (i, p) in pool.iter_mut().enumerate() {
        *p = i as u8;
    }
    for i in 0..n {
        let left = factorial((n - 1 - i) as u32).max(1);
        let pick = i + ((index / left) as usize).min(n - 1 - i);
        index %= left;
        if let Some(front) = pool.get_mut(i..=pick) {
            front.rotate_right(1);
        }
    }
    pool
}

/// Arrangements of `bands` bands of `width` lines.
const fn line_count(bands: usize, width: usize) -> u32 {
    factorial(bands as u32) * factorial(width as u32).pow(bands as u32)
}

/// Arrangement number `index` of `bands * width` lines: which old line stands at each place.
fn lines(bands: usize, width: usize, mut index: u32) -> [u8; MAX_SIZE] {
    let mut out = [0; MAX_SIZE];
    let (inside, orders) = (factorial(width as u32).max(1), factorial(bands as u32).max(1));
    let order = permutation(bands, index % orders);
    index /= orders;
    for (band, old) in out.chunks_mut(width.max(1)).zip(order).take(bands) {
        let within = permutation(width, index % inside);
        index /= inside;
        for (line, i) in band.iter_mut().zip(within) {
            *line = old * width as u8 + i;
        }
    }
    out
}

/// A number below `n` (at most 2^20) from 32 random bits; the bias is below `n / 2^32`.
fn below(random: &mut impl FnMut() -> u32, n: u32) -> u32 {
    ((u64::from(random()) * u64::from(n)) >> 32) as u32
}

impl Symmetry {
    /// The symmetry that changes nothing.
    #[must_use]
    pub fn identity(sudoku: Sudoku) -> Self {
        let mut source = [0; MAX_CELLS];
        for (i, s) in source.iter_mut().enumerate() {
            *s = i as u8;
        }
        let mut token = [0; MAX_SIZE + 2];
        for (t, image) in token.iter_mut().enumerate() {
            *image = t as u8;
        }
        Self { cells: sudoku.cells() as u8, source, token }
    }

    /// Number of symmetries that leave the digits as they are.
    #[must_use]
    pub const fn geometries(sudoku: Sudoku) -> u32 {
        let (rows, cols) = Self::line_counts(sudoku);
        rows * cols * if sudoku.box_rows() == sudoku.box_cols() { 2 } else { 1 }
    }

    const fn line_counts(sudoku: Sudoku) -> (u32, u32) {
        let (rows, cols) = (sudoku.box_rows(), sudoku.box_cols());
        (line_count(sudoku.size() / rows, rows), line_count(sudoku.size() / cols, cols))
    }

    /// Symmetry number `index` of those that leave the digits as they are; 0 is the identity. The index is taken modulo
    /// [`Symmetry::geometries`], and every such symmetry has one index.
    #[must_use]
    pub fn geometry(sudoku: Sudoku, index: u32) -> Self {
        let (row_count, col_count) = Self::line_counts(sudoku);
        let (row_count, col_count) = (row_count.max(1), col_count.max(1));
        let index = index % Self::geometries(sudoku).max(1);
        let (n, rows, cols) = (sudoku.size(), sudoku.box_rows(), sudoku.box_cols());
        let row = lines(n / rows, rows, index % row_count);
        let col = lines(n / cols, cols, index / row_count % col_count);
        let transpose = index >= row_count * col_count;
        let mut out = Self::identity(sudoku);
        for (sources, r) in out.source.chunks_mut(n).zip(row).take(n) {
            for (source, c) in sources.iter_mut().zip(col) {
                let (r, c) = if transpose { (c, r) } else { (r, c) };
                *source = r * n as u8 + c;
            }
        }
        out
    }

    /// A relabelling: digit `d` becomes `digits[d - 1]`. None unless `digits` holds each of `1..=n` once.
    #[must_use]
    pub fn relabel(sudoku: Sudoku, digits: &[u8]) -> Option<Self> {
        let mut seen = 0u16;
        for &d in digits {
            sudoku.digit(d.checked_add(BLANK)?)?;
            seen |= 1 << d;
        }
        if digits.len() != sudoku.size() || seen.count_ones() as usize != sudoku.size() {
            return None;
        }
        let mut out = Self::identity(sudoku);
        for (image, &d) in out.token[2..].iter_mut().zip(digits) {
            *image = d + BLANK;
        }
        Some(out)
    }

    /// The relabelling that moves every digit on by `k`, digit `n` to `k`: the input perturbation of Ren & Liu (arXiv 2601.10679).
    #[must_use]
    pub fn cyclic_digits(sudoku: Sudoku, k: usize) -> Self {
        let n = sudoku.size();
        let mut out = Self::identity(sudoku);
        for d in 0..n {
            out.token[d + 2] = ((d + k % n) % n) as u8 + 2;
        }
        out
    }

    /// A random relabelling. `random` gives 32 uniform bits a call.
    #[must_use]
    pub fn random_digits(random: &mut impl FnMut() -> u32, sudoku: Sudoku) -> Self {
        let n = sudoku.size();
        let order = permutation(n, below(random, factorial(n as u32)));
        let mut out = Self::identity(sudoku);
        for (image, d) in out.token.iter_mut().skip(2).take(n).zip(order) {
            *image = d + 2;
        }
        out
    }

    /// A random symmetry that leaves the digits as they are.
    #[must_use]
    pub fn random_geometry(random: &mut impl FnMut() -> u32, sudoku: Sudoku) -> Self {
        let (rows, cols) = Self::line_counts(sudoku);
        let (row, col) = (below(random, rows), below(random, cols));
        let half = (rows * cols).max(1);
        let transpose = below(random, Self::geometries(sudoku) / half);
        Self::geometry(sudoku, transpose * half + col * rows + row)
    }

    /// A random element of the whole group, all equally likely (up to a bias of 2^-12 of their probability).
    #[must_use]
    pub fn random(random: &mut impl FnMut() -> u32, sudoku: Sudoku) -> Self {
        let geometry = Self::random_geometry(random, sudoku);
        Self { token: Self::random_digits(random, sudoku).token, ..geometry }
    }

    /// Number of cells.
    #[must_use]
    pub const fn cells(&self) -> usize {
        self.cells as usize
    }

    /// The cell whose token goes to `cell`; none past the grid.
    #[must_use]
    pub fn source(&self, cell: usize) -> Option<usize> {
        self.source.get(..self.cells())?.get(cell).map(|&c| usize::from(c))
    }

    /// What `token` becomes. Tokens outside the vocabulary stay.
    #[must_use]
    pub fn token(&self, token: u8) -> u8 {
        self.token.get(usize::from(token)).copied().unwrap_or(token)
    }

    /// Writes the image of `tokens` to `out`, both of [`Symmetry::cells`] elements.
    ///
    /// # Errors
    /// [`PuzzleError::Tokens`] or [`PuzzleError::Buffer`] if a length differs; `out` is unchanged then.
    pub fn apply(&self, tokens: &[u8], out: &mut [u8]) -> Result<(), PuzzleError> {
        let expected = self.cells();
        if tokens.len() != expected {
            return Err(PuzzleError::Tokens { found: tokens.len(), expected });
        }
        if out.len() != expected {
            return Err(PuzzleError::Buffer { found: out.len(), expected });
        }
        for (o, &s) in out.iter_mut().zip(&self.source) {
            *o = tokens.get(usize::from(s)).map_or(BLANK, |&t| self.token(t));
        }
        Ok(())
    }

    /// The symmetry that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let mut out = *self;
        for (i, &s) in self.source.iter().enumerate().take(self.cells()) {
            if let Some(source) = out.source.get_mut(usize::from(s)) {
                *source = i as u8;
            }
        }
        for (t, &image) in self.token.iter().enumerate() {
            if let Some(token) = out.token.get_mut(usize::from(image)) {
                *token = t as u8;
            }
        }
        out
    }

    /// The symmetry that does `self` first and then `next`; none if they are of different sizes.
    #[must_use]
    pub fn compose(&self, next: &Self) -> Option<Self> {
        if self.cells != next.cells {
            return None;
        }
        let mut out = *self;
        for (o, &s) in out.source.iter_mut().zip(&next.source) {
            *o = self.source[usize::from(s)];
        }
        for (o, &t) in out.token.iter_mut().zip(&self.token) {
            *o = next.token(t);
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    fn sizes() -> [Sudoku; 3] {
        [4, 6, 9].map(|n| Sudoku::new(n).unwrap())
    }

    /// xorshift32: good enough to visit many symmetries.
    fn generator(mut x: u32) -> impl FnMut() -> u32 {
        move || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x
        }
    }

    /// A cyclic full grid.
    fn grid(s: Sudoku) -> Vec<u8> {
        let n = s.size();
        (0..s.cells()).map(|c| ((c / n % s.box_rows() * s.box_cols() + c / n / s.box_rows() + c % n) % n) as u8 + 2).collect()
    }

    fn image(sym: &Symmetry, tokens: &[u8]) -> Vec<u8> {
        let mut out = vec![0; tokens.len()];
        sym.apply(tokens, &mut out).unwrap();
        out
    }

    #[test]
    fn orders_of_the_groups() {
        assert_eq!(sizes().map(Symmetry::geometries), [128, 3456, 3_359_232]);
        for s in &sizes()[..2] {
            let all: BTreeSet<_> = (0..Symmetry::geometries(*s)).map(|i| Symmetry::geometry(*s, i).source).collect();
            assert_eq!(all.len(), Symmetry::geometries(*s) as usize);
            assert_eq!(Symmetry::geometry(*s, 0), Symmetry::identity(*s));
        }
    }

    #[test]
    fn permutations_are_all_different() {
        let all: BTreeSet<_> = (0..120).map(|i| permutation(5, i)).collect();
        assert_eq!(all.len(), 120);
        assert!(all.iter().all(|p| p[..5].iter().copied().collect::<BTreeSet<_>>() == (0..5).collect()));
    }

    #[test]
    fn random_symmetries_keep_the_rules_and_round_trip() {
        for s in sizes() {
            let mut random = generator(7);
            let full = grid(s);
            let puzzle: Vec<u8> = full.iter().enumerate().map(|(i, &t)| if i % 3 == 0 { t } else { BLANK }).collect();
            assert!(s.verify(&puzzle, &full).is_valid());
            let mut moved = 0;
            for _ in 0..300 {
                let a = Symmetry::random(&mut random, s);
                let (p, f) = (image(&a, &puzzle), image(&a, &full));
                assert!(s.verify(&p, &f).is_valid());
                assert_eq!(image(&a.inverse(), &p), puzzle);
                assert_eq!(a.compose(&a.inverse()), Some(Symmetry::identity(s)));
                let b = Symmetry::random(&mut random, s);
                assert_eq!(image(&a.compose(&b).unwrap(), &full), image(&b, &f));
                moved += usize::from(f != full);
                // A wrong answer stays wrong.
                let mut wrong = full.clone();
                wrong.swap(0, 1);
                assert!(!s.verify(&p, &image(&a, &wrong)).is_valid());
            }
            assert!(moved > 290);
        }
    }

    #[test]
    fn groups_go_to_groups() {
        for s in sizes() {
            let mut random = generator(11);
            for _ in 0..100 {
                let a = Symmetry::random_geometry(&mut random, s);
                for k in 0..3 {
                    for g in 0..s.size() {
                        // The cells of a unit come from one box, if it is a box, else from one row or one column.
                        let from = |kind: usize| -> BTreeSet<usize> {
                            (0..s.size()).map(|i| s.group(kind, a.source(s.cell_of(k, g, i)).unwrap())).collect()
                        };
                        if k == 2 {
                            assert_eq!(from(2).len(), 1);
                        } else {
                            assert_eq!(from(0).len().min(from(1).len()), 1);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn relabellings() {
        for s in sizes() {
            let n = s.size();
            let all = (0..n).map(|k| Symmetry::cyclic_digits(s, k).token).collect::<BTreeSet<_>>();
            assert_eq!(all.len(), n);
            assert_eq!(Symmetry::cyclic_digits(s, n), Symmetry::identity(s));
            assert_eq!(Symmetry::cyclic_digits(s, 1).token(n as u8 + 1), 2);
            let up: Vec<u8> = (1..=n as u8).map(|d| d % n as u8 + 1).collect();
            assert_eq!(Symmetry::relabel(s, &up), Some(Symmetry::cyclic_digits(s, 1)));
            assert_eq!(Symmetry::relabel(s, &up[1..]), None);
            assert_eq!(Symmetry::relabel(s, &vec![1; n]), None);
            assert_eq!(Symmetry::relabel(s, &(0..n as u8).collect::<Vec<_>>()), None);
            let r = Symmetry::random_digits(&mut generator(3), s);
            assert_eq!((r.token(0), r.token(1), r.token(200)), (0, 1, 200));
            assert_eq!(image(&r, &vec![BLANK; s.cells()]), vec![BLANK; s.cells()]);
        }
    }

    #[test]
    fn lengths_are_checked() {
        let s = Sudoku::new(4).unwrap();
        let a = Symmetry::identity(s);
        assert_eq!(a.apply(&[1; 15], &mut [0; 16]), Err(PuzzleError::Tokens { found: 15, expected: 16 }));
        assert_eq!(a.apply(&[1; 16], &mut [0; 17]), Err(PuzzleError::Buffer { found: 17, expected: 16 }));
        assert_eq!(a.compose(&Symmetry::identity(Sudoku::new(9).unwrap())), None);
        assert_eq!(a.source(16), None);
    }
}
