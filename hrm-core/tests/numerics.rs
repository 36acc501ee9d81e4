//! The integer functions against binary64: the errors that `docs/numerics.md` states.
#![cfg(feature = "std")]

use hrm_core::kernels::reference::{attend, glu, isqrt, norm_factor, requant, rope, silu, softmax_weight, view8};
use hrm_core::kernels::{Kernel, tables::EXP2};
use hrm_core::rng::{Purpose, Stream};

#[test]
fn silu_is_right_to_a_step_and_a_half() {
    let step = if cfg!(miri) { 977 } else { 1 };
    let mut worst = 0f64;
    for shift in 1..=4 {
        for g in (i16::MIN..=i16::MAX).step_by(step) {
            let unit = f64::from(1 << shift) / 1024.0;
            let x = f64::from(g) * unit;
            let error = (f64::from(silu(g, shift)) * unit - x / (1.0 + (-x).exp())).abs();
            assert!(error <= 3.0e-3 + unit / 2.0, "silu({x}), shift {shift}: off by {error}");
        }
    }
    for g in (i16::MIN..=i16::MAX).step_by(step) {
        let x = f64::from(g) / 1024.0;
        let error = (f64::from(silu(g, 0)) / 1024.0 - x / (1.0 + (-x).exp())).abs();
        // Beyond 8 the correction stays at D(8), three steps, and the true one goes to 0.
        let allowed = if x.abs() > 8.0 { 3.0e-3 } else { 1.5e-3 };
        assert!(error <= allowed, "silu({x}): off by {error}");
        if x.abs() <= 8.0 {
            worst = worst.max(error);
        }
    }
    assert!(worst > 1e-4, "the truth is not exact in Q5.10");
}

#[test]
fn views_and_requantisation_round_to_the_nearest() {
    let mut s = Stream::new(1, Purpose::Start, 0);
    for _ in 0..if cfg!(miri) { 50 } else { 100_000 } {
        let (x, m) = (s.next_u32() as i16, (s.next_u32() as i16 & i16::MAX).max(1));
        let exact = f64::from(x) * f64::from(m) / 32768.0;
        assert!((f64::from(view8(x, m)) - exact.clamp(-128.0, 127.0)).abs() <= 0.5, "{x} {m}");
        let (shift, mult) = (s.next_u32() % 8, s.next_u32() as i32 & i32::MAX);
        let acc = s.next_u32() as i32 >> 8;
        let exact = (f64::from(acc) * f64::from(1 << shift) * f64::from(mult) / 4_294_967_296.0).floor();
        assert_eq!(f64::from(requant(acc, shift, mult)), exact.clamp(-32768.0, 32767.0));
        let (g, u) = (s.next_u32() as i16, s.next_u32() as i16);
        let shift = s.next_u32() % 5;
        let exact = f64::from(silu(g, shift)) * f64::from(u) / 32768.0;
        assert!((f64::from(glu(g, u, shift)) - exact.clamp(-128.0, 127.0)).abs() <= 0.5, "{g} {u}");
    }
    assert_eq!([view8(i16::MIN, i16::MAX), view8(i16::MAX, i16::MAX), view8(-1, 1), view8(16384, 1)], [-128, 127, 0, 1]);
    assert_eq!(
        [requant(i32::MIN, 0, i32::MAX), requant(i32::MAX, 0, i32::MAX), requant(-1, 0, 1), requant(5, 24, 0)],
        [-32768, 32767, -1, 0]
    );
}

#[test]
fn square_roots_are_exact() {
    for v in [0, 1, 2, 3, 4, u32::MAX, u32::MAX - 1]
        .into_iter()
        .chain((1..65536).step_by(if cfg!(miri) { 4099 } else { 1 }).flat_map(|r| [r * r - 1, r * r, r * r + 1]))
    {
        let r = u64::from(isqrt(v));
        assert!(r * r <= u64::from(v) && (r + 1) * (r + 1) > u64::from(v), "isqrt({v}) = {r}");
    }
}

