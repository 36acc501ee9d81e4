//! How much memory a network needs, and how the caller's arena is divided.

use core::fmt;

use crate::config::{Config, Mixer};

/// How group sums are worked out. Both give the same bits; they trade memory for multiplications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Schedule {
    /// The product of a group's sum is computed once and kept as accumulators: fewest multiplications, for hosts.
    Cached,
    /// Rows are worked on tile by tile, and products of group sums are kept only while memory lasts ([`Plan::products`]), else computed
    /// again: for microcontrollers.
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
    /// Bytes for cached products of group sums in the lean schedule. The memory of the sums themselves serves too, and the least
    /// that the schedule can work with is always there, so 0 is allowed; `4 * group rows * 2I` bytes cache everything, and with
    /// `rows * (C + 2 * groupings)` more the views of the rows and the index of their groups are kept, too.
    pub products: usize,
    /// Rows that are worked on together, at least 1.
    pub tile: usize,
}

impl Plan {
    /// Fast, with residuals.
    pub const HOST: Self = Self { schedule: Schedule::Cached, residual: true, products: 0, tile: 72 };
    /// Small, without residuals.
    pub const DEVICE: Self = Self { schedule: Schedule::Lean, residual: false, products: 0, tile: 8 };
    /// The device schedule where memory is plentiful: every product is taken once.
    pub const ROOMY: Self = Self { products: usize::MAX, tile: 72, ..Self::DEVICE };
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
    pub members: usize,
    pub ends: usize,
    /// Words.
    pub mixing: usize,
    pub colours: usize,
    pub tags: usize,
    pub tile_input: usize,
    pub tile_wide: usize,
    pub tile_hidden: usize,
    pub tile_delta: usize,
    pub keys: usize,
    pub scores: usize,
    pub tile: usize,
    pub tokens: usize,
    pub schedule: Schedule,
}

/// Bytes of a cache line of a host.
pub const LINE: usize = 64;

