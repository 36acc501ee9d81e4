//! What the kernels of `segment.cu` are given: the architecture as macros, weights and tables as an array of words, and the memory they use.

use std::fmt::Write as _;

use anyhow::ensure;
use hrm_core::format::{GatedMlp, Matrix};
use hrm_core::kernels::tables::{SILU_BASE, SILU_SLOPE};
use hrm_core::{Mixer, ModelView, Start};

/// The device code.
pub const SOURCE: &str = include_str!("segment.cu");

/// Inner units worked on together, `UNITS` of the device code.
const UNITS: usize = 32;
/// Rows that a thread works on, `TILE`.
const TILE: usize = 8;
/// Partial sums of a column, `PARTS`.
const PARTS: usize = 16;
/// Words of a block's parameters before its first weight, `UP_WEIGHT`.
const PARAMETERS: usize = 16;
/// Bytes of shared memory of the hash kernel: two stages of 256 words of 64 bits.
pub const HASH_SHARED_BYTES: usize = 2 * 256 * 8;
/// Threads of a block of the hash kernel.
pub const HASH_THREADS: u32 = 64;

/// One model, ready for a device.
#[derive(Clone, Debug)]
pub struct Program {
    /// `#define` lines that go before [`SOURCE`].
    pub macros: String,
    /// Weights and tables.
    pub image: Vec<i32>,
    /// Bytes of the arena that each slot of a batch takes.
    pub slot_bytes: usize,
    /// Bytes of shared memory of a block of the segment kernel.
    pub shared_bytes: usize,
    /// Threads of a block of the segment kernel.
    pub threads: u32,
    /// Tokens of a puzzle.
    pub tokens: usize,
}

/// Collects the image; each part becomes a macro that says where it begins.
#[derive(Default)]
struct Image {
    words: Vec<i32>,
    macros: String,
}

impl Image {
    fn define(&mut self, name: &str, value: impl std::fmt::Display) {
        // A `String` takes whatever is written.
        let _ = writeln!(self.macros, "#define HRM_{name} {value}");
    }

    fn part(&mut self, name: &str, words: impl IntoIterator<Item = i32>) {
        self.define(&format!("{name}_AT"), self.words.len());
        self.words.extend(words);
    }
}

/// Group rows of all groupings, stacked, as [`hrm_core`] numbers them.
struct Groups {
    /// `[R, G]`: group row of each row in each grouping.
    index: Vec<usize>,
    /// Grouping of each group row.
    grouping: Vec<usize>,
    count: usize,
}

impl Groups {
    fn new(view: &ModelView<'_>) -> Self {
        let c = view.config();
        let (count, fields, tokens) = (usize::from(c.groupings), usize::from(c.fields), usize::from(c.tokens));
        let (mut index, mut grouping) = (vec![0; c.rows() * count], Vec::new());
        for g in 0..count {
            let (ids, merged, start) = (view.groups(g), view.merges_fields(g), grouping.len());
            for row in 0..tokens * fields {
                let id = usize::from(ids[row / fields]);
                index[row * count + g] = start + if merged { id } else { id * fields + row % fields };
            }
            let groups = ids.iter().max().map_or(0, |&id| usize::from(id) + 1);
            grouping.resize(start + groups * if merged { 1 } else { fields }, g);
        }
        Self { index, grouping, count }
    }

    /// Where the members of each group row begin, then their end; the members, which are rows.
    fn members(&self) -> (Vec<i32>, Vec<i32>) {
        let mut of: Vec<Vec<i32>> = vec![Vec::new(); self.grouping.len()];
        for (i, &group) in self.index.iter().enumerate() {
            of[group].push((i / self.count) as i32);
        }
        let mut begin = vec![0];
        begin.extend(of.iter().scan(0, |end, rows| {
            *end += rows.len() as i32;
            Some(*end)
        }));
        (begin, of.concat())
    }

