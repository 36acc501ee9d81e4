//! Value ranges inside the tensors: what makes overflow and out-of-range indices impossible at run time.

use super::{Block, FormatError, GatedMlp, Kind, Matrix, ModelView, layout, params};

/// Checks all values of `view`, whose table has been checked.
pub(super) fn check(view: &ModelView<'_>) -> Result<(), FormatError> {
    let c = *view.config();
    let global = view.global(Kind::Global);
    range(view, global, "global", 0, 1, i64::from(i16::MAX))?;
    range(view, global, "global", 1, 0, 48)?;
    weights(view, view.global(Kind::HeadWeight), "head weight")?;
    weights(view, view.global(Kind::QWeight), "q weight")?;
    let heads = view.heads();
    let limit = 1 << 31;
    let rows = heads.weights.chunks_exact(usize::from(c.channels).max(1));
    for (n, (row, &bias)) in rows.zip(heads.bias).enumerate() {
        bound("head", n, row, bias, limit)?;
    }
    for g in 0..usize::from(c.groupings) {
        groups(view, g)?;
    }
    if view.group_rows() > usize::from(u16::MAX) {
        let offset = view.payload(view.global(Kind::Groups)).1;
        return Err(FormatError::Value { tensor: "groups", offset, found: view.group_rows() as i64, min: 0, max: i64::from(u16::MAX) });
    }
    for m in 0..c.modules() {
        for l in 0..c.layers(m) {
            let at = view.block_index(m, l);
            let mlp_at = if view.block_is_double() { at + 7 } else { at };
            if c.has_attention() {
                for i in [params::M_IN, params::M_QKV, params::M_QKV + 1, params::M_QKV + 2, params::M_OUT] {
                    range(view, at, "attention params", i, 1, i64::from(i16::MAX))?;
                }
                range(view, at, "attention params", params::M_SCORE, 0, i64::from(i32::MAX))?;
                shifts(view, at, "attention params")?;
            } else if c.token_inner > 0 {
                range(view, at, "token mlp params", params::M_IN, 1, i64::from(i16::MAX))?;
                shifts(view, at, "token mlp params")?;
                range(view, at, "token mlp params", params::GATE_SHIFT, 0, 4)?;
            }
            range(view, mlp_at, "mlp params", params::M_IN, 1, i64::from(i16::MAX))?;
            shifts(view, mlp_at, "mlp params")?;
            range(view, mlp_at, "mlp params", params::GATE_SHIFT, 0, 4)?;
            if matches!(c.mixer, crate::Mixer::GroupSum) {
                for g in 0..usize::from(c.groupings) {
                    range(view, mlp_at, "mlp params", params::M_GROUP + g, 1, i64::from(i16::MAX))?;
                }
            }
            for index in at..at + layout::block_count(&c) {
                if is_weight(view, index) {
                    weights(view, index, "block weight")?;
                }
            }
            let Block { attention, token_mlp, mlp } = view.block(m, l);
            if let Some(a) = attention {
                matrix("qkv", &a.qkv)?;
                matrix("out", &a.out)?;
            }
            for GatedMlp { up, down, .. } in token_mlp.iter().chain([&mlp]) {
                matrix("up", up)?;
                matrix("down", down)?;
            }
        }
    }
    if let Some(test) = view.self_test()
        && (test.tokens.len() != usize::from(c.tokens) || test.tokens.iter().any(|&t| u16::from(t) >= c.vocab))
    {
        return Err(FormatError::Field {
            field: "self-test tokens",
            offset: view.bytes().len(),
            found: test.tokens.len() as u64,
            expected: u64::from(c.tokens),
        });
    }
    Ok(())
}

impl ModelView<'_> {
    /// Whether a block has a sublayer before its gated MLP over channels.
    fn block_is_double(&self) -> bool {
        self.config().has_attention() || self.config().token_inner > 0
    }
}

fn is_weight(view: &ModelView<'_>, index: usize) -> bool {
    // The dtype byte of the entry: the only i8 tensors of a block are weights.
    view.bytes().get(layout::HEADER_LEN + index * layout::ENTRY_LEN + 3) == Some(&(super::DType::I8 as u8))
}

fn weights(view: &ModelView<'_>, index: usize, tensor: &'static str) -> Result<(), FormatError> {
    let (bytes, offset) = view.payload(index);
    match bytes.iter().position(|&b| b == 0x80) {
        Some(i) => Err(FormatError::Value { tensor, offset: offset + i, found: -128, min: -127, max: 127 }),
        None => Ok(()),
    }
}

fn range(view: &ModelView<'_>, index: usize, tensor: &'static str, position: usize, min: i64, max: i64) -> Result<(), FormatError> {
    let values: &[i32] = view.typed(index);
    let found = values.get(position).map_or(i64::MIN, |&v| i64::from(v));
    if (min..=max).contains(&found) {
        Ok(())
    } else {
        Err(FormatError::Value { tensor, offset: view.payload(index).1 + 4 * position, found, min, max })
    }
}

fn shifts(view: &ModelView<'_>, index: usize, tensor: &'static str) -> Result<(), FormatError> {
    range(view, index, tensor, params::FIRST_SHIFT, 0, 24)?;
    range(view, index, tensor, params::SECOND_SHIFT, 0, 24)?;
    range(view, index, tensor, params::RESIDUAL_SHIFT, 0, 12)
}

fn bound(tensor: &'static str, channel: usize, row: &[i8], bias: i32, allowed: u64) -> Result<(), FormatError> {
    let sum: u64 = row.iter().map(|w| u64::from(w.unsigned_abs())).sum();
    let bound = 128 * sum + u64::from(bias.unsigned_abs());
    if bound < allowed { Ok(()) } else { Err(FormatError::Overflow { tensor, channel, bound, allowed }) }
}

fn matrix(tensor: &'static str, m: &Matrix<'_>) -> Result<(), FormatError> {
    let channels = m.weights.chunks_exact(m.k.max(1)).zip(m.bias).zip(m.mult);
    for (n, ((row, &bias), &mult)) in channels.enumerate() {
        bound(tensor, n, row, bias, 1 << (31 - m.shift))?;
        if mult < 0 {
            return Err(FormatError::Value { tensor, offset: 0, found: i64::from(mult), min: 0, max: i64::from(i32::MAX) });
        }
    }
    Ok(())
}

fn groups(view: &ModelView<'_>, g: usize) -> Result<(), FormatError> {
    let ids = view.groups(g);
    let c = view.config();
    let offset = view.payload(view.global(Kind::Groups)).1 + 2 * g * ids.len();
    for (i, &id) in ids.iter().enumerate() {
        let value = |found: usize, max: usize| FormatError::Value {
            tensor: "groups",
            offset: offset + 2 * i,
            found: found as i64,
            min: 0,
            max: max as i64,
        };
        if usize::from(id) >= ids.len() {
            return Err(value(usize::from(id), ids.len() - 1));
        }
        // Sums of at most 256 rows of int8 fit into 16 bits. Quadratic, but without memory; groups are few.
        let rows = ids.iter().filter(|&&other| other == id).count() * if view.merges_fields(g) { usize::from(c.fields) } else { 1 };
        if rows > 256 && matches!(c.mixer, crate::Mixer::GroupSum) {
            return Err(value(rows, 256));
        }
    }
    Ok(())
}