#[test]
fn norms_are_right_to_half_a_step_and_half_a_thousandth() {
    let mut s = Stream::new(2, Purpose::Start, 0);
    for round in 0..if cfg!(miri) { 5 } else { 2000 } {
        let n = [4, 20, 48, 97, 512, 1024][round % 6];
        let deviation = 2f64.powf(f64::from(s.next_u32() % 1600) / 100.0 - 9.0);
        let x: Vec<i16> = (0..n).map(|_| (f64::from(s.next_normals()[0]) * deviation).clamp(-32768.0, 32767.0) as i16).collect();
        let mut y = x.clone();
        Kernel::REFERENCE.add_norm(&mut y, &vec![0; n], n).unwrap();
        let mean: f64 = x.iter().map(|&x| (f64::from(x) / 1024.0).powi(2)).sum::<f64>() / n as f64;
        let factor = 1.0 / (mean + 1e-5).sqrt();
        for (&x, &y) in x.iter().zip(&y) {
            let (exact, found) = (f64::from(x) / 1024.0 * factor, f64::from(y) / 1024.0);
            // The integer mean is rounded down and 1e-5 is 10.49: up to 1.49 of `v` are lost, half of that of its root.
            let relative = 2f64.powi(-14) + 0.75 / (mean * 1_048_576.0 + 9.0);
            assert!(
                (exact - found).abs() <= 0.5 / 1024.0 + relative * exact.abs() + 1e-9,
                "{x}: {found}, expected {exact}, deviation {deviation}"
            );
        }
    }
    // The ends: all zero, and all at the lower bound.
    assert_eq!(norm_factor(0, 48).1, 6);
    let mut x = vec![i16::MIN; 1024];
    Kernel::REFERENCE.add_norm(&mut x, &vec![i16::MIN; 1024], 1024).unwrap();
    assert!(x.iter().all(|&x| (-1025..=-1023).contains(&x)), "{}", x[0]);
    let mut x = vec![0; 1024];
    Kernel::REFERENCE.add_norm(&mut x, &vec![0; 1024], 1024).unwrap();
    assert!(x.iter().all(|&x| x == 0));
}

#[test]
fn softmax_weights_are_powers_of_two_to_half_a_step() {
    let m = 1 << 16;
    for below in 0..=256 * 16 {
        let t = f64::from(below) / 256.0;
        let exact = 8192.0 * (-t).exp2();
        let found = f64::from(softmax_weight(below, m));
        // Half a step of the table, shifted, and half a step of the rounding; nothing beyond 2^-14.
        assert!((found - exact).abs() <= if t < 14.0 { 1.0 } else { 0.51 }, "{t}: {found}, expected {exact}");
    }
    assert_eq!(softmax_weight(0, m), i32::from(EXP2[0]));
    assert_eq!(softmax_weight(u32::MAX, u32::MAX), 0);
}

#[test]
fn attention_is_the_float_attention_to_a_step() {
    let mut s = Stream::new(3, Purpose::Start, 0);
    for _ in 0..if cfg!(miri) { 2 } else { 200 } {
        let (d, rows) = (2 + 2 * (s.next_u32() as usize % 16), 1 + s.next_u32() as usize % 60);
        let mut bytes = |n: usize| (0..n).map(|_| (s.next_normals()[0] / 32).clamp(-128, 127) as i8).collect::<Vec<i8>>();
        let (q, k, v) = (bytes(d), bytes(rows * d), bytes(rows * d));
        let m_score = 16_777_216.0 * std::f64::consts::LOG2_E / ((d as f64).sqrt() * 1008.0);
        let keys: Vec<u16> = (0..rows as u16).rev().collect();
        let (mut weights, mut out) = (vec![0; rows], vec![0; d]);
        // An output view of 1: o is Q7 of the value's step.
        attend(&q, &k, &v, (d, 0), &keys, m_score as u32, 256, &mut weights, &mut out).unwrap();
        let scores: Vec<f64> = (0..rows)
            .map(|r| (0..d).map(|i| f64::from(q[i]) * f64::from(k[r * d + i])).sum::<f64>() / ((d as f64).sqrt() * 1008.0))
            .collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = p.iter().sum();
        for (i, &o) in out.iter().enumerate() {
            let exact: f64 = (0..rows).map(|r| p[r] / total * f64::from(v[r * d + i])).sum();
            assert!((f64::from(o) - exact).abs() <= 1.0, "{o}, expected {exact}");
        }
    }
}

#[test]
fn rotations_keep_lengths_and_angles() {
    let (c, s): (Vec<i16>, Vec<i16>) = (0..8)
        .map(|i| f64::from(i) * 0.7)
        .map(|a| (((a.cos() * 32768.0).round() as i32).min(32767) as i16, ((a.sin() * 32768.0).round() as i32).min(32767) as i16))
        .unzip();
    let x: Vec<i16> = (0..16).map(|i| (i * 777 % 4096 - 2048) as i16).collect();
    let mut y = x.clone();
    rope(&mut y, &c, &s);
    for i in 0..8 {
        let angle = f64::from(i as u8) * 0.7;
        let (a, b) = (f64::from(x[i]), f64::from(x[i + 8]));
        assert!((f64::from(y[i]) - (a * angle.cos() - b * angle.sin())).abs() < 0.8);
        assert!((f64::from(y[i + 8]) - (b * angle.cos() + a * angle.sin())).abs() < 0.8);
    }
}
