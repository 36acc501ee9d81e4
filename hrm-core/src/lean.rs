//! The lean schedule: the gated MLP row tile by row tile, with the products of group sums cached as far as memory goes.
//!
//! Nothing is kept for all rows but the state itself. The group sums are taken first, from the state as it was; their int8 views
//! then replace them in place, and the half of their memory that becomes free holds products: accumulators of `2I` channels, one
//! *slot* a group row. Rows are visited token by token, for a few fields at a time, so that a group needs slots only from its first token to
//! its last: groups of one grouping that are never alive at once share a *colour*. With one field of four tokens at a time the rows,
//! columns, boxes and cells of a 9x9 Sudoku need 2 + 9 + 4 + 4 slots instead of 324; with more memory more fields go together, so that
//! the sums over merged fields are multiplied fewer times.

use core::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use crate::format::GatedMlp;
use crate::kernels::{Bases, Columns};
use crate::layers::{Groups, Packed, Scratch, requant};

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
}

impl Caching {
    /// Decides for `slots` slots and tiles of `tile` rows; fills `colours` (`[G, S]`). `last` is scratch of as many elements.
    pub(crate) fn new(groups: &Groups<'_>, slots: usize, tile: usize, colours: &mut [u16], last: &mut [u16]) -> Self {
        let (tokens, fields) = (groups.ids[0].len(), groups.fields);
        let full = fields <= tile && groups.rows() <= slots;
        let mut counts = [0usize; 8];
        let counts = &mut counts[..groups.count];
        // As many fields as possible, for then merged sums are multiplied least often; but not fewer rows a tile than kernels work on.
        let fitting = |least: usize, counts: &mut [usize], colours: &mut [u16], last: &mut [u16]| {
            let shapes = (1..=fields.min(tile)).rev().flat_map(|f| (1..=tile / f).rev().map(move |t| (f, t)));
            let mut shapes = shapes.filter(|(f, t)| f * t >= least.min(tile) && *t <= tokens);
            shapes.find(|&(fields, together)| {
                let all = colours.chunks_exact_mut(tokens).take(groups.count).enumerate();
                all.for_each(|(g, colours)| counts[g] = colour(groups.ids[g], together, colours, last));
                full || slots_of(groups, counts, fields) <= slots
            })
        };
        let shape = fitting(LEAST_ROWS, counts, colours, last).or_else(|| fitting(1, counts, colours, last));
        let (fields, together) = shape.unwrap_or((1, 1));
        if full {
            for (g, colours) in colours.chunks_exact_mut(tokens).take(groups.count).enumerate() {
                colours.copy_from_slice(groups.ids[g]);
                counts[g] = (groups.starts[g + 1] - groups.starts[g]) / groups.rows_of(g, fields);
            }
        } else {
            // Too little even for one field: groups that are alive together share a colour, which costs products.
            while slots_of(groups, counts, fields) > slots {
                match counts.iter_mut().filter(|n| **n > 1).max() {
                    Some(most) => *most -= 1,
                    None => break,
                }
            }
            for (colours, &count) in colours.chunks_exact_mut(tokens).zip(&*counts) {
                colours.iter_mut().for_each(|c| *c %= count as u16);
            }
        }
        let mut caching = Self { fields, tokens: together, full, ..Self::default() };
        for (g, &count) in counts.iter().enumerate() {
            caching.colour_starts[g + 1] = caching.colour_starts[g] + count;
            caching.slot_starts[g + 1] = caching.slot_starts[g] + count * groups.rows_of(g, fields);
        }
        caching
    }

    /// Group rows that are multiplied in one call of a block.
    pub(crate) fn products(&self, groups: &Groups<'_>, colours: &[u16], tags: &mut [u16]) -> usize {
        let (tokens, fields) = (groups.ids[0].len(), groups.fields);
        if self.full {
            return groups.rows();
        }
        let mut products = 0;
        tags.fill(0);
        for first in (0..fields).step_by(self.fields) {
            let n = self.fields.min(fields - first);
            self.forget(groups, tags);
            for t in 0..tokens {
                for g in 0..groups.count {
                    let (tag, wanted) = self.tag(groups, colours, tags, g, t);
                    if *tag != wanted {
                        *tag = wanted;
                        products += groups.rows_of(g, n);
                    }
                }
            }
        }
        products
    }

