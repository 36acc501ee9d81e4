//! Which guess comes next: what differs from the one before, how deep it goes, when it is given up.
//!
//! The default was found on training puzzles, most of them held out (`docs/reproduction.md` has the table): fresh starts of one network mostly solve the
//! same puzzles again, so width in starts alone is spent in vain. What the network answers is worth more: most cells of a wrong answer
//! are right. [`Perturb::Assume`](crate::solve::Perturb::Assume) therefore takes a few cells of the last answer that break no rule for granted
//! in the next guess, and draws them anew for every guess; a wrong assumption costs one short guess, because the verifier judges by the
//! puzzle alone. It is the decimation of message-passing solvers (Mézard, Parisi and Zecchina, Science 297, 2002), with a network in place
//! of the messages. Unlike there, the cells are those of which the network is *least* sure, where its last two answers differ: it finds the others
//! by itself, so that assuming them tells it nothing.

use crate::rng::Stream;
use crate::task::Sudoku;
use crate::task::sudoku::BLANK;

/// Most cells that a guess assumes.
pub const MOST_ASSUMED: u32 = 3;

/// Guesses of a puzzle whose task has a verifier, where nothing else is asked for: most puzzles need one or two of them.
pub const DEFAULT_GUESSES: u16 = 64;

/// How many segments the guesses get; the first gets `Policy::segments`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum Depth {
    /// Guesses under assumptions get half as many as the first, which has to do without; others as many.
    Auto,
    /// All as many as the first.
    Same,
    /// The others get this many.
    Later(u16),
    /// The sequence 1, 1, 2, 1, 1, 2, 4, .. of Luby, Sinclair and Zuckerman (1993), times `Policy::segments`: within a logarithmic factor of
    /// the best fixed limit, whatever the distribution of run lengths.
    Luby,
    /// Twice as many after every so many guesses.
    Doubling(u16),
}

impl Depth {
    /// Segments of guess `guess` if the first gets `first`; at least 1. `assume`: whether guesses work under assumptions.
    #[must_use]
    pub const fn limit(self, first: u16, guess: u16, assume: bool) -> u16 {
        let segments = match self {
            _ if guess == 0 => first,
            Self::Same => first,
            Self::Auto if assume => first / 2,
            Self::Auto => first,
            Self::Later(n) => n,
            Self::Luby => first.saturating_mul(luby(guess)),
            Self::Doubling(every) => {
                let doublings = match guess.checked_div(every) {
                    Some(n) => n,
                    None => 0,
                };
                if doublings < 16 { first.saturating_mul(1 << doublings) } else { u16::MAX }
            }
        };
        if segments == 0 { 1 } else { segments }
    }

    /// Most guesses whose segments fit into `budget` even if none stops early, at least 1: a budget of multiplications divided by
    /// [`ModelView::segment_macs`](crate::ModelView::segment_macs) bounds time and energy.
    #[must_use]
    pub const fn guesses_within(self, budget: u32, first: u16, assume: bool) -> u16 {
        let (mut guess, mut spent) = (0u16, 0u32);
        while guess < u16::MAX {
            spent = spent.saturating_add(self.limit(first, guess, assume) as u32);
            if spent > budget {
                break;
            }
            guess += 1;
        }
        if guess == 0 { 1 } else { guess }
    }
}

/// Element `i` (from 0) of Luby's sequence.
const fn luby(i: u16) -> u16 {
    let mut i = i as u32 + 1;
    loop {
        // The last element of each block of 2^k - 1 is 2^(k - 1); the rest repeats the sequence.
        let k = 32 - i.leading_zeros();
        if i + 1 == 1 << k {
            return 1 << (k - 1);
        }
        i -= (1 << (k - 1)) - 1;
    }
}

/// Cells in which two answers differ, a bit for each.
pub(crate) fn differing(a: &[u8], b: &[u8]) -> u128 {
    a.iter().zip(b).enumerate().filter(|(_, (a, b))| a != b).fold(0, |cells, (cell, _)| cells | 1 << cell)
}