    /// Tiles of at most [`TILE`] group rows of one grouping: first row, rows, grouping.
    fn tiles(&self) -> Vec<[i32; 3]> {
        let mut tiles: Vec<[i32; 3]> = Vec::new();
        for (row, &g) in self.grouping.iter().enumerate() {
            match tiles.last_mut() {
                Some([_, rows, grouping]) if *grouping == g as i32 && *rows < TILE as i32 => *rows += 1,
                _ => tiles.push([row as i32, 1, g as i32]),
            }
        }
        tiles
    }
}

/// Four int8 values a word, the first lowest; those behind the end are 0.
fn word(values: &[i8], at: usize) -> i32 {
    let byte = |i: usize| values.get(at + i).copied().unwrap_or(0) as u8;
    i32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

/// Words of a row of `n` int8 values padded to 16 bytes.
const fn words(n: usize) -> usize {
    4 * n.div_ceil(16)
}

fn block(mlp: &GatedMlp<'_>, channels: usize, groupings: usize, out: &mut Vec<i32>) {
    let (inner, end) = (mlp.up.n / 2, out.len() + PARAMETERS);
    out.extend([i32::from(mlp.m_in), mlp.up.shift as i32, mlp.down.shift as i32, mlp.residual_shift as i32, mlp.gate_shift as i32]);
    out.extend(mlp.m_group.iter().map(|&m| i32::from(m)));
    out.resize(end, 0);
    let padded = inner.next_multiple_of(UNITS);
    let row = |m: &Matrix<'_>, n: usize| n * m.k..(n + 1) * m.k;
    // [1 + G][words][gate, up][units]
    for part in 0..=groupings {
        for k in 0..words(channels) {
            for first in [0, inner] {
                let weight = |unit: usize| {
                    let of_row = &mlp.up.weights[row(&mlp.up, first + unit)];
                    word(&of_row[part * channels..(part + 1) * channels], 4 * k)
                };
                out.extend((0..padded).map(|unit| if unit < inner { weight(unit) } else { 0 }));
            }
        }
    }
    for values in [mlp.up.mult, mlp.up.bias] {
        for half in values.chunks_exact(inner) {
            out.extend(half.iter().copied().chain(std::iter::repeat_n(0, padded - inner)));
        }
    }
    // [words][channels]
    for k in 0..words(inner) {
        out.extend((0..channels).map(|c| word(&mlp.down.weights[row(&mlp.down, c)], 4 * k)));
    }
    out.extend(mlp.down.mult);
    out.extend(mlp.down.bias);
}

impl Program {
    /// `view` for a device whose blocks have `threads` threads and may use `shared_limit` bytes of shared memory each. What does not fit there
    /// goes to the arena.
    ///
    /// # Errors
    /// The model is not one of structured cells.
    pub fn new(view: &ModelView<'_>, threads: u32, shared_limit: usize) -> anyhow::Result<Self> {
        let c = view.config();
        ensure!(
            c.mixer == Mixer::GroupSum,
            "the CUDA kernels are for structured cells (mixer group-sum), this model has mixer {:?}: evaluate it with --device cpu",
            c.mixer
        );
        let (channels, inner, rows, tokens) = (usize::from(c.channels), usize::from(c.inner), c.rows(), usize::from(c.tokens));
        let (groups, heads) = (Groups::new(view), view.heads());
        let group_rows = groups.grouping.len();
        let mut image = Image::default();
        for (name, value) in [
            ("TOKENS", tokens),
            ("FIELDS", usize::from(c.fields)),
            ("CHANNELS", channels),
            ("INNER", inner),
            ("GROUPINGS", groups.count),
            ("GROUP_ROWS", group_rows),
            ("HEAD_WIDTH", c.head_width()),
            ("Q_OUTPUTS", heads.q_bias.len()),
            ("MODULES", c.modules()),
            ("H_LAYERS", c.h_layers.into()),
            ("L_LAYERS", c.l_layers.into()),
            ("H_CYCLES", c.h_cycles.into()),
            ("L_CYCLES", c.l_cycles.into()),
            ("RANDOM_START", usize::from(c.start == Start::Random)),
            ("THREADS", threads as usize),
        ] {
            image.define(name, value);
        }
        let wide = |values: &[i16]| values.iter().map(|&v| i32::from(v)).collect::<Vec<_>>();
        image.part("EMBED", wide(view.embed()));
        let (h, l) = view.init();
        image.part("INIT", wide(h).into_iter().chain(wide(l)));
        image.part("INDEX", groups.index.iter().map(|&g| g as i32));
        image.part("GROUPING", groups.grouping.iter().map(|&g| g as i32));
        let (begin, members) = groups.members();
        image.part("BEGIN", begin);
        image.part("MEMBERS", members);
        let tiles = groups.tiles();
        image.define("GROUP_TILES", tiles.len());
        image.part("TILES", tiles.concat());
        image.part("SILU", SILU_BASE.iter().zip(SILU_SLOPE).map(|(&b, s)| i32::from(b) & 0xffff | i32::from(s) << 16));
        image.part("GLOBAL", [i32::from(heads.m_head), heads.q_shift as i32]);
        let head = heads.weights.chunks_exact(channels);
        image.part("HEAD", head.flat_map(|row| (0..words(channels)).map(move |k| word(row, 4 * k))));
        image.part("HEAD_BIAS", heads.bias.iter().copied());
        image.part("Q", heads.q_weights.iter().map(|&w| i32::from(w)));
        image.part("Q_BIAS", heads.q_bias.iter().flat_map(|&b| [b as i32, (b >> 32) as i32]));
        let mut blocks = Vec::new();
        for m in 0..c.modules() {
            for layer in 0..c.layers(m) {
                block(&view.block(m, layer).mlp, channels, groups.count, &mut blocks);
            }
        }
        image.part("BLOCKS", blocks);

        let sums = rows * (channels + 2) * 2;
        let products = (group_rows * 2 * UNITS * 4).max(sums).max(PARTS * channels * 4);
        let (mut shared_bytes, mut slot_bytes) = (0, 3 * (2 * rows * channels).next_multiple_of(16));
        // What is read most often comes first.
        for (name, bytes) in [
            ("TABLE", 64 * 4 + 2 * 8),
            ("FACTORS", rows * 4),
            ("PRODUCTS", products),
            ("VIEW", rows * words(channels) * 4),
            ("SUMS", (group_rows * words(channels) * 4).max(channels * 8)),
            ("HIDDEN", rows * words(inner) * 4),
        ] {
            let bytes = bytes.next_multiple_of(16);
            let fits = shared_bytes + bytes <= shared_limit;
            let place = if fits { &mut shared_bytes } else { &mut slot_bytes };
            image.define(&format!("{name}_SHARED"), u8::from(fits));
            image.define(&format!("{name}_AT"), *place);
            *place += bytes;
        }
        image.define("SLOT_BYTES", format!("{slot_bytes}ull"));
        Ok(Self { macros: image.macros, image: image.words, slot_bytes, shared_bytes, threads, tokens })
    }

    /// The whole text to compile.
    #[must_use]
    pub fn source(&self) -> String {
        format!("{}{SOURCE}", self.macros)
    }

    /// Words of one slot's command.
    #[must_use]
    pub const fn command_words(&self) -> usize {
        COMMAND_TOKENS + self.tokens.div_ceil(4)
    }

    /// Words of one slot's result.
    #[must_use]
    pub const fn result_words(&self) -> usize {
        RESULT_ANSWER + self.tokens.div_ceil(4)
    }
}

/// Words of a command before its tokens: action, stream of the start, stream of the noise, amplitude.
pub(super) const COMMAND_TOKENS: usize = 6;
/// Words of a result before its answer: hash, Q, both sums of the residual.
pub(super) const RESULT_ANSWER: usize = 8;
