//! The groupings of a model, and which of them need not be added at every row.
//!
//! A row's accumulators begin with the products of its groups' sums, one a grouping. Where every group of one grouping lies within one of
//! another (the cells that a box shares with a row lie in one row), the product of the coarser can be added once for each group of the
//! finer instead of once for each row: it is *folded* into the finer. Sums of products are exact, so their order is free. Kernels add four
//! bases fastest, so no more is folded than it takes to leave so many.

use core::ops::Range;

use crate::format::ModelView;
use crate::kernels::Kernel;
use crate::parts::{Broken, OrBroken, Parts, holds};

/// Most groupings of a model.
const MOST: usize = 8;
/// Groupings that are left where more are folded: as many as the kernels' own loops add.
const WANTED: usize = 4;
/// Tokens up to which groupings are compared.
const MOST_TOKENS: usize = 1024;

/// The groupings of a model. Grouping `g` owns the stacked group rows `starts[g]..starts[g + 1]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups<'m> {
    pub count: usize,
    pub starts: [usize; MOST + 1],
    /// Group id of each token.
    pub ids: [&'m [u16]; MOST],
    /// Whether the fields of a token are one row.
    pub merged: [bool; MOST],
    pub fields: usize,
    /// Group rows of all groupings.
    pub rows: usize,
    /// How many are not folded: their products are added at every row.
    pub kept: usize,
    /// Which these are, in front.
    kept_ids: [u8; MOST],
    /// The later grouping that each is folded into; its own number where it is not.
    into: [u8; MOST],
}

impl<'m> Groups<'m> {
    pub(crate) fn new(view: &ModelView<'m>) -> Self {
        let c = view.config();
        let (count, fields) = (usize::from(c.groupings), usize::from(c.fields));
        let all = core::array::from_fn(|g| g as u8);
        let (starts, ids, merged) = ([0; MOST + 1], [&[][..]; MOST], [false; MOST]);
        let mut groups = Self { count, starts, ids, merged, fields, rows: 0, kept: count, kept_ids: all, into: all };
        let places = groups.starts.iter_mut().skip(1).zip(&mut groups.ids).zip(&mut groups.merged);
        for (g, ((end, ids), merged)) in places.enumerate().take(count) {
            groups.rows += view.groups_in(g);
            *end = groups.rows;
            *ids = view.groups(g);
            *merged = view.merges_fields(g);
        }
        groups.fold();
        groups
    }

    /// Folds groupings into later ones of which fewest are folded already, until [`WANTED`] are left or none lies in another.
    fn fold(&mut self) {
        for coarse in 0..self.count {
            if self.kept <= WANTED || self.folded(coarse) > 0 {
                continue;
            }
            let finer = (coarse + 1..self.count).filter(|&g| self.is_kept(g) && self.lies_in(g, coarse)).min_by_key(|&g| self.folded(g));
            if let (Some(finer), Some(into)) = (finer, self.into.get_mut(coarse)) {
                *into = finer as u8;
                self.kept -= 1;
            }
        }
        let kept = self.into;
        let kept = kept.iter().enumerate().filter(|&(g, &into)| g == usize::from(into));
        self.kept_ids.iter_mut().zip(kept).for_each(|(to, (_, &g))| *to = g);
    }

    /// Whether every group row of `fine` lies in one of `coarse`, of the same fields.
    fn lies_in(&self, fine: usize, coarse: usize) -> bool {
        let (Ok(fine_ids), Ok(coarse_ids)) = (self.ids(fine), self.ids(coarse)) else { return false };
        let within = |t: usize| {
            let first = fine_ids.iter().position(|id| fine_ids.get(t) == Some(id));
            first.and_then(|first| coarse_ids.get(first)) == coarse_ids.get(t)
        };
        self.merges(fine) == self.merges(coarse) && fine_ids.len() <= MOST_TOKENS && (0..fine_ids.len()).all(within)
    }

    /// Whether the products of grouping `g` are added at every row.
    pub(crate) fn is_kept(&self, g: usize) -> bool {
        self.into.get(g).is_some_and(|&into| usize::from(into) == g)
    }

    /// Those whose products are.
    pub(crate) fn kept(&self) -> impl Iterator<Item = usize> {
        self.kept_ids.iter().take(self.kept).map(|&g| usize::from(g))
    }

    /// The groupings that are folded into `g`.
    pub(crate) fn folded_into(&self, g: usize) -> impl Iterator<Item = usize> {
        self.into.into_iter().take(self.count.min(g)).enumerate().filter(move |&(_, into)| usize::from(into) == g).map(|(c, _)| c)
    }

    /// How many are.
    pub(crate) fn folded(&self, g: usize) -> usize {
        self.folded_into(g).count()
    }

    /// Fills the index of all rows: [`Groups::kept_rows`], then [`Groups::rows_around`] of one grouping after the other.
    pub(crate) fn fill_index(&self, rows: usize, index: &mut [u16]) -> Result<(), Broken> {
        let (own, mut rest) = index.split_at_mut_checked(rows * self.kept).or_broken()?;
        self.kept_rows(0, own)?;
        for g in 0..self.count {
            let around;
            (around, rest) = rest.split_at_mut_checked(self.range(g)?.len() * self.folded(g)).or_broken()?;
            self.rows_around(g, 0, around)?;
        }
        Ok(())
    }

