//! What the operations read and work in: blocks of weights, their scales, sums that they start from, whole layers.

#[cfg(doc)]
use super::Kernel;
use crate::parts::{Broken, Parts};

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
        let stride = match weights.len().checked_div(n) {
            Some(stride) => stride,
            None => 0,
        };
        Self { n, k, weights, stride, first, packed }
    }

    /// Weights of output channel `n`.
    ///
    /// # Errors
    /// There is no such channel, or its row has fewer columns.
    #[inline]
    pub fn row(&self, n: usize) -> Result<&'a [i8], Broken> {
        let at = n * self.stride + self.first;
        self.weights.part(at..at + self.k)
    }

    /// The row-major weights from the first of this block on, and the distance of two rows.
    #[must_use]
    pub fn in_place(&self) -> (&'a [i8], usize) {
        (self.weights.get(self.first..).unwrap_or_default(), self.stride)
    }

    /// The same block with what [`Kernel::pack`] made of it.
    #[must_use]
    pub const fn with_packed(self, packed: &'a [i32]) -> Self {
        Self { packed, ..self }
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
    ///
    /// # Errors
    /// The index has fewer rows.
    #[inline]
    pub fn of(&self, r: usize) -> Result<&'a [u16], Broken> {
        self.index.part(r * self.groupings..(r + 1) * self.groupings)
    }
}

/// A whole gated MLP with its residual and norm ([`Kernel::gated_mlp`]).
#[derive(Clone, Copy, Debug)]
pub struct Mlp<'a> {
    /// Gate and up on the row itself, `[2I, C]`.
    pub own: Columns<'a>,
    /// Requantisation of gate and up.
    pub up_scale: Requant<'a>,
    /// Output, `[C, I]`.
    pub down: Columns<'a>,
    /// Requantisation of the output.
    pub down_scale: Requant<'a>,
    /// View multiplier of the input.
    pub m_in: i16,
    /// Unit of the gate, 0 to 4.
    pub gate_shift: u32,
    /// Unit of the output, 0 to 12.
    pub residual_shift: u32,
    /// Inputs from group sums, if there are any.
    pub groups: Option<GroupInputs<'a>>,
}

/// The group sums that a gated MLP reads. Group rows of all groupings are stacked.
#[derive(Clone, Copy, Debug)]
pub struct GroupInputs<'a> {
    /// Gate and up on the sums of each grouping, `[G]` of `[2I, C]`.
    pub columns: &'a [Columns<'a>],
    /// View multipliers of the sums, `[G]`.
    pub m: &'a [i16],
    /// First group row of each grouping, and the end of the last.
    pub starts: &'a [usize],
    /// Group rows of earlier groupings whose products are added to those of each group row, `[G]` of `[group rows, any number]`; empty for
    /// none. A row whose index names the group row gets them with it.
    pub folded: &'a [&'a [u16]],
    /// `[R, kept]`: the group rows whose products are added to each row.
    pub index: &'a [u16],
    /// How many these are.
    pub kept: usize,
    /// The same the other way round: rows of the first group row, of the second, and so on.
    pub members: &'a [u16],
    /// End of each group row in `members`.
    pub ends: &'a [u32],
}

/// Scratch of [`Kernel::gated_mlp`]; what it holds afterwards means nothing.
#[derive(Debug)]
pub struct MlpScratch<'a> {
    /// `R * C` bytes, `R` rounded up to a multiple of 12.
    pub view: &'a mut [i8],
    /// A byte for each channel of each group row.
    pub sum_views: &'a mut [i8],
    /// 32 words for each group row.
    pub table: &'a mut [i32],
    /// `R * I` bytes, `R` rounded up to a multiple of 12.
    pub hidden: &'a mut [i8],
    /// `8 * C` elements.
    pub delta: &'a mut [i16],
}
