//! How much memory a network needs, and how the caller's arena is divided.

use core::fmt;

use crate::config::{Config, Mixer};

/// How group sums are worked out. Both give the same bits; they trade memory for multiplications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Schedule {
    /// The product of a group's sum is computed once and kept as accumulators: fewest multiplications, for hosts.
    Cached,
    /// Each row multiplies its own sums again: least memory, for microcontrollers.
    Lean,
}

/// What the arena must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Plan {
    /// How group sums are worked out.
    pub schedule: Schedule,
    /// Keep z_H of the segment before, so that the residual can be reported.
    pub residual: bool,
}

impl Plan {
    /// Fast, with residuals.
    pub const HOST: Self = Self { schedule: Schedule::Cached, residual: true };
    /// Small, without residuals.
    pub const DEVICE: Self = Self { schedule: Schedule::Lean, residual: false };
}

/// The arena is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MemoryError {
    /// Which memory: `arena` or `packed weights`.
    pub what: &'static str,
    /// Bytes needed.
    pub needed: usize,
    /// Bytes given.
    pub found: usize,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has {} bytes, {} are needed", self.what, self.found, self.needed)
    }
}

impl core::error::Error for MemoryError {}

/// Element counts of the regions of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    pub state: usize,
    pub previous: usize,
    pub view: usize,
    pub transposed: usize,
    pub sums: usize,
    pub sum_views: usize,
    pub bases: usize,
    pub index: usize,
    pub tile_input: usize,
    pub tile_wide: usize,
    pub tile_hidden: usize,
    pub tile_delta: usize,
    pub keys: usize,
    pub scores: usize,
    pub tile: usize,
    pub tokens: usize,
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

impl Regions {
    pub(crate) const fn new(c: &Config, group_rows: usize, plan: Plan) -> Self {
        let (ch, rows, state) = (c.channels as usize, c.rows(), c.state_len());
        let lean = matches!(plan.schedule, Schedule::Lean);
        let token = matches!(c.mixer, Mixer::TokenMlp);
        let sums = matches!(c.mixer, Mixer::GroupSum);
        let tile = min(if lean { 4 } else { 72 }, if token { max(rows, ch) } else { rows });
        let attention = c.has_attention();
        let wide = max(2 * max(c.inner as usize, c.token_inner as usize), if attention { 3 * ch } else { 0 });
        Self {
            state,
            previous: if plan.residual { state } else { 0 },
            view: if attention { 3 * state } else { state },
            transposed: if token { state } else { 0 },
            sums: if sums { group_rows * ch } else { 0 },
            sum_views: if sums { group_rows * ch } else { 0 },
            bases: if sums && !lean { group_rows * 2 * c.inner as usize } else { 0 },
            index: if sums { rows * c.groupings as usize } else { 0 },
            tile_input: if (sums && lean) || attention { tile * c.mix_width() } else { 0 },
            tile_wide: tile * wide,
            tile_hidden: tile * max(c.inner as usize, c.token_inner as usize),
            tile_delta: tile * max(ch, if token { rows } else { 0 }),
            keys: if attention { rows } else { 0 },
            scores: if attention { rows } else { 0 },
            tile,
            tokens: c.tokens as usize,
        }
    }

    pub(crate) const fn words(&self) -> usize {
        const fn w(count: usize, size: usize) -> usize {
            (count * size).div_ceil(8)
        }
        2 * w(self.state, 2)
            + w(self.previous, 2)
            + w(self.view, 1)
            + w(self.transposed, 2)
            + w(self.sums, 2)
            + w(self.sum_views, 1)
            + w(self.bases, 4)
            + w(self.index, 2)
            + w(self.tile_input, 1)
            + w(self.tile_wide, 2)
            + w(self.tile_hidden, 1)
            + w(self.tile_delta, 2)
            + w(self.keys, 2)
            + w(self.scores, 4)
            + 2 * w(self.tokens, 1)
    }
}

/// Bytes of the arena for `config` with `group_rows` stacked group rows ([`crate::ModelView::group_rows`]; 0 without groups).
#[must_use]
pub const fn required_bytes(config: &Config, group_rows: usize, plan: Plan) -> usize {
    8 * Regions::new(config, group_rows, plan).words()
}

/// Takes typed slices off the front of an arena.
pub(crate) struct Carver<'a>(pub &'a mut [u64]);

impl<'a> Carver<'a> {
    /// `count` elements, zeroed. The arena has been checked to be large enough; else the slice is empty.
    pub(crate) fn take<T: bytemuck::Pod>(&mut self, count: usize) -> &'a mut [T] {
        let words = (count * size_of::<T>()).div_ceil(8);
        let arena = core::mem::take(&mut self.0);
        let (front, rest) = arena.split_at_mut(words.min(arena.len()));
        self.0 = rest;
        front.fill(0);
        let slice: &mut [T] = bytemuck::cast_slice_mut(front);
        let len = slice.len();
        &mut slice[..count.min(len)]
    }
}