    /// Other fields have other sums, unless they are merged.
    fn forget(&self, groups: &Groups<'_>, tags: &mut [u16]) {
        for g in (0..groups.count).filter(|&g| !groups.merged[g]) {
            tags[self.colour_starts[g]..self.colour_starts[g + 1]].fill(0);
        }
    }

    /// What the colour of token `t` in grouping `g` holds (0: nothing, else group id + 1), and what the token wants it to hold.
    fn tag<'t>(&self, groups: &Groups<'_>, colours: &[u16], tags: &'t mut [u16], g: usize, t: usize) -> (&'t mut u16, u16) {
        let ids = groups.ids[g];
        let colour = usize::from(colours[g * ids.len() + t]);
        (&mut tags[self.colour_starts[g] + colour], ids[t] + 1)
    }
}

/// Rows of a tile below which kernels waste their registers.
const LEAST_ROWS: usize = 4;

/// Slots of so many colours in each grouping, while `fields` fields are worked on.
fn slots_of(groups: &Groups<'_>, counts: &[usize], fields: usize) -> usize {
    counts.iter().enumerate().map(|(g, n)| n * groups.rows_of(g, fields)).sum()
}

/// Gives each token the colour of its group, where `together` tokens are worked on at once: the lowest one free when the group first
/// appears; it is free again after the tile of the group's last token. Returns the number of colours.
fn colour(ids: &[u16], together: usize, colours: &mut [u16], last: &mut [u16]) -> usize {
    let mut count = 0;
    for (t, &id) in ids.iter().enumerate() {
        let tile = t / together * together;
        colours[t] = match ids[..t].iter().position(|&i| i == id) {
            Some(before) => colours[before],
            None => {
                let end = ids.iter().rposition(|&i| i == id).unwrap_or(t);
                let free = last[..count].iter().position(|&l| usize::from(l) < tile).unwrap_or(count);
                count = count.max(free + 1);
                last[free] = end as u16;
                free as u16
            }
        };
    }
    count
}

/// The rows of a carry tensor, `[R, width]`, in one piece or, where no memory is large enough, in two.
pub(crate) struct Rows<'x> {
    pub front: &'x mut [i16],
    pub back: &'x mut [i16],
    pub width: usize,
}

impl<'x> Rows<'x> {
    pub(crate) fn whole(x: &'x mut [i16], width: usize) -> Self {
        Self { front: x, back: &mut [], width }
    }

    pub(crate) fn len(&self) -> usize {
        (self.front.len() + self.back.len()) / self.width
    }

    /// Rows from `first` that lie in one piece.
    fn in_one_piece(&self, first: usize) -> usize {
        let front = self.front.len() / self.width;
        if first < front { front - first } else { self.len() - first }
    }

