//! The lean schedule: the gated MLP row tile by row tile, with the products of group sums cached as far as memory goes.
//!
//! Nothing is kept for all rows but the state itself. The group sums are taken first, from the state as it was; their int8 views
//! then replace them in place, and the half of their memory that becomes free holds products: accumulators of `2I` channels, one
//! *slot* a group row. Rows are visited token by token, for a few fields at a time, so that a group needs slots only from its first token to
//! its last: groups of one grouping that are never alive at once share a *colour*. With one field of four tokens at a time the rows,
//! columns, boxes and cells of a 9x9 Sudoku need 2 + 9 + 4 + 4 slots instead of 324; with more memory more fields go together, so that
//! the sums over merged fields are multiplied fewer times.

use core::num::{NonZeroU16, NonZeroUsize};
use core::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use crate::format::GatedMlp;
use crate::groups::Groups;
use crate::kernels::{Bases, Columns};
use crate::layers::{Packed, Scratch, requant};
use crate::parts::{Broken, OrBroken, Parts, holds};

/// How group products share slots. Colours of the tokens are in [`Scratch::colours`], `[G, S]`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Caching {
    /// Fields that are worked on together.
    pub fields: usize,
    /// Tokens that are: a tile begins at a multiple of so many.
    pub tokens: usize,
    /// First colour of each grouping in [`Scratch::tags`].
    pub colour_starts: [usize; 9],
    /// First slot of each grouping.
    pub slot_starts: [usize; 9],
    /// Every group row has its own slot: all products are taken at once.
    pub full: bool,
    /// Views of all rows and the index of their groups are kept.
    pub keeps: bool,
    /// Group rows that are multiplied in one call of a block.
    pub products: usize,
}

impl Caching {
    /// Decides for `slots` slots and tiles of `tile` rows; fills `colours` (`[G, S]`). `last` is scratch of as many elements.
    pub(crate) fn new(groups: &Groups<'_>, slots: usize, tile: usize, colours: &mut [u16], last: &mut [u16]) -> Result<Self, Broken> {
        let (tokens, fields) = (groups.tokens(), groups.fields);
        let full = fields <= tile && groups.rows <= slots;
        let mut counts = [0usize; 8];
        let counts = counts.part_mut(..groups.count)?;
        // As many fields as possible, for then merged sums are multiplied least often; but not fewer rows a tile than kernels work on.
        let mut fitting = |least: usize| {
            let beside = |f: usize| tile.checked_div(f).unwrap_or(0);
            let shapes = (1..=fields.min(tile)).rev().flat_map(|f| (1..=beside(f)).rev().map(move |t| (f, t)));
            for (fields, together) in shapes.filter(|(f, t)| f * t >= least.min(tile) && *t <= tokens) {
                for ((colours, ids), count) in colours.rows_mut(tokens)?.zip(&groups.ids).zip(&mut *counts) {
                    *count = colour(ids, together, colours, last)?;
                }
                if full || slots_of(groups, counts, fields) <= slots {
                    return Ok(Some((fields, together)));
                }
            }
            Ok(None)
        };
        let shape = match fitting(LEAST_ROWS)? {
            Some(shape) => Some(shape),
            None => fitting(1)?,
        };
        let (fields, together) = shape.unwrap_or((1, 1));
        for (g, (colours, count)) in colours.rows_mut(tokens)?.zip(&mut *counts).enumerate().filter(|_| full) {
            colours.copy_of(groups.ids(g)?)?;
            *count = groups.range(g)?.len().checked_div(groups.rows_of(g, fields)?).or_broken()?;
        }
        if !full {
            // Too little even for one field: groups that are alive together share a colour, which costs products.
            while slots_of(groups, counts, fields) > slots {
                match counts.iter_mut().filter(|n| **n > 1).max() {
                    Some(most) => *most -= 1,
                    None => break,
                }
            }
            for (colours, &count) in colours.rows_mut(tokens)?.zip(&*counts) {
                let count = NonZeroU16::new(count as u16).or_broken()?;
                colours.iter_mut().for_each(|c| *c %= count);
            }
        }
        let mut caching = Self { fields, tokens: together, full, ..Self::default() };
        let (mut colours_before, mut slots_before) = (0, 0);
        for (g, &count) in counts.iter().enumerate() {
            colours_before += count;
            slots_before += count * groups.rows_of(g, fields)?;
            *caching.colour_starts.part_mut(g + 1)? = colours_before;
            *caching.slot_starts.part_mut(g + 1)? = slots_before;
        }
        caching.products = caching.count_products(groups, colours, last)?;
        Ok(caching)
    }