/// Turns the answer of the guess before into the puzzle of the next: the givens of `puzzle`, and 1 to [`MOST_ASSUMED`] other cells of
/// `answer` whose digit stands nowhere else in their row, column and box: of `cells` if there are such, else of all. Both `[S]`. Returns whether
/// there was such a cell.
pub(crate) fn assume(task: Sudoku, puzzle: &[u8], answer: &mut [u8], cells: u128, mut random: Stream) -> bool {
    for (a, &p) in answer.iter_mut().zip(puzzle) {
        if p != BLANK {
            *a = p;
        }
    }
    let mut open: u128 = 0;
    for (cell, &p) in puzzle.iter().enumerate() {
        if p == BLANK && task.is_free_of_conflict(answer, cell) {
            open |= 1 << cell;
        }
    }
    if open & cells != 0 {
        open &= cells;
    }
    let mut below = |n: u32| ((u64::from(random.next_u32()) * u64::from(n)) >> 32) as u32;
    let mut assumed: u128 = 0;
    for _ in 0..1 + below(MOST_ASSUMED) {
        if open == 0 {
            break;
        }
        let mut rest = open;
        for _ in 0..below(open.count_ones()) {
            rest &= rest - 1;
        }
        let cell = rest & rest.wrapping_neg();
        open &= !cell;
        assumed |= cell;
    }
    for (cell, (a, &p)) in answer.iter_mut().zip(puzzle).enumerate() {
        if assumed >> cell & 1 == 0 {
            *a = p;
        }
    }
    assumed != 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::rng::Purpose;
    use std::vec::Vec;

    #[test]
    fn limits() {
        let luby: Vec<u16> = (0..15).map(|g| Depth::Luby.limit(4, g, false) / 4).collect();
        assert_eq!(luby, [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]);
        assert_eq!(Depth::Luby.limit(16, u16::MAX - 1, false), u16::MAX);
        let doubling: Vec<u16> = (0..5).map(|g| Depth::Doubling(2).limit(8, g, false)).collect();
        assert_eq!(doubling, [8, 8, 16, 16, 32]);
        assert_eq!((Depth::Doubling(0).limit(8, 9, false), Depth::Doubling(1).limit(8, 99, false)), (8, u16::MAX));
        assert_eq!([0, 1].map(|g| Depth::Later(5).limit(16, g, true)), [16, 5]);
        assert_eq!([(0, true), (1, true), (1, false)].map(|(g, assume)| Depth::Auto.limit(16, g, assume)), [16, 8, 16]);
        assert_eq!((Depth::Same.limit(0, 3, false), Depth::Auto.limit(1, 3, true)), (1, 1));
    }

    #[test]
    fn budgets_bound_the_segments() {
        assert_eq!(Depth::Same.guesses_within(100, 16, false), 6);
        assert_eq!(Depth::Same.guesses_within(3, 16, false), 1);
        for depth in [Depth::Auto, Depth::Later(3), Depth::Luby, Depth::Doubling(3)] {
            for budget in [16, 24, 143, 144, 500, 5000] {
                let n = depth.guesses_within(budget, 16, true);
                let spent = |n: u16| (0..n).map(|g| u32::from(depth.limit(16, g, true))).sum::<u32>();
                assert!(spent(n) <= budget && spent(n + 1) > budget, "{budget}: {n}");
            }
        }
    }

    #[test]
    fn assumptions_are_cells_of_the_answer_that_break_no_rule() {
        let task = Sudoku::new(4).unwrap();
        let parse = |text: &str| {
            let mut t = [0; 16];
            task.parse(text, &mut t).unwrap();
            t
        };
        // The answer changes a given (4 for 1), and the 3 of its second cell stands twice in the column.
        let puzzle = parse("1...............");
        let wrong = parse("4324341221434321");
        let mut seen = 0u32;
        for index in 0..200 {
            let mut view = wrong;
            assert!(assume(task, &puzzle, &mut view, 0, Stream::new(7, Purpose::Assumption, index)));
            assert_eq!(view[0], puzzle[0]);
            let cells: Vec<usize> = (1..16).filter(|&c| view[c] != BLANK).collect();
            assert!((1..=MOST_ASSUMED as usize).contains(&cells.len()), "{cells:?}");
            for &c in &cells {
                assert_eq!(view[c], wrong[c]);
                seen |= 1 << c;
            }
        }
        let restored = parse("1324341221434321");
        let free = (1..16).filter(|&c| task.is_free_of_conflict(&restored, c)).fold(0, |m, c| m | 1 << c);
        assert_eq!(seen, free);
        assert!(seen.count_ones() < 15 && seen >> 1 & 1 == 0);
        // Of the cells in which the answer before differs, if there are such.
        let mut before = restored;
        (before[5], before[1], before[10]) = (BLANK, BLANK, BLANK);
        let cells = differing(&restored, &before);
        assert_eq!(cells, 1 << 1 | 1 << 5 | 1 << 10);
        for index in 0..50 {
            let mut view = wrong;
            assert!(assume(task, &puzzle, &mut view, cells, Stream::new(7, Purpose::Assumption, index)));
            assert_eq!(differing(&view, &puzzle) & !(1 << 5 | 1 << 10), 0, "cell 1 breaks a rule");
        }
        // Nothing to assume: the puzzle as it is.
        let mut view = [2; 16];
        let open = [BLANK; 16];
        assert!(!assume(task, &open, &mut view, !0, Stream::new(7, Purpose::Assumption, 0)));
        assert_eq!(view, open);
    }
}