/// Words of a region of `count` elements: in the cached schedule whole lines, so that every region begins with one if the arena does.
const fn region_words(count: usize, size: usize, schedule: Schedule) -> usize {
    match schedule {
        Schedule::Cached => (count * size).div_ceil(LINE) * (LINE / 8),
        Schedule::Lean => (count * size).div_ceil(8),
    }
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// Kernels of hosts round rows up to a multiple of this ([`crate::kernels::MlpScratch`]).
const TILE: usize = 12;

impl Regions {
    pub(crate) const fn new(c: &Config, group_rows: usize, plan: Plan) -> Self {
        let (ch, rows, state) = (c.channels as usize, c.rows(), c.state_len());
        let lean = matches!(plan.schedule, Schedule::Lean);
        let token = matches!(c.mixer, Mixer::TokenMlp);
        let sums = matches!(c.mixer, Mixer::GroupSum);
        let tile = max(1, min(plan.tile, if token { max(rows, ch) } else { rows }));
        let attention = c.has_attention();
        let (inner, groupings) = (c.inner as usize, c.groupings as usize);
        let wide = max(2 * max(inner, c.token_inner as usize), if attention { 3 * ch } else { 0 });
        let longest = max(ch, if token { rows } else { 0 });
        let lean_sums = sums && lean;
        // One slot a grouping is the least that one row can be worked on with; one a group row is the most that is ever used.
        let slot = 2 * inner * 4;
        let products = max(min(plan.products, group_rows * slot), groupings * slot);
        let keeps = lean_sums && plan.products.saturating_sub(products) >= rows * (ch + 2 * groupings);
        Self {
            state,
            previous: if plan.residual { state } else { 0 },
            view: match (attention, lean) {
                (true, _) => 3 * state,
                (false, true) => keeps as usize * state,
                (false, false) => rows.next_multiple_of(TILE) * ch,
            },
            transposed: if token { state } else { 0 },
            sums: if sums && !lean { group_rows * ch } else { 0 },
            sum_views: if sums && !lean { group_rows * ch } else { 0 },
            bases: if sums && !lean { group_rows * 2 * inner } else { 0 },
            index: if lean_sums && !keeps { tile * groupings } else { rows * groupings * sums as usize },
            members: if lean { 0 } else { rows * groupings * sums as usize },
            ends: if sums && !lean { group_rows } else { 0 },
            mixing: if lean_sums {
                max((group_rows * ch * 2).div_ceil(8), (group_rows * ch).div_ceil(8) + products.div_ceil(8))
            } else {
                0
            },
            colours: if lean_sums { groupings * c.tokens as usize } else { 0 },
            tags: if lean_sums { groupings * c.tokens as usize } else { 0 },
            tile_input: if lean || attention { tile * longest } else { 0 },
            tile_wide: tile * wide,
            // Of all rows where sums tie them together ([`crate::kernels::Kernel::gated_mlp`]).
            tile_hidden: match (lean, sums) {
                (true, _) => tile * max(inner, c.token_inner as usize),
                (false, true) => rows.next_multiple_of(TILE) * inner,
                (false, false) => tile.next_multiple_of(TILE) * max(inner, c.token_inner as usize),
            },
            tile_delta: if lean { tile } else { max(tile, 8) } * longest,
            keys: if attention { rows } else { 0 },
            scores: if attention { rows } else { 0 },
            tile,
            tokens: c.tokens as usize,
            schedule: plan.schedule,
        }
    }

    pub(crate) const fn words(&self) -> usize {
        let s = self.schedule;
        2 * region_words(self.state, 2, s)
            + region_words(self.previous, 2, s)
            + region_words(self.view, 1, s)
            + region_words(self.transposed, 2, s)
            + region_words(self.sums, 2, s)
            + region_words(self.sum_views, 1, s)
            + region_words(self.bases, 4, s)
            + region_words(self.index, 2, s)
            + region_words(self.members, 2, s)
            + region_words(self.ends, 4, s)
            + region_words(self.mixing, 8, s)
            + region_words(self.colours, 2, s)
            + region_words(self.tags, 2, s)
            + region_words(self.tile_input, 1, s)
            + region_words(self.tile_wide, 2, s)
            + region_words(self.tile_hidden, 1, s)
            + region_words(self.tile_delta, 2, s)
            + region_words(self.keys, 2, s)
            + region_words(self.scores, 4, s)
            + 2 * region_words(self.tokens, 1, s)
    }
}

/// Bytes of the arena for `config` with `group_rows` stacked group rows ([`crate::ModelView::group_rows`]; 0 without groups).
#[must_use]
pub const fn required_bytes(config: &Config, group_rows: usize, plan: Plan) -> usize {
    8 * Regions::new(config, group_rows, plan).words()
}

/// Takes typed slices off the front of one or two arenas.
pub(crate) struct Carver<'a> {
    arenas: [&'a mut [u64]; 2],
    schedule: Schedule,
    /// Bytes that neither arena had in one piece.
    pub missing: usize,
}

impl<'a> Carver<'a> {
    pub(crate) const fn new(arenas: [&'a mut [u64]; 2], schedule: Schedule) -> Self {
        Self { arenas, schedule, missing: 0 }
    }

    /// `count` elements, zeroed, from the first arena that has them; where none has, an empty slice, and [`Carver::missing`] says so.
    pub(crate) fn take<T: bytemuck::Pod>(&mut self, count: usize) -> &'a mut [T] {
        let words = region_words(count, size_of::<T>(), self.schedule);
        let Some(arena) = self.arenas.iter_mut().find(|a| a.len() >= words) else {
            self.missing += 8 * words;
            return &mut [];
        };
        let (front, rest) = core::mem::take(arena).split_at_mut_checked(words).unwrap_or_default();
        *arena = rest;
        front.fill(0);
        bytemuck::cast_slice_mut(front).get_mut(..count).unwrap_or_default()
    }

    /// `count` elements in two pieces, the first of a multiple of `unit` elements; the second is empty where one arena has them all.
    pub(crate) fn take_split(&mut self, count: usize, unit: usize) -> [&'a mut [i16]; 2] {
        let words = region_words(count, size_of::<i16>(), self.schedule);
        let whole = self.arenas.iter().any(|a| a.len() >= words);
        let units = (self.arenas[0].len() * 4).checked_div(unit).filter(|_| !whole);
        let front = units.map_or(count, |units| units * unit);
        [self.take(front), self.take(count - front)]
    }
}