    /// The parts of that index: of the rows, and of the group rows of each grouping.
    pub(crate) fn split_index<'i>(&self, rows: usize, index: &'i [u16]) -> Result<(&'i [u16], [&'i [u16]; MOST]), Broken> {
        let (own, mut rest) = index.split_at_checked(rows * self.kept).or_broken()?;
        let mut folded: [&[u16]; MOST] = [&[]; MOST];
        for (g, around) in folded.iter_mut().enumerate().take(self.count) {
            (*around, rest) = rest.split_at_checked(self.range(g)?.len() * self.folded(g)).or_broken()?;
        }
        Ok((own, folded))
    }

    /// Stacked group rows in the groupings that are kept, `[rows, kept]`, for as many rows as `out` has from `first` on.
    pub(crate) fn kept_rows(&self, first: usize, out: &mut [u16]) -> Result<(), Broken> {
        let (mut token, mut field) = (first.checked_div(self.fields).or_broken()?, first % self.fields);
        let mut rows = [(0u16, 0u16); MOST];
        let mut entries = out.rows_mut(self.kept)?;
        while entries.len() > 0 {
            for ((row, step), g) in rows.iter_mut().zip(self.kept()) {
                (*row, *step) = (self.row(g, token, field)? as u16, u16::from(!self.merges(g)?));
            }
            for entry in entries.by_ref().take(self.fields - field) {
                for (e, (row, step)) in entry.iter_mut().zip(&mut rows) {
                    *e = *row;
                    *row += *step;
                }
            }
            (token, field) = (token + 1, 0);
        }
        Ok(())
    }

    /// For each group row of grouping `g`, from group `first` on, the group rows of the groupings folded into it that it lies in:
    /// `[group rows, folded]`, as many as `out` has.
    pub(crate) fn rows_around(&self, g: usize, first: usize, out: &mut [u16]) -> Result<(), Broken> {
        let (each, folded) = (self.rows_of(g, self.fields)?, self.folded(g).max(1));
        holds(each * folded > 0)?;
        for (i, entries) in out.chunks_mut(each * folded).enumerate() {
            // A group without tokens has a product that nothing reads.
            let token = self.first_token(g, first + i)?.unwrap_or(0);
            for (k, coarse) in self.folded_into(g).enumerate() {
                let row = self.row(coarse, token, 0)?;
                entries.iter_mut().skip(k).step_by(folded).enumerate().for_each(|(field, e)| *e = (row + field) as u16);
            }
        }
        Ok(())
    }

    /// Completes `sums` (`[group rows, width]`), which has those of the groupings that are kept: sums of groups are sums of those that lie in them.
    pub(crate) fn add_folded(&self, sums: &mut [i16], width: usize, kernel: Kernel) -> Result<(), Broken> {
        for coarse in (0..self.count).filter(|&g| !self.is_kept(g)) {
            let fine = usize::from(*self.into.part(coarse)?);
            let (start, each) = (*self.starts.part(fine)?, self.rows_of(fine, self.fields)?);
            let (before, fine_sums) = sums.split_at_mut_checked(start * width).or_broken()?;
            let fine_sums = fine_sums.part(..self.range(fine)?.len() * width)?;
            for (id, fine_sums) in fine_sums.rows(each * width)?.enumerate() {
                let Some(token) = self.first_token(fine, id)? else { continue };
                let to = self.row(coarse, token, 0)? * width;
                kernel.add(before.part_mut(to..to + each * width)?, fine_sums);
            }
        }
        Ok(())
    }

    /// Stacked group row of (`token`, `field`) in grouping `g`.
    #[inline]
    pub(crate) fn row(&self, g: usize, token: usize, field: usize) -> Result<usize, Broken> {
        let id = usize::from(*self.ids(g)?.part(token)?);
        Ok(*self.starts.part(g)? + if self.merges(g)? { id } else { id * self.fields + field })
    }

    /// The first token of group `id` of grouping `g`.
    fn first_token(&self, g: usize, id: usize) -> Result<Option<usize>, Broken> {
        Ok(self.ids(g)?.iter().position(|&i| usize::from(i) == id))
    }

    /// Group id of each token in grouping `g`.
    #[inline]
    pub(crate) fn ids(&self, g: usize) -> Result<&'m [u16], Broken> {
        self.ids.part(g).copied()
    }

    /// Whether grouping `g` takes the fields of a token as one row.
    #[inline]
    pub(crate) fn merges(&self, g: usize) -> Result<bool, Broken> {
        self.merged.part(g).copied()
    }

    /// Group rows of one group of grouping `g` while `fields` fields are looked at.
    pub(crate) fn rows_of(&self, g: usize, fields: usize) -> Result<usize, Broken> {
        Ok(if self.merges(g)? { 1 } else { fields })
    }

    /// The stacked group rows of grouping `g`.
    pub(crate) fn range(&self, g: usize) -> Result<Range<usize>, Broken> {
        Ok(*self.starts.part(g)?..*self.starts.part(g + 1)?)
    }

    /// Tokens of the puzzle.
    pub(crate) const fn tokens(&self) -> usize {
        self.ids[0].len()
    }
}
