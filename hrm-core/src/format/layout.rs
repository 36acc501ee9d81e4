//! Which tensors a file of a given [`Config`] holds, in which order and where: the one place that both reader and writer ask.

use crate::config::{Config, Mixer, Start};

/// Element type of a tensor. The discriminant is the code in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum DType {
    /// Signed byte.
    I8 = 1,
    /// Signed 16 bit.
    I16 = 2,
    /// Unsigned 16 bit.
    U16 = 3,
    /// Signed 32 bit.
    I32 = 4,
    /// Signed 64 bit.
    I64 = 5,
    /// IEEE binary32; information only, the network never computes with it.
    F32 = 6,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 => 8,
        }
    }
}

/// What a tensor is. The discriminant is the code in the file; shapes are given in terms of the [`Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Kind {
    /// `[input classes, C]` i16 Q5.10.
    Embed = 1,
    /// `[P, C]` i16 Q5.10, with prefix tokens.
    Prefix = 2,
    /// `[2, C]` i16 Q5.10: z_H, z_L, with a fixed start.
    Init = 3,
    /// `[G, S]` u16 group ids.
    Groups = 4,
    /// `[2, P + S, d / 2]` i16 Q15: cosines, sines.
    Rope = 5,
    /// `[head width, C]` i8.
    HeadWeight = 6,
    /// `[head width]` i32, accumulator units.
    HeadBias = 7,
    /// `[Q outputs, C]` i8.
    QWeight = 8,
    /// `[Q outputs]` i64, accumulator units.
    QBias = 9,
    /// `[4]` i32: m_head, q_shift, and two zeros.
    Global = 10,
    /// `[2]` f32: value of one unit of a logit and of a Q output.
    Scales = 11,
    /// `[16]` i32: see [`params`].
    AttentionParams = 20,
    /// `[3C, C]` i8: rows of q, k, v.
    QkvWeight = 21,
    /// `[3C]` i32.
    QkvMult = 22,
    /// `[3C]` i32.
    QkvBias = 23,
    /// `[C, C]` i8.
    OutWeight = 24,
    /// `[C]` i32.
    OutMult = 25,
    /// `[C]` i32.
    OutBias = 26,
    /// `[16]` i32: see [`params`].
    TokenParams = 30,
    /// `[2 token_inner, P + S]` i8.
    TokenUpWeight = 31,
    /// `[2 token_inner]` i32.
    TokenUpMult = 32,
    /// `[2 token_inner]` i32.
    TokenUpBias = 33,
    /// `[P + S, token_inner]` i8.
    TokenDownWeight = 34,
    /// `[P + S]` i32.
    TokenDownMult = 35,
    /// `[P + S]` i32.
    TokenDownBias = 36,
    /// `[16]` i32: see [`params`].
    MlpParams = 40,
    /// `[2I, mix width]` i8: gate rows first.
    UpWeight = 41,
    /// `[2I]` i32.
    UpMult = 42,
    /// `[2I]` i32.
    UpBias = 43,
    /// `[C, I]` i8.
    DownWeight = 44,
    /// `[C]` i32.
    DownMult = 45,
    /// `[C]` i32.
    DownBias = 46,
    /// Free UTF-8 text (JSON training record) as i8; optional, after all others.
    Record = 60,
    /// Self-test vector as i8; optional, last: see [`super::SelfTest`].
    SelfTest = 61,
}

/// Positions in the `[16]` i32 parameter tensors of a sublayer. Unused positions are zero.
pub mod params {
    /// `m_in` of the sublayer.
    pub const M_IN: usize = 0;
    /// Left shift `l` of the first matrix (up, qkv).
    pub const FIRST_SHIFT: usize = 1;
    /// Left shift `l` of the second matrix (down, out).
    pub const SECOND_SHIFT: usize = 2;
    /// Right shift of the stream before the sublayer's output is added, whose unit is `2^(shift - 10)`.
    pub const RESIDUAL_SHIFT: usize = 3;
    /// Gated MLP: `m_g` of grouping 0, then the others.
    pub const M_GROUP: usize = 4;
    /// Attention: `m_q`, `m_k`, `m_v`.
    pub const M_QKV: usize = 4;
    /// Attention: `m_o`.
    pub const M_OUT: usize = 7;
    /// Attention: `m_s`, the softmax multiplier.
    pub const M_SCORE: usize = 8;
    /// Gated MLP: the unit of the gate is `2^(shift - 10)`.
    pub const GATE_SHIFT: usize = 12;
    /// Length of the tensor.
    pub const LEN: usize = 16;
}

/// One expected tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What it is.
    pub kind: Kind,
    /// Stored module (0 = L or shared, 1 = H); 0 for global tensors.
    pub module: u8,
    /// Block in the module; 0 for global tensors.
    pub layer: u8,
    /// Element type.
    pub dtype: DType,
    /// Rows and columns; a vector has one row.
    pub dims: [usize; 2],
}

impl Expected {
    /// Bytes of the payload without padding.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.dims[0] * self.dims[1] * self.dtype.size()
    }
}

