//! The `.hrm` file: header, tensor table, 16-byte aligned payloads, CRC-32 over everything. `docs/format.md` is the specification.
//!
//! [`ModelView::new_checked`] reads a file in place. After it has returned `Ok`, no accessor can fail or panic and no
//! accumulator of the network can overflow.

mod error;
mod header;
pub mod layout;
mod values;
#[cfg(feature = "std")]
mod write;

pub use error::FormatError;
pub use header::{Header, MAGIC, TaskKind, VERSION};
pub use layout::{DType, Expected, Kind};
#[cfg(feature = "std")]
pub use write::{AlignedBytes, ModelWriter};

use crate::config::{Config, Start};
use layout::{ENTRY_LEN, HEADER_LEN, params};

#[cfg(target_endian = "big")]
compile_error!("model files are little endian and read in place: big-endian targets are not supported");

/// CRC-32 (ISO-HDLC, the one of zip and Ethernet).
pub(crate) const CRC: crc::Crc<u32, crc::NoTable> = crc::Crc::<u32, crc::NoTable>::new(&crc::CRC_32_ISO_HDLC);

/// One int8 matrix with its requantisation, `[n, k]` row-major.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Output channels.
    pub n: usize,
    /// Input columns.
    pub k: usize,
    /// `l` of the requantisation.
    pub shift: u32,
    /// `[n, k]`, -127..127.
    pub weights: &'a [i8],
    /// `m` per channel.
    pub mult: &'a [i32],
    /// Bias per channel, accumulator units, rounding folded in.
    pub bias: &'a [i32],
}

/// Parameters of the gated MLP of one sublayer.
#[derive(Clone, Copy, Debug)]
pub struct GatedMlp<'a> {
    /// View multiplier of the input.
    pub m_in: i16,
    /// View multipliers of the group sums.
    pub m_group: [i16; 8],
    /// Right shift of the stream before the output is added.
    pub residual_shift: u32,
    /// Unit of the gate: `2^(shift - 10)`.
    pub gate_shift: u32,
    /// First matrix, gate rows then up rows.
    pub up: Matrix<'a>,
    /// Second matrix.
    pub down: Matrix<'a>,
}

/// Parameters of one attention sublayer.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// View multiplier of the input.
    pub m_in: i16,
    /// View multipliers of q, k, v.
    pub m_qkv: [i16; 3],
    /// View multiplier of the attention output.
    pub m_out: i16,
    /// Softmax multiplier `m_s`.
    pub m_score: u32,
    /// Right shift of the stream before the output is added.
    pub residual_shift: u32,
    /// q, k, v.
    pub qkv: Matrix<'a>,
    /// Output projection.
    pub out: Matrix<'a>,
}

/// One block: at most one mixing sublayer, then the gated MLP over channels.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Attention, for the attention mixers.
    pub attention: Option<Attention<'a>>,
    /// Gated MLP over tokens, for `token-mlp`.
    pub token_mlp: Option<GatedMlp<'a>>,
    /// Gated MLP over channels.
    pub mlp: GatedMlp<'a>,
}

/// The head and the Q head.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// View multiplier of z_H for the head.
    pub m_head: i16,
    /// `[head width, C]`.
    pub weights: &'a [i8],
    /// `[head width]`.
    pub bias: &'a [i32],
    /// `[Q outputs, C]`.
    pub q_weights: &'a [i8],
    /// `[Q outputs]`.
    pub q_bias: &'a [i64],
    /// Right shift of the Q accumulators.
    pub q_shift: u32,
    /// Value of one unit of a logit.
    pub logit_scale: f32,
    /// Value of one unit of a Q output.
    pub q_scale: f32,
}

/// A run that a device can check after flashing: from `seed`, `segments` segments on `tokens` end in a state of this hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTest<'a> {
    /// Seed of the run.
    pub seed: u64,
    /// Segments to run.
    pub segments: u16,
    /// Expected state hash after the last.
    pub hash: u64,
    /// Input tokens `[S]`.
    pub tokens: &'a [u8],
}

