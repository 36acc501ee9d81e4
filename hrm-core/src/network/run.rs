//! One puzzle under way: embeds it and runs segments in the caller's memory.

use super::watch::{Part, Place, Watch};
use super::{InputError, Network};
use crate::config::{Mixer, Start};
use crate::cost::GroupFacts;
use crate::layers::{self, AttentionShape, Packed, Scratch};
use crate::lean::{self, Caching, Rows};
use crate::memory::{Carver, MemoryError, Plan, Regions, Schedule};
use crate::parts::{Broken, OrBroken, Parts};
use crate::rng::{Purpose, Stream, mix};
use crate::state::{Residual, hash_words};

/// One puzzle under way: the carry and the scratch, in the caller's arena.
#[derive(Debug)]
pub struct Run<'a, 'm> {
    network: Network<'m>,
    z_h: &'a mut [i16],
    z_l: &'a mut [i16],
    /// Rows of z_L that the first arena had no room for.
    z_l_rest: &'a mut [i16],
    previous: &'a mut [i16],
    tokens: &'a mut [u8],
    answer: &'a mut [u8],
    scratch: Scratch<'a>,
    q: (i32, i32),
}

impl<'a, 'm> Run<'a, 'm> {
    /// Divides `arena` (at least [`Network::required_bytes`]) for one run at a time.
    ///
    /// # Errors
    /// The arena is too small.
    pub fn new(network: Network<'m>, arena: &'a mut [u64], plan: Plan) -> Result<Self, MemoryError> {
        Self::new_in(network, [arena, &mut []], plan)
    }