/// All required tensors of a file in order, for `config` with `q_outputs` (1 or 2) Q outputs.
pub fn expected(config: &Config, q_outputs: usize) -> impl Iterator<Item = Expected> + use<> {
    let c = *config;
    let blocks = (0..c.modules()).flat_map(move |m| (0..c.layers(m)).map(move |l| (m, l)));
    globals(&c, q_outputs).into_iter().flatten().chain(
        blocks.flat_map(move |(m, l)| block(&c).into_iter().flatten().map(move |e| Expected { module: m as u8, layer: l as u8, ..e })),
    )
}

/// Number of global tensors, which come before those of the blocks.
#[must_use]
pub fn global_count(config: &Config) -> usize {
    globals(config, 1).iter().flatten().count()
}

/// Number of tensors of one block.
#[must_use]
pub fn block_count(config: &Config) -> usize {
    block(config).iter().flatten().count()
}

const fn entry(kind: Kind, dtype: DType, rows: usize, columns: usize) -> Option<Expected> {
    Some(Expected { kind, module: 0, layer: 0, dtype, dims: [rows, columns] })
}

fn globals(c: &Config, q_outputs: usize) -> [Option<Expected>; 11] {
    use DType::{F32, I8, I16, I32, I64, U16};
    let (ch, tokens) = (usize::from(c.channels), usize::from(c.tokens));
    let positions = tokens + usize::from(c.prefix);
    let when = |yes: bool, e: Option<Expected>| if yes { e } else { None };
    [
        entry(Kind::Embed, I16, c.input_classes(), ch),
        when(c.prefix > 0, entry(Kind::Prefix, I16, usize::from(c.prefix), ch)),
        when(c.start == Start::Fixed, entry(Kind::Init, I16, 2, ch)),
        when(c.groupings > 0, entry(Kind::Groups, U16, usize::from(c.groupings), tokens)),
        when(c.rope, entry(Kind::Rope, I16, 2 * positions, ch / usize::from(c.heads.max(1)) / 2)),
        entry(Kind::HeadWeight, I8, c.head_width(), ch),
        entry(Kind::HeadBias, I32, 1, c.head_width()),
        entry(Kind::QWeight, I8, q_outputs, ch),
        entry(Kind::QBias, I64, 1, q_outputs),
        entry(Kind::Global, I32, 1, 4),
        entry(Kind::Scales, F32, 1, 2),
    ]
}

fn block(c: &Config) -> [Option<Expected>; 14] {
    use DType::{I8, I32};
    let (ch, inner, token_inner) = (usize::from(c.channels), usize::from(c.inner), usize::from(c.token_inner));
    let positions = usize::from(c.tokens) + usize::from(c.prefix);
    let mut list = [None; 14];
    let first: [Option<Expected>; 7] = match c.mixer {
        Mixer::Attention | Mixer::GroupAttention => [
            entry(Kind::AttentionParams, I32, 1, params::LEN),
            entry(Kind::QkvWeight, I8, 3 * ch, ch),
            entry(Kind::QkvMult, I32, 1, 3 * ch),
            entry(Kind::QkvBias, I32, 1, 3 * ch),
            entry(Kind::OutWeight, I8, ch, ch),
            entry(Kind::OutMult, I32, 1, ch),
            entry(Kind::OutBias, I32, 1, ch),
        ],
        Mixer::TokenMlp => [
            entry(Kind::TokenParams, I32, 1, params::LEN),
            entry(Kind::TokenUpWeight, I8, 2 * token_inner, positions),
            entry(Kind::TokenUpMult, I32, 1, 2 * token_inner),
            entry(Kind::TokenUpBias, I32, 1, 2 * token_inner),
            entry(Kind::TokenDownWeight, I8, positions, token_inner),
            entry(Kind::TokenDownMult, I32, 1, positions),
            entry(Kind::TokenDownBias, I32, 1, positions),
        ],
        Mixer::GroupSum => [None; 7],
    };
    let second = [
        entry(Kind::MlpParams, I32, 1, params::LEN),
        entry(Kind::UpWeight, I8, 2 * inner, c.mix_width()),
        entry(Kind::UpMult, I32, 1, 2 * inner),
        entry(Kind::UpBias, I32, 1, 2 * inner),
        entry(Kind::DownWeight, I8, ch, inner),
        entry(Kind::DownMult, I32, 1, ch),
        entry(Kind::DownBias, I32, 1, ch),
    ];
    list[..7].copy_from_slice(&first);
    list[7..].copy_from_slice(&second);
    list
}

/// Payload alignment in the file.
pub const ALIGN: usize = 16;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 112;
/// Bytes of one entry of the tensor table.
pub const ENTRY_LEN: usize = 20;

/// `n` rounded up to the payload alignment.
#[must_use]
pub const fn align_up(n: usize) -> usize {
    n.div_ceil(ALIGN) * ALIGN
}

/// Offset of the first payload with `tensors` entries in the table.
#[must_use]
pub const fn payload_start(tensors: usize) -> usize {
    align_up(HEADER_LEN + tensors * ENTRY_LEN)
}