/// A checked model file, read in place.
#[derive(Clone, Copy, Debug)]
pub struct ModelView<'a> {
    bytes: &'a [u8],
    header: Header,
}

impl<'a> ModelView<'a> {
    /// Checks `bytes` completely: lengths, checksum, architecture, tensor table, value ranges and accumulator bounds.
    ///
    /// # Errors
    /// The first [`FormatError`] found. `bytes` must start at a multiple of 16 in memory.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let header = Header::parse(bytes)?;
        let remainder = bytes.as_ptr().align_offset(layout::ALIGN);
        if remainder != 0 {
            return Err(FormatError::Misaligned { remainder: layout::ALIGN - remainder.min(layout::ALIGN) });
        }
        let view = Self { bytes, header };
        view.check_table()?;
        values::check(&view)?;
        Ok(view)
    }

    /// Reads the file at the start of a larger `region`, such as the part of flash that is kept for a model.
    ///
    /// # Errors
    /// As [`ModelView::new_checked`], for the length that the file announces.
    pub fn in_region(region: &'a [u8]) -> Result<Self, FormatError> {
        let length = region.get(12..16).and_then(|b| b.first_chunk()).map_or(0, |&b| u32::from_le_bytes(b) as usize);
        // A length that cannot be is left to the checks of the whole.
        Self::new_checked(region.get(..length).filter(|f| f.len() >= HEADER_LEN).unwrap_or(region))
    }

    /// The architecture.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.header.config
    }

    /// All header fields.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The whole file.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The checksum stored in the file: it identifies the model.
    #[must_use]
    pub const fn crc(&self) -> u32 {
        self.header.crc
    }

    fn check_table(&self) -> Result<(), FormatError> {
        let required = layout::expected(&self.header.config, self.header.q_outputs()).count();
        let count = usize::from(self.header.tensors);
        let field = |field, offset, found, expected| Err(FormatError::Field { field, offset, found, expected });
        if count < required || count > required + 2 {
            return field("tensors", 22, count as u64, required as u64);
        }
        let start = layout::payload_start(count);
        if self.bytes.len() < start {
            return Err(FormatError::Truncated { found: self.bytes.len(), needed: start });
        }
        let mut payload = start;
        let mut wanted = layout::expected(&self.header.config, self.header.q_outputs());
        let mut last_optional = 0u8;
        for index in 0..count {
            let at = HEADER_LEN + index * ENTRY_LEN;
            let Some(entry) = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<ENTRY_LEN>()) else {
                return Err(FormatError::Truncated { found: self.bytes.len(), needed: start });
            };
            let word = |i: usize| u32::from_le_bytes([entry[i], entry[i + 1], entry[i + 2], entry[i + 3]]);
            let expected = match wanted.next() {
                Some(e) => e,
                None => {
                    // Optional tensors: text or self-test, each at most once and in this order, of any length.
                    let kind = match entry[0] {
                        k if k == Kind::Record as u8 && last_optional < k => Kind::Record,
                        k if k == Kind::SelfTest as u8 && last_optional < k => Kind::SelfTest,
                        k => return field("tensor kind", at, u64::from(k), Kind::Record as u64),
                    };
                    last_optional = kind as u8;
                    Expected { kind, module: 0, layer: 0, dtype: DType::I8, dims: [1, word(8) as usize] }
                }
            };
            let bytes = expected.dims[0].saturating_mul(expected.dims[1]).saturating_mul(expected.dtype.size());
            let facts = [
                ("tensor kind", 0, u64::from(entry[0]), expected.kind as u64),
                ("tensor module", 1, u64::from(entry[1]), u64::from(expected.module)),
                ("tensor layer", 2, u64::from(entry[2]), u64::from(expected.layer)),
                ("tensor dtype", 3, u64::from(entry[3]), expected.dtype as u64),
                ("tensor rows", 4, u64::from(word(4)), expected.dims[0] as u64),
                ("tensor columns", 8, u64::from(word(8)), expected.dims[1] as u64),
                ("tensor offset", 12, u64::from(word(12)), payload as u64),
                ("tensor bytes", 16, u64::from(word(16)), bytes as u64),
            ];
            for (name, offset, found, expected) in facts {
                if found != expected {
                    return field(name, at + offset, found, expected);
                }
            }
            let end = payload.saturating_add(bytes);
            if end > self.bytes.len() {
                return Err(FormatError::Truncated { found: self.bytes.len(), needed: end });
            }
            payload = layout::align_up(end);
        }
        if payload != self.bytes.len() {
            return Err(FormatError::Trailing { found: self.bytes.len(), needed: payload });
        }
        Ok(())
    }

    /// Payload of table entry `index` and where it starts. The table has been checked: an index outside it gives nothing.
    fn payload(&self, index: usize) -> (&'a [u8], usize) {
        let at = HEADER_LEN + index * ENTRY_LEN;
        let word = |i: usize| match self.bytes.get(at + i..at + i + 4) {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
            _ => 0,
        };
        let (offset, len) = (word(12), word(16));
        (self.bytes.get(offset..offset + len).unwrap_or(&[]), offset)
    }

    fn typed<T: bytemuck::AnyBitPattern>(&self, index: usize) -> &'a [T] {
        bytemuck::try_cast_slice(self.payload(index).0).unwrap_or(&[])
    }

    /// The first elements of a tensor that has at least so many: the table has been checked.
    fn leading<T: bytemuck::AnyBitPattern, const N: usize>(&self, index: usize) -> [T; N] {
        self.typed(index).first_chunk().copied().unwrap_or([T::zeroed(); N])
    }

    fn global(&self, kind: Kind) -> usize {
        layout::expected(&self.header.config, self.header.q_outputs()).position(|e| e.kind == kind).unwrap_or(usize::MAX / ENTRY_LEN / 2)
    }

    /// `[input classes, C]` Q5.10.
    #[must_use]
    pub fn embed(&self) -> &'a [i16] {
        self.typed(self.global(Kind::Embed))
    }

    /// `[P, C]` Q5.10; empty without prefix tokens.
    #[must_use]
    pub fn prefix(&self) -> &'a [i16] {
        if self.header.config.prefix > 0 { self.typed(self.global(Kind::Prefix)) } else { &[] }
    }

    /// Start vectors of z_H and z_L, `[C]` each; empty with random starts.
    #[must_use]
    pub fn init(&self) -> (&'a [i16], &'a [i16]) {
        let both = match self.header.config.start {
            Start::Fixed => self.typed(self.global(Kind::Init)).split_at_checked(usize::from(self.header.config.channels)),
            Start::Random => None,
        };
        both.unwrap_or((&[], &[]))
    }

    /// Group ids of grouping `g`, `[S]`.
    #[must_use]
    pub fn groups(&self, g: usize) -> &'a [u16] {
        let s = usize::from(self.header.config.tokens);
        if g < usize::from(self.header.config.groupings) {
            self.typed(self.global(Kind::Groups)).get(g * s..(g + 1) * s).unwrap_or(&[])
        } else {
            &[]
        }
    }

    /// Whether grouping `g` merges the fields of a token.
    #[must_use]
    pub const fn merges_fields(&self, g: usize) -> bool {
        self.header.merge_fields >> g & 1 == 1
    }

    /// Cosines and sines, Q15, `[P + S, d / 2]` each; empty without rope.
    #[must_use]
    pub fn rope(&self) -> (&'a [i16], &'a [i16]) {
        if self.header.config.rope {
            let all = self.typed(self.global(Kind::Rope));
            all.split_at(all.len() / 2)
        } else {
            (&[], &[])
        }
    }

    /// Head and Q head.
    #[must_use]
    pub fn heads(&self) -> Heads<'a> {
        let at = self.global(Kind::HeadWeight);
        let global: [i32; 4] = self.leading(at + 4);
        let scales: [f32; 2] = self.leading(at + 5);
        Heads {
            m_head: global[0] as i16,
            weights: self.typed(at),
            bias: self.typed(at + 1),
            q_weights: self.typed(at + 2),
            q_bias: self.typed(at + 3),
            q_shift: global[1] as u32,
            logit_scale: scales[0],
            q_scale: scales[1],
        }
    }

    fn matrix(&self, first: usize, shift: i32) -> Matrix<'a> {
        let bias: &[i32] = self.typed(first + 2);
        let weights: &[i8] = self.typed(first);
        Matrix { n: bias.len(), k: weights.len() / bias.len().max(1), shift: shift as u32, weights, mult: self.typed(first + 1), bias }
    }

    fn gated(&self, first: usize) -> GatedMlp<'a> {
        let p: [i32; params::LEN] = self.leading(first);
        let mut m_group = [0; 8];
        for (m, &v) in m_group.iter_mut().zip(&p[params::M_GROUP..]) {
            *m = v as i16;
        }
        GatedMlp {
            m_in: p[params::M_IN] as i16,
            m_group,
            gate_shift: p[params::GATE_SHIFT] as u32,
            residual_shift: p[params::RESIDUAL_SHIFT] as u32,
            up: self.matrix(first + 1, p[params::FIRST_SHIFT]),
            down: self.matrix(first + 4, p[params::SECOND_SHIFT]),
        }
    }

    /// Table index of the first tensor of a block.
    fn block_index(&self, module: usize, layer: usize) -> usize {
        let c = &self.header.config;
        let before = if module == 0 { 0 } else { c.layers(0) };
        layout::global_count(c) + (before + layer) * layout::block_count(c)
    }

    /// Block `layer` of stored module `module` (0 = L or shared, 1 = H). Both must be inside the configuration.
    #[must_use]
    pub fn block(&self, module: usize, layer: usize) -> Block<'a> {
        let c = &self.header.config;
        let at = self.block_index(module.min(c.modules() - 1), layer.min(c.layers(module) - 1));
        if c.has_attention() {
            let p: [i32; params::LEN] = self.leading(at);
            let m = |i: usize| p[i] as i16;
            let attention = Attention {
                m_in: m(params::M_IN),
                m_qkv: [m(params::M_QKV), m(params::M_QKV + 1), m(params::M_QKV + 2)],
                m_out: m(params::M_OUT),
                m_score: p[params::M_SCORE] as u32,
                residual_shift: p[params::RESIDUAL_SHIFT] as u32,
                qkv: self.matrix(at + 1, p[params::FIRST_SHIFT]),
                out: self.matrix(at + 4, p[params::SECOND_SHIFT]),
            };
            Block { attention: Some(attention), token_mlp: None, mlp: self.gated(at + 7) }
        } else if c.token_inner > 0 {
            Block { attention: None, token_mlp: Some(self.gated(at)), mlp: self.gated(at + 7) }
        } else {
            Block { attention: None, token_mlp: None, mlp: self.gated(at) }
        }
    }

    /// The training record, if the file has one and it is UTF-8.
    #[must_use]
    pub fn record(&self) -> Option<&'a str> {
        core::str::from_utf8(self.optional(Kind::Record)?).ok()
    }

    /// The self-test vector, if the file has one.
    #[must_use]
    pub fn self_test(&self) -> Option<SelfTest<'a>> {
        let bytes = self.optional(Kind::SelfTest)?;
        let (&seed, rest) = bytes.split_first_chunk()?;
        let (&hash, rest) = rest.split_first_chunk()?;
        let (&segments, rest) = rest.split_first_chunk()?;
        let (_, tokens) = rest.split_first_chunk::<2>()?;
        let (seed, hash, segments) = (u64::from_le_bytes(seed), u64::from_le_bytes(hash), u16::from_le_bytes(segments));
        Some(SelfTest { seed, segments, hash, tokens })
    }

    fn optional(&self, kind: Kind) -> Option<&'a [u8]> {
        let required = layout::expected(&self.header.config, self.header.q_outputs()).count();
        (required..usize::from(self.header.tensors))
            .find(|i| self.bytes.get(HEADER_LEN + i * ENTRY_LEN) == Some(&(kind as u8)))
            .map(|i| self.payload(i).0)
    }
}

impl SelfTest<'_> {
    /// Bytes before the tokens: seed u64, hash u64, segments u16, two zero bytes.
    pub const HEAD: usize = 20;
}