    /// Whether all products are taken at once, in slots that are the group rows themselves, and all fields of a token go together.
    pub(crate) fn all_at_once(&self, groups: &Groups<'_>) -> bool {
        self.full && self.fields == groups.fields
    }

    /// Goes over the tokens as [`mix`] does.
    fn count_products(&self, groups: &Groups<'_>, colours: &[u16], tags: &mut [u16]) -> Result<usize, Broken> {
        if self.full {
            return Ok(groups.rows);
        }
        let mut products = 0;
        tags.fill(0);
        for first in (0..groups.fields).step_by(self.fields.max(1)) {
            let n = self.fields.min(groups.fields - first);
            self.forget(groups, tags)?;
            for t in 0..groups.tokens() {
                for g in 0..groups.count {
                    let (tag, wanted) = self.tag(groups, colours, tags, g, t)?;
                    if *tag != wanted {
                        *tag = wanted;
                        products += groups.rows_of(g, n)?;
                    }
                }
            }
        }
        Ok(products)
    }

    /// Other fields have other sums, unless they are merged.
    fn forget(&self, groups: &Groups<'_>, tags: &mut [u16]) -> Result<(), Broken> {
        for g in 0..groups.count {
            if !groups.merges(g)? {
                tags.part_mut(*self.colour_starts.part(g)?..*self.colour_starts.part(g + 1)?)?.fill(0);
            }
        }
        Ok(())
    }

    /// What the colour of token `t` in grouping `g` holds (0: nothing, else group id + 1), and what the token wants it to hold.
    fn tag<'t>(&self, groups: &Groups<'_>, colours: &[u16], tags: &'t mut [u16], g: usize, t: usize) -> Result<(&'t mut u16, u16), Broken> {
        let ids = groups.ids(g)?;
        let colour = usize::from(*colours.part(g * ids.len() + t)?);
        Ok((tags.part_mut(*self.colour_starts.part(g)? + colour)?, *ids.part(t)? + 1))
    }
}

/// Rows of a tile below which kernels waste their registers.
const LEAST_ROWS: usize = 4;

/// Slots of so many colours in each grouping, while `fields` fields are worked on.
fn slots_of(groups: &Groups<'_>, counts: &[usize], fields: usize) -> usize {
    counts.iter().zip(groups.merged).map(|(n, merged)| n * if merged { 1 } else { fields }).sum()
}

/// Gives each token the colour of its group, where `together` tokens are worked on at once: the lowest one free when the group first
/// appears; it is free again after the tile of the group's last token. Returns the number of colours.
fn colour(ids: &[u16], together: usize, colours: &mut [u16], last: &mut [u16]) -> Result<usize, Broken> {
    let mut count = 0;
    for (t, &id) in ids.iter().enumerate() {
        let tile = t - t.checked_rem(together).or_broken()?;
        let colour = match ids.iter().take(t).position(|&i| i == id) {
            Some(before) => *colours.part(before)?,
            None => {
                let end = ids.iter().rposition(|&i| i == id).unwrap_or(t);
                let free = last.part(..count)?.iter().position(|&l| usize::from(l) < tile).unwrap_or(count);
                count = count.max(free + 1);
                *last.part_mut(free)? = end as u16;
                free as u16
            }
        };
        *colours.part_mut(t)? = colour;
    }
    Ok(count)
}

