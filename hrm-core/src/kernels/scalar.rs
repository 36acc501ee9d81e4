//! Cores without SIMD (any host): tiles of 4 rows by 4 channels, so that a loaded value is used four
//! times; bit-identical to [`super::reference`]. Weights are read in place.
#![allow(unsafe_code)]

use super::square::{SIDE, Square};
use super::tiled;

pub use super::reference::{add, add_norm, glu_rows, group_sums, inject, pack, packed_words, scale_down, view8_slice};

struct Scalar;

impl Square for Scalar {
    #[inline(always)]
    unsafe fn panel(sums: &mut [i32; SIDE * SIDE], input: &[i8], weights: [&[i8]; SIDE]) {
        panel(input, weights, sums);
    }
}

#[inline(never)]
fn panel(input: &[i8], [w0, w1, w2, w3]: [&[i8]; 4], sums: &mut [i32; SIDE * SIDE]) {
    let mut acc = [[0i32; SIDE]; SIDE];
    let weights = w0.iter().zip(w1).zip(w2.iter().zip(w3));
    for (a, ((&w0, &w1), (&w2, &w3))) in input.chunks_exact(SIDE).zip(weights) {
        for (acc, &a) in acc.iter_mut().zip(a) {
            for (acc, w) in acc.iter_mut().zip([w0, w1, w2, w3]) {
                *acc += i32::from(a) * i32::from(w);
            }
        }
    }
    for (sums, acc) in sums.chunks_exact_mut(SIDE).zip(acc) {
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum += acc;
        }
    }
}

tiled::calls!(Scalar);
