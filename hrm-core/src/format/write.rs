//! Writing a `.hrm` file (feature `std`): the other half of the reader, from the same table of tensors.

use std::string::String;
use std::vec::Vec;

use super::header::checksum;
use super::layout::{self, DType, ENTRY_LEN, HEADER_LEN, align_up, payload_start};
use super::{Expected, FormatError, Header, Kind, ModelView, SelfTest};

/// Collects the tensors of a model and puts the file together.
#[derive(Debug)]
pub struct ModelWriter {
    header: Header,
    payloads: Vec<(Expected, Vec<u8>)>,
    record: Option<String>,
    self_test: Option<Vec<u8>>,
}

impl ModelWriter {
    /// A file with this header; `tensors` and `crc` of the header are ignored.
    ///
    /// # Errors
    /// The architecture is impossible.
    pub fn new(header: Header) -> Result<Self, FormatError> {
        header.config.validate().map_err(FormatError::Config)?;
        let payloads = layout::expected(&header.config, header.q_outputs()).map(|e| (e, Vec::new())).collect();
        Ok(Self { header, payloads, record: None, self_test: None })
    }

    /// The tensors that [`ModelWriter::set`] must be given, in order.
    pub fn expected(&self) -> impl Iterator<Item = &Expected> {
        self.payloads.iter().map(|(e, _)| e)
    }

    /// Sets a tensor from integers, which must be as many as its shape says and fit to its element type.
    ///
    /// # Errors
    /// The model has no such tensor, or the length or a value does not fit.
    pub fn set(&mut self, kind: Kind, module: usize, layer: usize, values: &[i64]) -> Result<(), FormatError> {
        let entry = self
            .payloads
            .iter_mut()
            .find(|(e, _)| e.kind == kind && usize::from(e.module) == module && usize::from(e.layer) == layer)
            .ok_or(FormatError::Field { field: "tensor kind", offset: 0, found: kind as u64, expected: 0 })?;
        let (expected, bytes) = (entry.0, &mut entry.1);
        let count = expected.dims[0] * expected.dims[1];
        if values.len() != count {
            return Err(FormatError::Field { field: "tensor length", offset: 0, found: values.len() as u64, expected: count as u64 });
        }
        let (min, max) = match expected.dtype {
            DType::I8 => (-127, 127),
            DType::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
            DType::U16 => (0, i64::from(u16::MAX)),
            DType::I32 | DType::F32 => (i64::from(i32::MIN), i64::from(u32::MAX)),
            DType::I64 => (i64::MIN, i64::MAX),
        };
        bytes.clear();
        for (i, &v) in values.iter().enumerate() {
            if v < min || v > max {
                return Err(FormatError::Value { tensor: "written tensor", offset: i, found: v, min, max });
            }
            bytes.extend_from_slice(&v.to_le_bytes()[..expected.dtype.size()]);
        }
        Ok(())
    }

    /// Sets the two information-only scales: value of one unit of a logit and of a Q output.
    pub fn set_scales(&mut self, logit: f32, q: f32) {
        let bits = [i64::from(logit.to_bits()), i64::from(q.to_bits())];
        // The table always has the scales, and bit patterns fit.
        let _ = self.set(Kind::Scales, 0, 0, &bits);
    }

    /// Adds a training record.
    pub fn set_record(&mut self, text: &str) {
        self.record = Some(text.into());
    }

    /// Adds a self-test vector.
    pub fn set_self_test(&mut self, test: &SelfTest<'_>) {
        let mut bytes = Vec::with_capacity(SelfTest::HEAD + test.tokens.len());
        bytes.extend_from_slice(&test.seed.to_le_bytes());
        bytes.extend_from_slice(&test.hash.to_le_bytes());
        bytes.extend_from_slice(&test.segments.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(test.tokens);
        self.self_test = Some(bytes);
    }

    /// The finished file, checked as a reader would.
    ///
    /// # Errors
    /// A tensor was not set, or the reader refuses the result.
    pub fn finish(&self) -> Result<AlignedBytes, FormatError> {
        let mut entries: Vec<(Expected, &[u8])> = self.payloads.iter().map(|(e, b)| (*e, b.as_slice())).collect();
        let optional = [(Kind::Record, self.record.as_deref().map(str::as_bytes)), (Kind::SelfTest, self.self_test.as_deref())];
        for (kind, bytes) in optional {
            if let Some(bytes) = bytes {
                entries.push((Expected { kind, module: 0, layer: 0, dtype: DType::I8, dims: [1, bytes.len()] }, bytes));
            }
        }
        let mut header = self.header;
        header.tensors = entries.len() as u16;
        let mut out = header.encode().to_vec();
        let mut offset = payload_start(entries.len());
        for (e, bytes) in &entries {
            if bytes.len() != e.bytes() {
                return Err(FormatError::Field {
                    field: "tensor bytes",
                    offset: HEADER_LEN,
                    found: bytes.len() as u64,
                    expected: e.bytes() as u64,
                });
            }
            out.extend_from_slice(&[e.kind as u8, e.module, e.layer, e.dtype as u8]);
            for v in [e.dims[0], e.dims[1], offset, bytes.len()] {
                out.extend_from_slice(&(v as u32).to_le_bytes());
            }
            offset = align_up(offset + bytes.len());
        }
        debug_assert_eq!(out.len(), HEADER_LEN + entries.len() * ENTRY_LEN);
        out.resize(payload_start(entries.len()), 0);
        for (_, bytes) in &entries {
            out.extend_from_slice(bytes);
            out.resize(align_up(out.len()), 0);
        }
        let len = out.len() as u32;
        out[12..16].copy_from_slice(&len.to_le_bytes());
        let crc = checksum(&out);
        out[16..20].copy_from_slice(&crc.to_le_bytes());
        let aligned = AlignedBytes::new(&out);
        ModelView::new_checked(aligned.as_slice())?;
        Ok(aligned)
    }
}

/// Bytes that start at a multiple of 16, as [`ModelView::new_checked`] needs them.
#[derive(Clone, Debug)]
pub struct AlignedBytes {
    blocks: Vec<Aligned16>,
    len: usize,
}

#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(16))]
struct Aligned16([u8; 16]);

impl AlignedBytes {
    /// A copy of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut blocks = std::vec![Aligned16([0; 16]); bytes.len().div_ceil(16)];
        bytemuck::cast_slice_mut::<_, u8>(&mut blocks)[..bytes.len()].copy_from_slice(bytes);
        Self { blocks, len: bytes.len() }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[..self.len]
    }
}