    /// As [`Run::new`] with memory in two places, such as the SRAM and the core-coupled memory of an STM32F405: together at least
    /// [`Network::required_bytes`]. Only z_L of a network with group sums is ever cut in two, and only in the lean schedule; every other
    /// region needs one place that it fits into. They are given out in the order of their sizes, so the first arena should be the larger.
    ///
    /// # Errors
    /// The arenas are too small.
    // What it needs of the stack is gone before the first segment.
    #[inline(never)]
    pub fn new_in(network: Network<'m>, arenas: [&'a mut [u64]; 2], plan: Plan) -> Result<Self, MemoryError> {
        let (needed, found) = (network.required_bytes(plan), 8 * (arenas[0].len() + arenas[1].len()));
        let too_small = |needed| Err(MemoryError { what: "arena", needed, found });
        if found < needed {
            return too_small(needed);
        }
        let c = network.view.config();
        let r = Regions::new(c, network.groups.rows, plan);
        let mut carver = Carver::new(arenas, plan.schedule);
        let (z_h, mixing, previous) = (carver.take(r.state), carver.take(r.mixing), carver.take(r.previous));
        let scratch = Scratch {
            view: carver.take(r.view),
            transposed: carver.take(r.transposed),
            sums: carver.take(r.sums),
            sum_views: carver.take(r.sum_views),
            bases: carver.take(r.bases),
            index: carver.take(r.index),
            members: carver.take(r.members),
            ends: carver.take(r.ends),
            mixing,
            colours: carver.take(r.colours),
            tags: carver.take(r.tags),
            caching: Caching::default(),
            tile_input: carver.take(r.tile_input),
            tile_wide: carver.take(r.tile_wide),
            tile_hidden: carver.take(r.tile_hidden),
            tile_delta: carver.take(r.tile_delta),
            keys: carver.take(r.keys),
            scores: carver.take(r.scores),
            tile: r.tile,
            schedule: plan.schedule,
        };
        let (tokens, answer) = (carver.take(r.tokens), carver.take(r.tokens));
        let splits = r.mixing > 0;
        // A piece ends with a token, and on four elements: the state hash reads so many at a time.
        let unit = if splits { 4 * usize::from(c.fields) * usize::from(c.channels) } else { 0 };
        let [z_l, z_l_rest] = carver.take_split(r.state, unit);
        if carver.missing > 0 {
            return too_small(needed + carver.missing);
        }
        let mut run = Self { z_h, z_l, z_l_rest, previous, tokens, answer, scratch, network, q: (0, 0) };
        // What was needed was worked out for the same groups: if they have no place, it was too little.
        run.arrange_groups().map_err(|_| MemoryError { what: "arena", needed, found })?;
        Ok(run)
    }

    /// Takes away memory that every layer works in, as nothing but a mistake could.
    #[cfg(feature = "std")]
    pub(crate) fn damage(&mut self) {
        self.scratch.tile_wide = &mut [];
    }

    /// MACs of one segment in this run's memory: what [`crate::ModelView::segment_macs`] says for the cached schedule, and in the lean one
    /// those of the products that are computed again, too.
    #[must_use]
    pub fn segment_macs(&self) -> u64 {
        let view = self.network.view;
        let s = &self.scratch;
        let cached = view.segment_macs(Schedule::Cached);
        if s.mixing.is_empty() {
            return cached;
        }
        let c = view.config();
        let again = s.caching.products.saturating_sub(GroupFacts::of(&view).rows) as u64;
        cached + c.block_calls() * again * 2 * u64::from(c.inner) * u64::from(c.channels)
    }

    /// Fills what the sublayers read of the groups: slots of products in the lean schedule, else the index and its inverse.
    fn arrange_groups(&mut self) -> Result<(), Broken> {
        let Self { network: Network { view, groups, .. }, scratch: s, .. } = self;
        let c = view.config();
        if !s.mixing.is_empty() {
            let views = (groups.rows * usize::from(c.channels)).div_ceil(8);
            let words = s.mixing.len().checked_sub(views).or_broken()?;
            let slots = words.checked_div(usize::from(c.inner)).or_broken()?;
            s.caching = Caching::new(groups, slots, s.tile, s.colours, s.tags)?;
            s.caching.keeps = s.caching.all_at_once(groups) && !s.view.is_empty();
        }
        if s.index.is_empty() || (s.schedule == Schedule::Lean && !s.caching.keeps) {
            return Ok(());
        }
        groups.fill_index(c.rows(), s.index)?;
        if s.schedule == Schedule::Lean {
            return Ok(());
        }
        let places = (0..groups.tokens()).flat_map(|token| (0..groups.fields).map(move |field| (token, field)));
        // Counts, then where each group row begins, then its end, as its members are written.
        for (token, field) in places.clone() {
            for g in 0..groups.count {
                *s.ends.part_mut(groups.row(g, token, field)?)? += 1;
            }
        }
        let mut begin = 0;
        for end in &mut *s.ends {
            begin += core::mem::replace(end, begin);
        }
        for (r, (token, field)) in places.enumerate() {
            for g in 0..groups.count {
                let end = s.ends.part_mut(groups.row(g, token, field)?)?;
                *s.members.part_mut(*end as usize)? = r as u16;
                *end += 1;
            }
        }
        Ok(())
    }

    /// The network of this run.
    #[must_use]
    pub const fn network(&self) -> &Network<'m> {
        &self.network
    }

    /// Begins a puzzle: `tokens` `[S]`. The carry starts where the model says; random starts are those of guess `guess` of `seed`.
    ///
    /// # Errors
    /// A wrong number of tokens or a token outside the vocabulary; the run is left as it was. [`InputError::Broken`] as [`Run::segment`].
    pub fn start(&mut self, tokens: &[u8], seed: u64, guess: u64) -> Result<(), InputError> {
        let c = *self.network.view.config();
        if tokens.len() != usize::from(c.tokens) {
            return Err(InputError::Length { found: tokens.len(), expected: usize::from(c.tokens) });
        }
        if let Some((position, &found)) = tokens.iter().enumerate().find(|&(_, &t)| u16::from(t) >= c.vocab) {
            return Err(InputError::Token { position, found, vocab: c.vocab });
        }
        self.tokens.iter_mut().zip(tokens).for_each(|(to, &from)| *to = from);
        match c.start {
            Start::Fixed => {
                let (h, l) = self.network.view.init();
                for (z, init) in [(&mut *self.z_h, h), (&mut *self.z_l, l), (&mut *self.z_l_rest, l)] {
                    let rows = z.chunks_exact_mut(init.len().max(1));
                    rows.for_each(|row| row.iter_mut().zip(init).for_each(|(z, &i)| *z = i));
                }
            }
            Start::Random => self.start_randomly(seed, guess),
        }
        self.read_heads()?;
        Ok(())
    }

    /// Replaces the carry by the random start of guess `guess` of `seed`, whatever the model's own start is.
    pub fn start_randomly(&mut self, seed: u64, guess: u64) {
        let mut stream = Stream::new(seed, Purpose::Start, guess);
        self.for_each_pair(|pair| *pair = stream.next_normals());
    }

    /// Adds Gaussian noise of standard deviation `amplitude` (Q5.10) to z_H and z_L, that of (`seed`, `guess`, `segment`).
    pub fn add_noise(&mut self, seed: u64, guess: u64, segment: u16, amplitude: u16) {
        let mut stream = Stream::new(seed, Purpose::Noise, guess << 16 | u64::from(segment));
        let scaled = |n: i16| ((i32::from(n) * i32::from(amplitude.min(8191)) + 512) >> 10) as i16;
        self.for_each_pair(|pair| {
            let noise = stream.next_normals();
            *pair = [pair[0].saturating_add(scaled(noise[0])), pair[1].saturating_add(scaled(noise[1]))];
        });
    }

    /// Calls `f` with the elements of z_H then z_L in order, two at a time (an odd last element alone counts as a pair).
    fn for_each_pair(&mut self, mut f: impl FnMut(&mut [i16; 2])) {
        for z in [&mut *self.z_h, &mut *self.z_l, &mut *self.z_l_rest] {
            let (pairs, last) = z.as_chunks_mut::<2>();
            pairs.iter_mut().for_each(&mut f);
            if let [last] = last {
                let mut pair = [*last, 0];
                f(&mut pair);
                *last = pair[0];
            }
        }
    }

    /// Runs one segment, then reads the heads. Returns how many cells of the answer changed.
    ///
    /// # Errors
    /// An invariant is [`Broken`]: carry and answer mean nothing before the next [`Run::start`].
    pub fn segment(&mut self) -> Result<u16, Broken> {
        self.segment_telling(None)
    }

    /// As [`Run::segment`]; `done` is told of every part as it ends, to measure how long it took.
    ///
    /// # Errors
    /// As [`Run::segment`].
    pub fn segment_parts(&mut self, done: &mut dyn FnMut(Part)) -> Result<u16, Broken> {
        self.segment_telling(Some(&mut |part, _| done(part)))
    }

    /// As [`Run::segment`]; after every layer `watch` is told its place and the hash of the tensor it has changed (z_L or z_H alone, in
    /// the way of [`Run::hash`]). Two machines that differ do so first at one place.
    ///
    /// # Errors
    /// As [`Run::segment`].
    pub fn segment_watched(&mut self, watch: Option<&mut dyn FnMut(Place, u64)>) -> Result<u16, Broken> {
        let Some(watch) = watch else { return self.segment() };
        self.segment_telling(Some(&mut |part, [front, rest]| {
            if let Part::GatedMlp(place) = part {
                watch(place, mix(hash_words(hash_words(0, front), rest)));
            }
        }))
    }

    fn segment_telling(&mut self, mut watch: Watch<'_>) -> Result<u16, Broken> {
        let c = *self.network.view.config();
        self.keep_previous();
        for h_cycle in 0..c.h_cycles {
            for l_cycle in 0..c.l_cycles {
                self.inject_input()?;
                if let Some(watch) = &mut watch {
                    watch(Part::Input, [self.z_l, self.z_l_rest]);
                }
                self.module(Place { h_cycle, l_cycle: Some(l_cycle), layer: 0 }, &mut watch)?;
            }
            let (front, rest) = self.z_h.split_at_mut_checked(self.z_l.len()).or_broken()?;
            for (h, l) in [(front, &*self.z_l), (rest, &*self.z_l_rest)] {
                self.network.kernel.add(h, l);
            }
            if let Some(watch) = &mut watch {
                watch(Part::Input, [self.z_h, &[]]);
            }
            self.module(Place { h_cycle, l_cycle: None, layer: 0 }, &mut watch)?;
        }
        let changed = self.read_heads()?;
        if let Some(watch) = &mut watch {
            watch(Part::Heads, [&[], &[]]);
        }
        Ok(changed)
    }

    /// A segment computed elsewhere, such as by an exported graph: `compute` takes the tokens `[S]` and replaces z_H and z_L
    /// (`[R, C]` Q5.10). Then reads the heads, as [`Run::segment`] does.
    ///
    /// # Errors
    /// As [`Run::segment`].
    pub fn segment_by(&mut self, compute: impl FnOnce(&[u8], &mut [i16], &mut [i16])) -> Result<u16, Broken> {
        self.keep_previous();
        compute(self.tokens, self.z_h, self.z_l);
        self.read_heads()
    }

    fn keep_previous(&mut self) {
        self.previous.iter_mut().zip(&*self.z_h).for_each(|(to, &from)| *to = from);
    }

    /// `z_L <- sat16(z_L + sat16(z_H + e))`.
    fn inject_input(&mut self) -> Result<(), Broken> {
        let view = self.network.view;
        let c = view.config();
        let (ch, fields, prefix) = (usize::from(c.channels).max(1), usize::from(c.fields).max(1), usize::from(c.prefix));
        let (embed, prefix_rows) = (view.embed(), view.prefix());
        let l = self.z_l.chunks_exact_mut(ch).chain(self.z_l_rest.chunks_exact_mut(ch));
        for (r, (l, h)) in l.zip(self.z_h.chunks_exact(ch)).enumerate() {
            let (vectors, index) = match self.tokens.get((r / fields).wrapping_sub(prefix)) {
                Some(&token) => (embed, input_class(token, r % fields, fields)),
                None => (prefix_rows, r),
            };
            self.network.kernel.inject(l, h, vectors.part(index * ch..(index + 1) * ch)?);
        }
        Ok(())
    }

    /// Runs the module of `place` in place on its carry.
    fn module(&mut self, place: Place, watch: &mut Watch<'_>) -> Result<(), Broken> {
        let which = usize::from(place.l_cycle.is_none());
        let Network { view, kernel, groups, .. } = self.network;
        let c = *view.config();
        let ch = usize::from(c.channels);
        let stored = if c.shared { 0 } else { which };
        let (x, rest): (&mut [i16], &mut [i16]) = if which == 0 { (self.z_l, self.z_l_rest) } else { (self.z_h, &mut []) };
        let s = &mut self.scratch;
        for l in 0..c.layers(stored) {
            let block = view.block(stored, l);
            let place = Place { layer: l as u8, ..place };
            let mut tell = |part, front: &[i16], rest: &[i16]| {
                if let Some(watch) = watch {
                    watch(part, [front, rest]);
                }
            };
            let mut packed = Packed { words: self.network.packed_block(stored, l), kernel };
            if let Some(a) = &block.attention {
                let group_ids = |head: usize| (c.mixer == Mixer::GroupAttention).then(|| view.groups(head % groups.count.max(1)));
                let shape = AttentionShape { channels: ch, heads: usize::from(c.heads), rope: view.rope(), group_ids: &group_ids };
                layers::attention(a, x, &shape, s, &mut packed)?;
                tell(Part::Attention(place), x, rest);
            }
            if let Some(t) = &block.token_mlp {
                layers::token_mlp(t, x, ch, s, &mut packed)?;
                tell(Part::TokenMlp(place), x, rest);
            }
            let with_groups = (c.mixer == Mixer::GroupSum).then_some(&groups);
            match s.schedule {
                Schedule::Cached => layers::gated_mlp(&block.mlp, x, ch, with_groups, s, &mut packed)?,
                Schedule::Lean => {
                    let mut rows = Rows::new(x, rest, ch)?;
                    lean::gated_mlp(&block.mlp, &mut rows, with_groups, s, &mut packed)?;
                }
            }
            tell(Part::GatedMlp(place), x, rest);
        }
        Ok(())
    }

    /// Reads answer and Q from z_H; returns how many cells changed.
    fn read_heads(&mut self) -> Result<u16, Broken> {
        let view = self.network.view;
        let c = view.config();
        let heads = view.heads();
        let (ch, fields, prefix) = (usize::from(c.channels).max(1), usize::from(c.fields), usize::from(c.prefix));
        let mut view = [0i8; VIEW];
        let mut changed = 0;
        for (t, answer) in self.answer.iter_mut().enumerate() {
            let mut best = (i32::MIN, 0);
            let mut offer = |logit: i32, token: usize| {
                if logit > best.0 {
                    best = (logit, token);
                }
            };
            for f in 0..fields {
                let r = (prefix + t) * fields + f;
                let (row, z) = (view.part_mut(..ch)?, self.z_h.part(r * ch..(r + 1) * ch)?);
                self.network.kernel.view8(z, heads.m_head, row)?;
                for (n, (w, &bias)) in heads.weights.chunks_exact(ch).zip(heads.bias).enumerate() {
                    let logit = bias + w.iter().zip(&*row).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum::<i32>();
                    offer(logit, if fields > 1 { 2 + f } else { n });
                }
            }
            changed += u16::from(*answer != best.1 as u8);
            *answer = best.1 as u8;
        }
        let rows = if prefix > 0 { 1 } else { c.rows() };
        let mut acc = [0i64; 2];
        acc.iter_mut().zip(heads.q_bias).for_each(|(acc, &bias)| *acc = bias);
        // A few columns at a time, so that their sums stay in registers while the rows are read in order.
        for first in (0..ch).step_by(COLUMNS) {
            let sums = column_sums(self.z_h.part(..rows * ch)?, ch, first);
            for (acc, w) in acc.iter_mut().zip(heads.q_weights.chunks_exact(ch)) {
                for (&w, sum) in w.iter().skip(first).zip(sums) {
                    *acc = acc.saturating_add(i64::from(w) * sum);
                }
            }
        }
        let q = acc.map(|acc| (acc >> heads.q_shift).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32);
        self.q = (q[0], q[1]);
        Ok(changed)
    }

    /// Tokens read from z_H, `[S]`.
    #[must_use]
    pub fn answer(&self) -> &[u8] {
        self.answer
    }

    /// The puzzle's tokens, `[S]`.
    #[must_use]
    pub fn tokens(&self) -> &[u8] {
        self.tokens
    }

    /// Halt and continue outputs of the Q head (continue is 0 where the model has none), in units of [`crate::format::Heads::q_scale`].
    #[must_use]
    pub const fn q(&self) -> (i32, i32) {
        self.q
    }

    /// Change of z_H over the last segment, if the plan keeps it.
    #[must_use]
    pub fn residual(&self) -> Option<Residual> {
        (!self.previous.is_empty()).then(|| Residual::between(self.previous, self.z_h))
    }

    /// Hash of the whole carry, over the 64-bit words of z_H, then z_L (`docs/numerics.md`).
    #[must_use]
    pub fn hash(&self) -> u64 {
        mix(hash_words(hash_words(hash_words(0, self.z_h), self.z_l), self.z_l_rest))
    }

    /// The carry: z_H and z_L, `[R, C]` Q5.10. Of a run in two arenas ([`Run::new_in`]) z_L may be only its first rows.
    #[must_use]
    pub fn carry(&self) -> (&[i16], &[i16]) {
        (self.z_h, self.z_l)
    }

    /// The carry, to set a state of one's own; the heads are read again at the next segment.
    pub fn carry_mut(&mut self) -> (&mut [i16], &mut [i16]) {
        (self.z_h, self.z_l)
    }
}

