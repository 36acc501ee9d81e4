//! How many multiplications a segment takes: the int8 multiply-accumulates (MACs) of all matrix products.
//!
//! Element-wise work (views, requantisation, norms, SiLU, softmax, RoPE) is not counted: it is proportional to rows, not to weights.

use crate::config::{Config, Mixer};
use crate::format::ModelView;
use crate::memory::Schedule;

/// What the counts need to know about the groups of a model beside its [`Config`]; [`GroupFacts::of`] reads it from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GroupFacts {
    /// Stacked group rows of all groupings ([`ModelView::group_rows`]).
    pub rows: usize,
    /// Sum over heads and rows of the keys that a row attends to; only looked at for [`Mixer::GroupAttention`].
    pub pairs: u64,
}

impl GroupFacts {
    /// The facts of a model file.
    #[must_use]
    pub fn of(view: &ModelView<'_>) -> Self {
        let c = view.config();
        let mut pairs = 0;
        if matches!(c.mixer, Mixer::GroupAttention) {
            for head in 0..usize::from(c.heads) {
                let ids = view.groups(head % usize::from(c.groupings.max(1)));
                pairs += ids.iter().map(|id| ids.iter().filter(|other| *other == id).count() as u64).sum::<u64>();
            }
        }
        Self { rows: view.group_rows(), pairs }
    }
}

/// MACs of one call of one block.
///
/// With `R` rows: the gated MLP takes `R * 2I * width + R * I * C`, where `width` is `C`, or `(1 + G) C` with group sums; in the cached
/// schedule the products of the sums are taken once a group row: `(R + group rows) * 2I * C + R * I * C`; the lean schedule is counted as
/// if it cached none, see [`crate::Run::segment_macs`]. Attention adds `4 R C^2` for q,
/// k, v and the output and `2 * pairs * C / heads` for scores and weighted values (`pairs = heads * R^2` when all attend to all).
/// The token MLP adds `3 C * R * token_inner`.
#[must_use]
pub const fn block_macs(c: &Config, groups: GroupFacts, schedule: Schedule) -> u64 {
    let (rows, ch, inner) = (c.rows() as u64, c.channels as u64, c.inner as u64);
    let up_rows = match (c.mixer, schedule) {
        (Mixer::GroupSum, Schedule::Cached) => rows + groups.rows as u64,
        (Mixer::GroupSum, Schedule::Lean) => rows * (1 + c.groupings as u64),
        _ => rows,
    };
    let mixing = match c.mixer {
        Mixer::Attention => 4 * rows * ch * ch + 2 * rows * rows * ch,
        Mixer::GroupAttention => {
            let width = match ch.checked_div(c.heads as u64) {
                Some(width) => width,
                None => 0,
            };
            4 * rows * ch * ch + 2 * groups.pairs * width
        }
        Mixer::TokenMlp => 3 * ch * rows * c.token_inner as u64,
        Mixer::GroupSum => 0,
    };
    mixing + up_rows * 2 * inner * ch + rows * inner * ch
}

/// MACs of one segment: `H_cycles * L_cycles` calls of the L module, `H_cycles` of the H module, and the two heads.
///
/// The answer head reads every row but the prefix; the Q head multiplies the sum of its rows, `C` for each of `q_outputs` outputs.
///
/// ```
/// use hrm_core::cost::{GroupFacts, segment_macs};
/// use hrm_core::{Config, Mixer, Schedule, Start};
/// let trm = Config {
///     shared: true, mixer: Mixer::TokenMlp, start: Start::Fixed, rope: false, tokens: 81, prefix: 16, vocab: 11, fields: 1,
///     channels: 512, inner: 1536, token_inner: 256, heads: 0, groupings: 0, h_layers: 2, l_layers: 2, h_cycles: 3, l_cycles: 6,
/// };
/// const NONE: GroupFacts = GroupFacts { rows: 0, pairs: 0 };
/// assert_eq!(segment_macs(&trm, 2, NONE, Schedule::Lean), 21 * 2 * (97 * 3 * 1536 * 512 + 3 * 512 * 97 * 256) + 81 * 11 * 512 + 2 * 512);
/// ```
#[must_use]
pub const fn segment_macs(c: &Config, q_outputs: usize, groups: GroupFacts, schedule: Schedule) -> u64 {
    let head_rows = c.tokens as u64 * c.fields as u64;
    let heads = head_rows * c.head_width() as u64 * c.channels as u64 + q_outputs as u64 * c.channels as u64;
    c.block_calls() * block_macs(c, groups, schedule) + heads
}

impl ModelView<'_> {
    /// MACs of one segment of this model; see [`segment_macs`].
    #[must_use]
    pub fn segment_macs(&self, schedule: Schedule) -> u64 {
        segment_macs(self.config(), self.header().q_outputs(), GroupFacts::of(self), schedule)
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::testing::{configs, random_model, sudoku_config};

    /// Counted by hand for C = 48, I = 96, R = 729, groupings of 9 * 9 rows, columns, boxes and 81 cells, 2 layers, 2 x 2 cycles.
    #[test]
    fn structured_sudoku_by_hand() {
        let file = random_model(&sudoku_config(), 1).unwrap();
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        assert_eq!(view.group_rows(), 4 * 81);
        // Up: 729 own rows and 324 group rows, each 192 x 48; down: 729 rows, 48 x 96. Six module calls of two blocks.
        let block = (729 + 324) * 9216 + 729 * 4608;
        assert_eq!(block, 13_063_680);
        // Head: 729 rows of 48. Q: one output of 48.
        assert_eq!(view.segment_macs(Schedule::Cached), 12 * block + 729 * 48 + 48);
        assert_eq!(view.segment_macs(Schedule::Cached), 156_799_200);
        let lean = 729 * 5 * 9216 + 729 * 4608;
        assert_eq!(view.segment_macs(Schedule::Lean), 12 * lean + 729 * 48 + 48);
    }

    /// As above: 16 tokens, C = 20, I = 26, 5 heads of width 4 in groups of 4 (rows, columns, boxes), one shared layer, 2 x 2 cycles.
    #[test]
    fn group_attention_by_hand() {
        let config = configs().into_iter().find(|(name, _)| *name == "group-attention").unwrap().1;
        let file = random_model(&config, 1).unwrap();
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        assert_eq!(GroupFacts::of(&view).pairs, 5 * 16 * 4);
        let block = 16 * 60 * 20 + 16 * 20 * 20 + 2 * (5 * 16 * 4) * 4 + 16 * 52 * 20 + 16 * 26 * 20;
        assert_eq!(view.segment_macs(Schedule::Cached), 6 * block + 16 * 6 * 20 + 20);
        assert_eq!(view.segment_macs(Schedule::Cached), view.segment_macs(Schedule::Lean));
    }

    /// Two modules: the layers of H and of L count for themselves.
    #[test]
    fn attention_with_two_modules_by_hand() {
        let config = configs().into_iter().find(|(name, _)| *name == "attention").unwrap().1;
        let file = random_model(&config, 1).unwrap();
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        // 16 rows, C = 32, I = 26: projections, scores and values, gated MLP.
        let block = 16 * 32 * (96 + 32) + 2 * 16 * 16 * 32 + 16 * 32 * (52 + 26);
        // H: 2 calls of 1 layer; L: 4 calls of 2 layers. Head: 15 rows, 6 tokens. Two Q outputs.
        assert_eq!(view.segment_macs(Schedule::Cached), (2 + 8) * block + 15 * 6 * 32 + 2 * 32);
    }
}