/// The rows of a carry tensor, `[R, width]`, in one piece or, where no memory is large enough, in two.
pub(crate) struct Rows<'x> {
    front: &'x mut [i16],
    back: &'x mut [i16],
    width: usize,
    /// Rows of the front.
    before: usize,
    /// Rows of both.
    len: usize,
}

impl<'x> Rows<'x> {
    pub(crate) fn new(front: &'x mut [i16], back: &'x mut [i16], width: usize) -> Result<Self, Broken> {
        let before = front.rows(width)?.len();
        let len = before + back.rows(width)?.len();
        Ok(Self { front, back, width, before, len })
    }

    /// Rows from `first` that lie in one piece; none is an error, for then nothing would ever end.
    fn in_one_piece(&self, first: usize) -> Result<usize, Broken> {
        let end = if first < self.before { self.before } else { self.len };
        end.checked_sub(first).filter(|&n| n > 0).or_broken()
    }

    /// Rows `first..first + count`, which lie in one piece.
    fn run(&mut self, first: usize, count: usize) -> Result<&mut [i16], Broken> {
        let at = first * self.width;
        match at.checked_sub(self.front.len()) {
            Some(at) => self.back.part_mut(at..at + count * self.width),
            None => self.front.part_mut(at..at + count * self.width),
        }
    }
}

/// The matrices of a gated MLP, cut into the blocks that their packed forms are made of.
struct Matrices<'m> {
    own: Columns<'m>,
    group: [Columns<'m>; 8],
    down: Columns<'m>,
}

impl<'m> Matrices<'m> {
    fn new(mlp: &GatedMlp<'m>, width: usize, groupings: usize, p: &mut Packed<'m>) -> Self {
        let own = p.columns(&mlp.up, 0, width);
        let mut group = [own; 8];
        for (g, columns) in group.iter_mut().take(groupings).enumerate() {
            *columns = p.columns(&mlp.up, (1 + g) * width, width);
        }
        Self { own, group, down: p.columns(&mlp.down, 0, mlp.down.k) }
    }
}

/// Gated MLP on the rows of `x`, with group sums if `groups` is given.
pub(crate) fn gated_mlp<'m>(
    mlp: &GatedMlp<'m>,
    x: &mut Rows<'_>,
    groups: Option<&Groups<'_>>,
    s: &mut Scratch<'_>,
    p: &mut Packed<'m>,
) -> Result<(), Broken> {
    let width = x.width;
    holds(s.tile > 0)?;
    let matrices = Matrices::new(mlp, width, groups.map_or(0, |g| g.count), p);
    let Some(groups) = groups else {
        let mut first = 0;
        while first < x.len {
            let n = s.tile.min(x.in_one_piece(first)?);
            p.kernel.view8(x.run(first, n)?, mlp.m_in, s.tile_input.part_mut(..n * width)?)?;
            multiply(mlp, &matrices, (0, n, width), None, s, p)?;
            finish(mlp, x.run(first, n)?, s.tile_delta.part(..n * width)?, width, p)?;
            first += n;
        }
        return Ok(());
    };
    take_sums(mlp, x, groups, s, p)?;
    let views = (groups.rows * width).div_ceil(8);
    // Taken out for the calls below, which use the other regions.
    let mixing = core::mem::take(&mut s.mixing);
    let done = match mixing.split_at_mut_checked(views).or_broken() {
        Ok((views, table)) => mix(mlp, &matrices, x, groups, (cast_slice(views), cast_slice_mut(table)), s, p),
        Err(broken) => Err(broken),
    };
    s.mixing = mixing;
    done
}

