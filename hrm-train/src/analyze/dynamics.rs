//! Shape of the dynamics: what the Q head knows, what ratings cost, what one bit does, float against int8.

use serde_json::json;

use super::report::{Plot, Section, Table};
use super::stats::{auc, mean, quantile};
use super::subject::{Float, Subject};
use super::svg::{Chart, Mark};
use super::trace::{Trace, cosine, distance};
use super::{Lab, PAPER, SEGMENTS, percent};
use crate::run_config::resolve_threads;

const RATINGS: [(u32, u32); 5] = [(0, 0), (1, 9), (10, 99), (100, 999), (1000, u32::MAX)];

/// Reliability of the halt output: by tenths of its probability (count, mean probability, right).
pub(super) fn reliability(traces: &[Trace], segment: usize) -> Vec<(usize, f64, usize)> {
    let mut bins = vec![(0, 0.0, 0); 10];
    for t in traces {
        let p = 1.0 / (1.0 + (-t.q[segment - 1]).exp());
        let bin = &mut bins[((p * 10.0) as usize).min(9)];
        bin.0 += 1;
        bin.1 += p;
        bin.2 += usize::from(t.exact[segment - 1]);
    }
    bins.into_iter().map(|(n, p, right)| (n, if n > 0 { p / n as f64 } else { 0.0 }, right)).collect()
}

/// Distances of 0 are drawn here, on a logarithmic axis.
const NOTHING: f64 = 1e-6;

fn scientific(v: f64) -> String {
    match v {
        v if v.is_nan() => "unknown (no such run)".into(),
        0.0 => "0".into(),
        v => format!("{v:.1e}"),
    }
}

