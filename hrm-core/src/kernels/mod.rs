//! The integer kernels: `reference` is the law, every other file is one ISA and gives the same bits.
//!
//! [`Kernel`] chooses between them at run time; the operations are whole row blocks, so the choice costs nothing. This is the only
//! room with unsafe code, and only in the ISA files.

pub mod reference;
pub mod tables;

/// A block of columns of an int8 matrix, `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Output channels.
    pub n: usize,
    /// Input columns of this block.
    pub k: usize,
    weights: &'a [i8],
    stride: usize,
    first: usize,
    packed: &'a [i32],
}

impl<'a> Columns<'a> {
    /// Columns `first..first + k` of the row-major matrix `weights` of `n` rows; `packed` is what [`Kernel::pack`] made of them (may
    /// be empty for kernels that read weights in place).
    #[must_use]
    pub const fn new(weights: &'a [i8], n: usize, first: usize, k: usize, packed: &'a [i32]) -> Self {
        let stride = if n == 0 { 0 } else { weights.len() / n };
        Self { n, k, weights, stride, first, packed }
    }

    /// Weights of output channel `n`.
    #[inline]
    #[must_use]
    pub fn row(&self, n: usize) -> &'a [i8] {
        let at = n * self.stride + self.first;
        &self.weights[at..at + self.k]
    }

    /// The packed form, empty if there is none.
    #[must_use]
    pub const fn packed(&self) -> &'a [i32] {
        self.packed
    }
}

/// Requantisation of one matrix.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// `l`.
    pub shift: u32,
    /// `m` per output channel.
    pub mult: &'a [i32],
    /// Bias per output channel.
    pub bias: &'a [i32],
}

/// Accumulators to add to each row before requantisation: the products of its groups' sums.
#[derive(Clone, Copy, Debug)]
pub struct Bases<'a> {
    /// `[group rows, N]`.
    pub table: &'a [i32],
    /// `[R, G]`: rows of `table` for each row.
    pub index: &'a [u16],
    /// `G`.
    pub groupings: usize,
}

impl<'a> Bases<'a> {
    /// Group rows of row `r`.
    #[inline]
    #[must_use]
    pub fn of(&self, r: usize) -> &'a [u16] {
        &self.index[r * self.groupings..(r + 1) * self.groupings]
    }
}

/// A kernel that this CPU can execute. Obtained from [`Kernel::best`] or [`Kernel::by_name`], which prove the CPU feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    Reference,
}

impl Kernel {
    /// The scalar kernel, which every machine has.
    pub const REFERENCE: Self = Self(Isa::Reference);

    /// All kernels that this CPU can execute, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Some(Self::REFERENCE)].into_iter().flatten()
    }

    /// The fastest kernel of this CPU.
    #[must_use]
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::REFERENCE)
    }

    /// The kernel of this name, if this CPU can execute it.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::available().find(|k| k.name() == name)
    }

    /// Its name: `reference`, `avx2`, ...
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Reference => "reference",
        }
    }

    /// Words that [`Kernel::pack`] needs for a block of `n` x `k` weights; 0 if this kernel reads weights in place.
    #[must_use]
    pub const fn packed_words(self, n: usize, k: usize) -> usize {
        match self.0 {
            Isa::Reference => {
                let _ = (n, k);
                0
            }
        }
    }

    /// Packs a block of columns into `out`, of [`Kernel::packed_words`] words.
    pub fn pack(self, w: &Columns<'_>, out: &mut [i32]) {
        match self.0 {
            Isa::Reference => {
                let _ = (w, out);
            }
        }
    }

    /// `out = view8(x, m)` element by element.
    pub fn view8(self, x: &[i16], m: i16, out: &mut [i8]) {
        match self.0 {
            Isa::Reference => reference::view8_slice(x, m, out),
        }
    }

    /// `out[r][n] = sum_k a[r][k] * w[n][k]`; `a` `[R, K]`, `out` `[R, N]`.
    pub fn accumulate(self, a: &[i8], w: &Columns<'_>, out: &mut [i32]) {
        match self.0 {
            Isa::Reference => reference::accumulate(a, w, out),
        }
    }

    /// `out[r][n] = requant(W a + bases + bias)`; `a` `[R, K]`, `out` `[R, N]`.
    pub fn project(self, a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) {
        match self.0 {
            Isa::Reference => reference::project(a, w, q, bases, out),
        }
    }

    /// Hidden values of the gated MLP: `gate_up` `[R, 2I]`, `out` `[R, I]`.
    pub fn glu(self, gate_up: &[i16], inner: usize, out: &mut [i8]) {
        match self.0 {
            Isa::Reference => reference::glu_rows(gate_up, inner, out),
        }
    }

    /// `x <- norm(sat16(x + d))` for each row of `width` elements.
    pub fn add_norm(self, x: &mut [i16], d: &[i16], width: usize) {
        match self.0 {
            Isa::Reference => reference::add_norm(x, d, width),
        }
    }

    /// Adds each of the rows of `a` (`[R, C]`) to the sum (`[group rows, C]`) of the group that `group_of(row)` names. Sums of at most
    /// 256 rows fit.
    pub fn group_sums(self, a: &[i8], channels: usize, group_of: impl Fn(usize) -> usize, sums: &mut [i16]) {
        for (r, row) in a.chunks_exact(channels).enumerate() {
            let at = group_of(r) * channels;
            for (s, &x) in sums[at..at + channels].iter_mut().zip(row) {
                *s = s.wrapping_add(i16::from(x));
            }
        }
    }
}