/// Sums of all groups, then their views over them.
fn take_sums(mlp: &GatedMlp<'_>, x: &mut Rows<'_>, groups: &Groups<'_>, s: &mut Scratch<'_>, p: &Packed<'_>) -> Result<(), Broken> {
    let (width, kept, keeps) = (x.width, groups.kept, s.caching.keeps);
    let sums: &mut [i16] = cast_slice_mut(&mut *s.mixing).part_mut(..groups.rows * width)?;
    sums.fill(0);
    let mut first = 0;
    while first < x.len {
        let most = if keeps { x.len } else { s.tile };
        let n = most.min(x.in_one_piece(first)?);
        let (index, input) = if keeps {
            (s.index.part_mut(first * kept..(first + n) * kept)?, s.view.part_mut(first * width..(first + n) * width)?)
        } else {
            let index = s.index.part_mut(..n * kept)?;
            groups.kept_rows(first, index)?;
            (index, s.tile_input.part_mut(..n * width)?)
        };
        p.kernel.view8(x.run(first, n)?, mlp.m_in, input)?;
        p.kernel.group_sums(input, width, index, kept, sums)?;
        first += n;
    }
    groups.add_folded(sums, width, p.kernel)?;
    for (g, &m) in mlp.m_group.iter().enumerate().take(groups.count) {
        let Range { start, end } = groups.range(g)?;
        let (mut at, to) = (start * width, end * width);
        while at < to {
            // The views of elements `at..at + n` lie over sums that have been read, from byte `at` on: before their own, from byte `2 at` on, if
            // `n` is at most `at`. Only the first need a copy.
            let n = if at == 0 { BLOCK } else { at }.min(to - at);
            let (front, sums) = cast_slice_mut::<u64, i16>(s.mixing).split_at_mut_checked(at).or_broken()?;
            let sums = sums.part_mut(..n)?;
            if at == 0 {
                let mut block = [0; BLOCK];
                let block = block.part_mut(..n)?;
                block.copy_of(sums)?;
                p.kernel.view8(block, m, cast_slice_mut::<i16, i8>(sums).part_mut(..n)?)?;
            } else {
                p.kernel.view8(sums, m, cast_slice_mut::<i16, i8>(front).part_mut(at..at + n)?)?;
            }
            at += n;
        }
    }
    Ok(())
}

/// Sums that are viewed at once, from a copy.
const BLOCK: usize = 64;