pub fn run(lab: &mut Lab) -> anyhow::Result<Section> {
    let traces = lab.plain()?;
    let n = traces.len();
    let bins = reliability(&traces, PAPER);
    let error: f64 = bins.iter().map(|&(c, p, right)| (p * c as f64 - right as f64).abs()).sum::<f64>() / n as f64;
    let calibration =
        Chart::new(&format!("Halt output against truth, segment {PAPER}"), "probability that the Q head gives", "share right")
            .y_range(0.0, 1.0)
            .with("perfect", Mark::Line, [(0.0, 0.0), (1.0, 1.0)])
            .with("tenths", Mark::Dots, bins.iter().filter(|b| b.0 > 0).map(|&(c, p, right)| (p, right as f64 / c as f64)));
    let mut q = Table::new("Halt output q > 0", &["segment", "q > 0", "of these right", "q agrees with the truth", "AUC"]);
    for s in [4, 8, 16, 32, 64] {
        let positive: Vec<&Trace> = traces.iter().filter(|t| t.q[s - 1] > 0.0).collect();
        let agrees = traces.iter().filter(|t| (t.q[s - 1] > 0.0) == t.exact[s - 1]).count();
        let of = |r: bool| traces.iter().filter(|t| t.exact[s - 1] == r).map(|t| t.q[s - 1]).collect::<Vec<_>>();
        q.row([
            s.to_string(),
            percent(positive.len(), n),
            percent(positive.iter().filter(|t| t.exact[s - 1]).count(), positive.len()),
            percent(agrees, n),
            format!("{:.3}", auc(&of(true), &of(false))),
        ]);
    }
    let ratings = lab.set.ratings[..n].to_vec();
    let mut rated =
        Table::new("Segments until the answer is right, by rating", &["rating", "puzzles", "right within 64", "median segments of these"]);
    for (from, to) in RATINGS {
        let part: Vec<&Trace> = traces.iter().zip(&ratings).filter(|(_, r)| (from..=to).contains(*r)).map(|(t, _)| t).collect();
        if part.is_empty() {
            continue;
        }
        let firsts: Vec<f64> = part.iter().filter_map(|t| t.first_right()).map(|s| s as f64).collect();
        let name = if to == u32::MAX {
            format!("{from}+")
        } else if from == to {
            from.to_string()
        } else {
            format!("{from}-{to}")
        };
        rated.row([name, part.len().to_string(), percent(firsts.len(), part.len()), format!("{:.1}", quantile(&firsts, 0.5))]);
    }
    let dots = Chart::new("Segments needed against rating", "log10(1 + rating)", "segment that is right first").with(
        "",
        Mark::Dots,
        traces.iter().zip(&ratings).filter_map(|(t, &r)| t.first_right().map(|s| ((1.0 + f64::from(r)).log10(), s as f64))),
    );

    // One unit of one element of z_H: 2^-10, the last bit of the integer stream.
    let m = (lab.n / 10).clamp(2, 32).min(lab.n);
    let reference = lab.args.reference.clone();
    lab.begin("dynamics", m * SEGMENTS * 2 + if reference.is_some() { m * PAPER } else { 0 });
    let (inputs, _) = lab.puzzles(m);
    let starts = vec![lab.start(0); m];
    let first = lab.subject.begin(&starts, false)?;
    let (mut a, mut b) = (first.clone(), first.clone());
    let len = a.h.len() / m;
    for i in 0..m {
        b.h[i * len + len / 2] += 1.0 / 1024.0;
    }
    let mut apart = vec![Vec::new(); m];
    let mut kept = Vec::new();
    for s in 0..SEGMENTS {
        lab.subject.advance(&inputs, &mut a)?;
        lab.subject.advance(&inputs, &mut b)?;
        lab.progress.add(2 * m);
        for (i, d) in apart.iter_mut().enumerate() {
            d.push(distance(&b.h[i * len..(i + 1) * len], &a.h[i * len..(i + 1) * len]));
        }
        if s < PAPER {
            kept.push(a.clone());
        }
    }
    let right: Vec<bool> = traces[..m].iter().map(|t| t.exact[SEGMENTS - 1]).collect();
    let curve = |of: bool| -> Vec<(f64, f64)> {
        (0..SEGMENTS)
            .map(|s| {
                (
                    (s + 1) as f64,
                    quantile(&apart.iter().zip(&right).filter(|(_, r)| **r == of).map(|(d, _)| d[s].max(NOTHING)).collect::<Vec<_>>(), 0.5),
                )
            })
            .collect()
    };
    let bit = Chart::new("One bit changed in the first state", "segment", "||z_H - z_H'|| / ||z_H|| (median)")
        .log_y()
        .with("right at the end", Mark::Line, curve(true))
        .with("wrong at the end", Mark::Line, curve(false));
    let end =
        |of: bool| quantile(&apart.iter().zip(&right).filter(|(_, r)| **r == of).map(|(d, _)| d[SEGMENTS - 1]).collect::<Vec<_>>(), 0.5);
    let absorbed = apart.iter().filter(|d| d[SEGMENTS - 1] == 0.0).count();

    let mut plots = vec![
        Plot {
            name: "dynamics-calibration".into(),
            caption: format!("Reliability of the Q head, {n} puzzles; expected calibration error {error:.3}."),
            svg: calibration.svg(),
        },
        Plot {
            name: "dynamics-rating".into(),
            caption: "Solved puzzles only; the rating counts guesses of a backtracking solver.".into(),
            svg: dots.svg(),
        },
        Plot { name: "dynamics-bit".into(), caption: format!("{m} puzzles; a distance of 0 is drawn at {NOTHING:.0e}."), svg: bit.svg() },
    ];
    let mut cosines = Vec::new();
    if let Some(path) = reference {
        let mut float = Float::load(&path, lab.args.engine_kind(), &lab.args.device, resolve_threads(lab.args.threads))?;
        // Both begin at the integer network's start.
        let mut carry = first;
        for other in &kept {
            float.advance(&inputs, &mut carry)?;
            lab.progress.add(m);
            cosines.push((0..m).map(|i| cosine(&carry.h[i * len..(i + 1) * len], &other.h[i * len..(i + 1) * len])).collect::<Vec<f64>>());
        }
        let ended: Vec<bool> = traces[..m].iter().map(|t| t.exact[PAPER - 1]).collect();
        let curve = |of: bool| -> Vec<(f64, f64)> {
            cosines
                .iter()
                .enumerate()
                .map(|(s, c)| ((s + 1) as f64, mean(&c.iter().zip(&ended).filter(|(_, r)| **r == of).map(|(&c, _)| c).collect::<Vec<_>>())))
                .collect()
        };
        let chart = Chart::new("z_H of float and int8 from the same start", "segment", "mean cosine")
            .with("right at 16", Mark::Line, curve(true))
            .with("wrong at 16", Mark::Line, curve(false));
        plots.push(Plot { name: "dynamics-cosine".into(), caption: format!("{m} puzzles."), svg: chart.svg() });
    }
    lab.end();
    let positive = traces.iter().filter(|t| t.q[PAPER - 1] > 0.0).count();
    let wrong = traces.iter().filter(|t| t.q[PAPER - 1] > 0.0 && !t.exact[PAPER - 1]).count();
    let mut findings = vec![
        format!(
            "Q head after {PAPER} segments: {wrong} of {positive} runs with q > 0 are wrong; expected calibration error {error:.3}. The paper trusts only runs that the Q head halts."
        ),
        format!(
            "One bit: after {SEGMENTS} segments {} of the runs are where they would have been without it; the median relative distance is {} where the answer is right and {} where it is wrong.",
            percent(absorbed, m),
            scientific(end(true)),
            scientific(end(false))
        ),
    ];
    if let Some(last) = cosines.last() {
        findings.push(format!(
            "Float against int8: mean carry cosine {:.4} after one segment, {:.4} after {PAPER} (median {:.4}).",
            mean(&cosines[0]),
            mean(last),
            quantile(last, 0.5)
        ));
    }
    Ok(Section {
        title: "Shape of the dynamics".into(),
        method: vec![format!(
            "The {n} plain runs; {m} puzzles for single bits and cosines. Expected calibration error: mean of |probability - share right| over tenths, by count."
        )],
        findings,
        data: json!({
            "reliability": bins, "calibration_error": error, "apart": apart, "right": right, "cosines": cosines,
            "first_right": traces.iter().map(Trace::first_right).collect::<Vec<_>>(), "ratings": ratings,
        }),
        tables: vec![q, rated],
        plots,
        ..Section::default()
    })
}