/// Most channels, whose view is taken at a time where the heads are read.
const VIEW: usize = 1024;

/// Columns that [`column_sums`] adds up at a time.
const COLUMNS: usize = 16;

/// Sums of columns `first..first + COLUMNS` of `z` (`[rows, width]`); 0 for those behind the last.
fn column_sums(z: &[i16], width: usize, first: usize) -> [i64; COLUMNS] {
    let mut sums = [0i64; COLUMNS];
    // 2^15 rows of 16-bit values fit into 32 bits.
    for rows in z.chunks((width << 15).max(1)) {
        let mut part = [0i32; COLUMNS];
        for row in rows.chunks_exact(width.max(1)).filter_map(|row| row.get(first..)) {
            match row.first_chunk::<COLUMNS>() {
                Some(row) => part.iter_mut().zip(row).for_each(|(s, &z)| *s += i32::from(z)),
                None => part.iter_mut().zip(row).for_each(|(s, &z)| *s += i32::from(z)),
            }
        }
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += i64::from(p));
    }
    sums
}

/// Input class of a row: with fields 0 blank, 1 this symbol, 2 another; else the token.
const fn input_class(token: u8, field: usize, fields: usize) -> usize {
    match (fields > 1, token) {
        (false, t) => t as usize,
        (true, 0 | 1) => 0,
        (true, t) if t as usize == field + 2 => 1,
        _ => 2,
    }
}