/// The rows, tile by tile: `views` (int8, `[group rows, C]`) are multiplied into slots of `table` when a tile first needs them.
fn mix<'m>(
    mlp: &GatedMlp<'m>,
    matrices: &Matrices<'m>,
    x: &mut Rows<'_>,
    groups: &Groups<'_>,
    (views, table): (&[i8], &mut [i32]),
    s: &mut Scratch<'_>,
    p: &Packed<'m>,
) -> Result<(), Broken> {
    let (width, wide, caching) = (x.width, mlp.up.n, s.caching);
    let fields = NonZeroUsize::new(groups.fields).or_broken()?;
    let together = NonZeroUsize::new(caching.tokens).or_broken()?;
    let tokens = x.len / fields;
    let all_at_once = caching.all_at_once(groups);
    s.tags.fill(0);
    if caching.full {
        for (g, columns) in matrices.group.iter().enumerate().take(groups.count) {
            let Range { start, end } = groups.range(g)?;
            let (before, products) = table.split_at_mut_checked(start * wide).or_broken()?;
            let (folded, each) = (groups.folded(g), groups.rows_of(g, fields.get())?);
            // Where it is not kept, the index has no room for more group rows than a tile has rows.
            let most = if folded > 0 && !caching.keeps { s.tile.checked_div(each).or_broken()? * each } else { end - start };
            holds(most > 0)?;
            for first in (0..end - start).step_by(most) {
                let n = most.min(end - start - first);
                let around = if caching.keeps {
                    *groups.split_index(x.len, s.index)?.1.part(g)?
                } else {
                    let around = s.index.part_mut(..n * folded)?;
                    groups.rows_around(g, first / each, around)?;
                    &*around
                };
                let bases = Bases { table: before, index: around, groupings: folded };
                let views = views.part((start + first) * width..(start + first + n) * width)?;
                p.kernel.accumulate(views, columns, Some(&bases), products.part_mut(first * wide..(first + n) * wide)?)?;
            }
            // Every colour is one group's own.
            if !all_at_once {
                for t in 0..tokens {
                    let (tag, wanted) = caching.tag(groups, s.colours, s.tags, g, t)?;
                    *tag = wanted;
                }
            }
        }
    }
    for field in (0..fields.get()).step_by(caching.fields.max(1)) {
        let n = caching.fields.min(fields.get() - field);
        if !caching.full {
            caching.forget(groups, s.tags)?;
        }
        let mut token = 0;
        while token < tokens {
            let whole = x.in_one_piece(token * fields.get())? / fields;
            let most = (together.get() - token % together).min(whole).min(tokens - token);
            holds(most > 0)?;
            let count = if all_at_once { most } else { whole_tile(groups, s.colours, token, most)? };
            if !all_at_once {
                let tile = (token..token + count, field..field + n);
                for g in 0..groups.count {
                    multiply_sums(&caching, matrices, groups, g, tile.clone(), (views, table), (width, wide), s, p)?;
                }
            } else if !caching.keeps {
                groups.kept_rows(token * n, s.index.part_mut(..count * n * groups.kept)?)?;
            }
            // Whole tokens lie one behind the other, else a token's fields do.
            let (runs, each) = if n == fields.get() { (1, count * n) } else { (count, n) };
            let start = |run: usize| (token + run) * fields.get() + field;
            if !caching.keeps {
                for run in 0..runs {
                    let at = run * each * width;
                    p.kernel.view8(x.run(start(run), each)?, mlp.m_in, s.tile_input.part_mut(at..at + each * width)?)?;
                }
            }
            multiply(mlp, matrices, (token * n, count * n, width), Some((&*table, groups.kept)), s, p)?;
            for run in 0..runs {
                let at = run * each * width;
                finish(mlp, x.run(start(run), each)?, s.tile_delta.part(at..at + each * width)?, width, p)?;
            }
            token += count;
        }
    }
    Ok(())
}

/// Products of grouping `g` that a tile of `tokens` and `fields` needs and that are not there yet; where they are goes into the index.
#[expect(clippy::too_many_arguments, reason = "the inside of a loop")]
fn multiply_sums(
    caching: &Caching,
    matrices: &Matrices<'_>,
    groups: &Groups<'_>,
    g: usize,
    (tokens, fields): (Range<usize>, Range<usize>),
    (views, table): (&[i8], &mut [i32]),
    (width, wide): (usize, usize),
    s: &mut Scratch<'_>,
    p: &Packed<'_>,
) -> Result<(), Broken> {
    let (n, all) = (fields.len(), groups.ids(g)?.len());
    let each = groups.rows_of(g, n)?;
    let (columns, merged) = (matrices.group.part(g)?, groups.merges(g)?);
    let slot_of = |g: usize, t: usize, colours: &[u16]| {
        let distance = groups.rows_of(g, caching.fields)?;
        Ok::<_, Broken>(*caching.slot_starts.part(g)? + usize::from(*colours.part(g * all + t)?) * distance)
    };
    // What is folded stands behind the index of the tile, which has room for all groupings.
    let (kept, place, folded) = (groups.kept, groups.kept().position(|k| k == g), groups.folded(g));
    let (index, around) = s.index.split_at_mut_checked(s.tile * kept).or_broken()?;
    // Views that are multiplied together lie in the tile's input, and their slots one behind the other.
    let (mut slot_of_first, mut rows) = (0, 0);
    let multiply = |first: usize, rows: usize, input: &[i8], around: &[u16], table: &mut [i32]| {
        if rows == 0 {
            return Ok(());
        }
        let (before, products) = table.split_at_mut_checked(first * wide).or_broken()?;
        let bases = Bases { table: before, index: around.part(..rows * folded)?, groupings: folded };
        p.kernel.accumulate(input.part(..rows * width)?, columns, Some(&bases), products.part_mut(..rows * wide)?)
    };
    for (i, t) in tokens.enumerate() {
        let slot = slot_of(g, t, s.colours)?;
        if let Some(place) = place {
            for f in 0..n {
                *index.part_mut((i * n + f) * kept + place)? = (slot + if merged { 0 } else { f }) as u16;
            }
        }
        let (tag, wanted) = caching.tag(groups, s.colours, s.tags, g, t)?;
        if *tag == wanted {
            continue;
        }
        *tag = wanted;
        if rows > 0 && (slot != slot_of_first + rows || rows + each > s.tile) {
            multiply(slot_of_first, rows, s.tile_input, around, table)?;
            rows = 0;
        }
        if rows == 0 {
            slot_of_first = slot;
        }
        let from = groups.row(g, t, fields.start)? * width;
        let views = views.part(from..from + each * width)?;
        s.tile_input.part_mut(rows * width..(rows + each) * width)?.copy_of(views)?;
        for (field, entry) in around.part_mut(rows * folded..(rows + each) * folded)?.chunks_exact_mut(folded.max(1)).enumerate() {
            for (e, coarse) in entry.iter_mut().zip(groups.folded_into(g)) {
                *e = (slot_of(coarse, t, s.colours)? + field) as u16;
            }
        }
        rows += each;
    }
    multiply(slot_of_first, rows, s.tile_input, around, table)
}

