//! SiLU as lines: a product, an addition and a shift, for cores that look a table up one value at a time.
#![cfg_attr(not(hrm_isa = "dsp"), allow(dead_code, reason = "each instruction set uses some"))]

use super::reference;
use super::tables::{SILU_BASE, SILU_SLOPE};

/// `silu` of a gate `g` of gate shift `k` as lines: `(line[0] + line[1] * g) >> 16` with line `64 + ((g << k) >> 7)`, clamped to 0 to
/// 127. Both signs have theirs, in units of `g` itself, with a positive gate in the slope and all roundings' halves in the first number; pieces
/// meet where they end, so that it does not matter on which side of a negative gate's end the line is.
pub(super) static LINES: [[[i32; 2]; 128]; 5] = {
    let mut lines = [[[0; 2]; 128]; 5];
    let mut k = 0;
    while k < 5 {
        let mut i = 0;
        while i < 64 {
            let (base, mut slope) = (SILU_BASE[i] as i32, SILU_SLOPE[i] as i32);
            let mut start = (base + 8) * 128 + 64 - slope * (i as i32 * 128) + (((1 << k) >> 1) << 11);
            if i == 63 {
                // Gates over the end have the last piece too, which gives one value all along.
                (start, slope) = (start + slope * (63 * 128), 0);
            }
            lines[k][64 + i] = [start << (5 - k), (slope + 2048) << 5];
            lines[k][63 - i] = [start << (5 - k), -(slope << 5)];
            i += 1;
        }
        k += 1;
    }
    lines
};

/// [`reference::glu`] for a gate and an up of 16 bits; `shift` is at most 4.
#[inline(always)]
pub(super) fn glu(gate: i32, up: i32, shift: u32, lines: &[[i32; 2]; 128]) -> i8 {
    let [start, slope] = lines[((gate >> (7 - shift)).clamp(-64, 63) + 64) as usize];
    let silu = (start + slope * gate) >> 16;
    reference::sat8((silu * up + (1 << 14)) >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every gate of every unit, with ups that show each bit of its silu.
    #[test]
    fn lines_give_what_reference_gives() {
        for shift in 0..5 {
            for gate in i16::MIN..=i16::MAX {
                for up in [i16::MIN, -129, 1, 517, i16::MAX] {
                    let found = glu(gate.into(), up.into(), shift, &LINES[shift as usize]);
                    assert_eq!(found, reference::glu(gate, up, shift), "gate {gate}, up {up}, shift {shift}");
                }
                let [start, slope] = LINES[shift as usize][((i32::from(gate) >> (7 - shift)).clamp(-64, 63) + 64) as usize];
                assert_eq!((start + slope * i32::from(gate)) >> 16, i32::from(reference::silu(gate, shift)), "{gate} {shift}");
            }
        }
    }
}