    /// Rows `first..first + count`, which lie in one piece.
    fn run(&mut self, first: usize, count: usize) -> &mut [i16] {
        let at = first * self.width;
        match at.checked_sub(self.front.len()) {
            Some(at) => &mut self.back[at..at + count * self.width],
            None => &mut self.front[at..at + count * self.width],
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
pub(crate) fn gated_mlp<'m>(mlp: &GatedMlp<'m>, x: &mut Rows<'_>, groups: Option<&Groups<'_>>, s: &mut Scratch<'_>, p: &mut Packed<'m>) {
    let (rows, width) = (x.len(), x.width);
    let matrices = Matrices::new(mlp, width, groups.map_or(0, |g| g.count), p);
    let Some(groups) = groups else {
        let mut first = 0;
        while first < rows {
            let n = s.tile.min(x.in_one_piece(first));
            p.kernel.view8(x.run(first, n), mlp.m_in, &mut s.tile_input[..n * width]);
            multiply(mlp, &matrices, (n, width), None, s, p);
            finish(mlp, x.run(first, n), &s.tile_delta[..n * width], width, p);
            first += n;
        }
        return;
    };
    take_sums(mlp, x, groups, s, p);
    let views = (groups.rows() * width).div_ceil(8);
    // Taken out for the calls below, which use the other regions.
    let mixing = core::mem::take(&mut s.mixing);
    let (views, table) = mixing.split_at_mut(views);
    mix(mlp, &matrices, x, groups, (cast_slice(views), cast_slice_mut(table)), s, p);
    s.mixing = mixing;
}

/// Sums of all groups, then their views over them.
fn take_sums(mlp: &GatedMlp<'_>, x: &mut Rows<'_>, groups: &Groups<'_>, s: &mut Scratch<'_>, p: &Packed<'_>) {
    let (rows, width, count, fields) = (x.len(), x.width, groups.count, groups.fields);
    let group_rows = groups.starts[count];
    let sums: &mut [i16] = &mut cast_slice_mut(&mut *s.mixing)[..group_rows * width];
    sums.fill(0);
    let (mut first, mut token, mut field) = (0, 0, 0);
    while first < rows {
        let n = s.tile.min(x.in_one_piece(first));
        for entry in s.index.chunks_exact_mut(count).take(n) {
            for (g, e) in entry.iter_mut().enumerate() {
                *e = groups.row(g, token, field) as u16;
            }
            field += 1;
            if field == fields {
                (token, field) = (token + 1, 0);
            }
        }
        let input = &mut s.tile_input[..n * width];
        p.kernel.view8(x.run(first, n), mlp.m_in, input);
        p.kernel.group_sums(input, width, &s.index[..n * count], count, sums);
        first += n;
    }
    for g in 0..count {
        let (from, to) = (groups.starts[g] * width, groups.starts[g + 1] * width);
        let mut at = from;
        while at < to {
            // The views of elements `at..at + n` lie over sums that have been read, from byte `at` on: before their own, from byte `2 at` on, if
            // `n` is at most `at`. Only the first need a copy.
            let n = if at == 0 { BLOCK } else { at }.min(to - at);
            let (front, sums) = cast_slice_mut::<u64, u8>(s.mixing).split_at_mut(2 * at);
            if at == 0 {
                let mut block = [0; BLOCK];
                block[..n].copy_from_slice(&cast_slice::<u8, i16>(sums)[..n]);
                p.kernel.view8(&block[..n], mlp.m_group[g], &mut cast_slice_mut(sums)[..n]);
            } else {
                p.kernel.view8(&cast_slice(sums)[..n], mlp.m_group[g], cast_slice_mut(&mut front[at..at + n]));
            }
            at += n;
        }
    }
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
) {
    let (width, wide, caching) = (x.width, mlp.up.n, s.caching);
    let (tokens, fields) = (x.len() / groups.fields, groups.fields);
    s.tags.fill(0);
    if caching.full {
        for g in 0..groups.count {
            let (from, to) = (groups.starts[g], groups.starts[g + 1]);
            p.kernel.accumulate(&views[from * width..to * width], &matrices.group[g], &mut table[from * wide..to * wide]);
        }
        // Every colour is one group's own.
        for g in 0..groups.count {
            for t in 0..tokens {
                let (tag, wanted) = caching.tag(groups, s.colours, s.tags, g, t);
                *tag = wanted;
            }
        }
    }
    for field in (0..fields).step_by(caching.fields) {
        let n = caching.fields.min(fields - field);
        if !caching.full {
            caching.forget(groups, s.tags);
        }
        let mut token = 0;
        while token < tokens {
            let most = (caching.tokens - token % caching.tokens).min(x.in_one_piece(token * fields) / fields).min(tokens - token);
            let count = (1..most).find(|&i| collides(groups, s.colours, token, token + i)).unwrap_or(most);
            for g in 0..groups.count {
                multiply_sums(&caching, matrices, groups, g, (token..token + count, field..field + n), (views, table), (width, wide), s, p);
            }
            // Whole tokens lie one behind the other, else a token's fields do.
            let (runs, each) = if n == fields { (1, count * n) } else { (count, n) };
            let start = |run: usize| (token + run) * fields + field;
            for run in 0..runs {
                let at = run * each * width;
                p.kernel.view8(x.run(start(run), each), mlp.m_in, &mut s.tile_input[at..at + each * width]);
            }
            multiply(mlp, matrices, (count * n, width), Some((&*table, groups.count)), s, p);
            for run in 0..runs {
                let at = run * each * width;
                finish(mlp, x.run(start(run), each), &s.tile_delta[at..at + each * width], width, p);
            }
            token += count;
        }
    }
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
) {
    let (n, all) = (fields.len(), groups.ids[g].len());
    let each = groups.rows_of(g, n);
    let distance = groups.rows_of(g, caching.fields);
    // Views that are multiplied together lie in the tile's input, and their slots one behind the other.
    let (mut slot_of_first, mut rows) = (0, 0);
    let multiply = |first: usize, rows: usize, input: &[i8], table: &mut [i32]| {
        if rows > 0 {
            p.kernel.accumulate(&input[..rows * width], &matrices.group[g], &mut table[first * wide..(first + rows) * wide]);
        }
    };
    for (i, t) in tokens.enumerate() {
        let slot = caching.slot_starts[g] + usize::from(s.colours[g * all + t]) * distance;
        for f in 0..n {
            s.index[(i * n + f) * groups.count + g] = (slot + if groups.merged[g] { 0 } else { f }) as u16;
        }
        let (tag, wanted) = caching.tag(groups, s.colours, s.tags, g, t);
        if *tag == wanted {
            continue;
        }
        *tag = wanted;
        if rows > 0 && (slot != slot_of_first + rows || rows + each > s.tile) {
            multiply(slot_of_first, rows, s.tile_input, table);
            rows = 0;
        }
        if rows == 0 {
            slot_of_first = slot;
        }
        let from = groups.row(g, t, fields.start) * width;
        s.tile_input[rows * width..(rows + each) * width].copy_from_slice(&views[from..from + each * width]);
        rows += each;
    }
    multiply(slot_of_first, rows, s.tile_input, table);
}

/// Whether token `t` wants a colour for another group than one of the tokens `first..t` of the same tile.
fn collides(groups: &Groups<'_>, colours: &[u16], first: usize, t: usize) -> bool {
    (0..groups.count).any(|g| {
        let ids = groups.ids[g];
        let colours = &colours[g * ids.len()..];
        (first..t).any(|u| colours[u] == colours[t] && ids[u] != ids[t])
    })
}

/// Output of the MLP for the `rows` views in the tile's input.
fn multiply<'m>(
    mlp: &GatedMlp<'m>,
    matrices: &Matrices<'m>,
    (rows, width): (usize, usize),
    bases: Option<(&[i32], usize)>,
    s: &mut Scratch<'_>,
    p: &Packed<'m>,
) {
    let inner = mlp.up.n / 2;
    let bases = bases.map(|(table, groupings)| Bases { table, index: &s.index[..rows * groupings], groupings });
    let hidden = &mut s.tile_hidden[..rows * inner];
    let wide = &mut s.tile_wide[..rows * mlp.up.n];
    p.kernel.gated(&s.tile_input[..rows * width], &matrices.own, &requant(&mlp.up), bases.as_ref(), mlp.gate_shift, wide, hidden);
    p.kernel.project(hidden, &matrices.down, &requant(&mlp.down), None, &mut s.tile_delta[..rows * width]);
}

/// Adds the output to the rows and normalises them.
fn finish(mlp: &GatedMlp<'_>, x: &mut [i16], delta: &[i16], width: usize, p: &Packed<'_>) {
    p.kernel.scale_down(x, mlp.residual_shift);
    p.kernel.add_norm(x, delta, width);
}