/// How many of the `most` tokens from `first` on can be worked on at once: none wants a colour for another group than one before it.
fn whole_tile(groups: &Groups<'_>, colours: &[u16], first: usize, most: usize) -> Result<usize, Broken> {
    for count in 1..most {
        let t = first + count;
        for g in 0..groups.count {
            let ids = groups.ids(g)?;
            let colours = colours.part(g * ids.len()..(g + 1) * ids.len())?;
            let (colour, id) = (*colours.part(t)?, *ids.part(t)?);
            let before = colours.part(first..t)?.iter().zip(ids.part(first..t)?);
            if before.into_iter().any(|(&c, &i)| c == colour && i != id) {
                return Ok(count);
            }
        }
    }
    Ok(most)
}

/// Output of the MLP for the `rows` views in the tile's input; where views are kept, for those from row `first` on.
fn multiply<'m>(
    mlp: &GatedMlp<'m>,
    matrices: &Matrices<'m>,
    (first, rows, width): (usize, usize, usize),
    bases: Option<(&[i32], usize)>,
    s: &mut Scratch<'_>,
    p: &Packed<'m>,
) -> Result<(), Broken> {
    let inner = mlp.up.n / 2;
    let (views, first) = if s.caching.keeps { (&*s.view, first) } else { (&*s.tile_input, 0) };
    let bases = match bases {
        Some((table, n)) => Some(Bases { table, index: s.index.part(first * n..(first + rows) * n)?, groupings: n }),
        None => None,
    };
    let input = views.part(first * width..(first + rows) * width)?;
    let hidden = s.tile_hidden.part_mut(..rows * inner)?;
    let wide = s.tile_wide.part_mut(..rows * mlp.up.n)?;
    p.kernel.gated(input, &matrices.own, &requant(&mlp.up), bases.as_ref(), mlp.gate_shift, wide, hidden)?;
    p.kernel.project(hidden, &matrices.down, &requant(&mlp.down), None, s.tile_delta.part_mut(..rows * width)?)
}

/// Adds the output to the rows and normalises them.
fn finish(mlp: &GatedMlp<'_>, x: &mut [i16], delta: &[i16], width: usize, p: &Packed<'_>) -> Result<(), Broken> {
    p.kernel.scale_down(x, mlp.residual_shift);
    p.kernel.add_norm(x, delta, width)
}
