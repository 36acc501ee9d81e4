//! The fixed-point property: if a state decodes to the answer, it stays.

use serde_json::json;

use super::report::{Plot, Section, Table};
use super::stats::{Cut, auc, otsu, quantile};
use super::svg::{Chart, Mark};
use super::trace::{self, Trace};
use super::{Lab, PAPER, SEGMENTS, percent, stats};

/// Drift band: segments 13 to 16, as in the work that disputes the paper.
pub(super) const BAND: (usize, usize) = (13, 16);
/// Smaller drifts count as this, the unit of the integer stream: exact fixed points have no logarithm.
const RESOLUTION: f64 = 1.0 / 1024.0;
/// A cut that explains less of the variance of the log drift separates nothing: a normal sample is explained to 64 %, a uniform one to 75 %.
const SEPARATES: f64 = 0.8;

/// Segments whose answers are alike where a run is stuck.
const STABLE: usize = 8;
/// Width of a bar of the drifts, in decades.
const BIN: f64 = 0.2;

/// Runs that have settled and those that wander, told by their drift.
#[derive(Clone, Debug)]
pub(super) struct Settled {
    /// The cut of log10 drift; none if all drifts are equal.
    pub cut: Option<Cut>,
    /// Whether each run has settled.
    pub settled: Vec<bool>,
}

/// Runs whose mean drift over [`BAND`] is below Otsu's threshold on its logarithm. A drift of [`RESOLUTION`] or less has settled, whatever the cut.
pub(super) fn classify(traces: &[Trace]) -> Settled {
    let drifts: Vec<f64> = traces.iter().map(|t| t.late_drift(BAND.0, BAND.1)).collect();
    let logs: Vec<f64> = drifts.iter().map(|&d| d.max(RESOLUTION).log10()).collect();
    let cut = otsu(&logs);
    let settled = drifts.iter().zip(&logs).map(|(&d, &l)| d <= RESOLUTION || cut.is_some_and(|c| l < c.threshold)).collect();
    Settled { cut, settled }
}

/// Counts of settled/wandering by right/wrong: `[[settled right, settled wrong], [wandering right, wandering wrong]]`.
pub(super) fn two_by_two(settled: &[bool], right: &[bool]) -> [[usize; 2]; 2] {
    let mut out = [[0; 2]; 2];
    for (&s, &r) in settled.iter().zip(right) {
        out[usize::from(!s)][usize::from(!r)] += 1;
    }
    out
}

pub fn run(lab: &mut Lab) -> anyhow::Result<Section> {
    let traces = lab.plain()?;
    let right: Vec<bool> = traces.iter().map(|t| t.exact[PAPER - 1]).collect();
    let settled = classify(&traces);
    let counts = two_by_two(&settled.settled, &right);
    let mut table = Table::new(&format!("Settled by right, after {PAPER} segments"), &["", "right", "wrong"]);
    for (name, row) in ["settled", "wandering"].into_iter().zip(counts) {
        table.row([name.to_owned(), row[0].to_string(), row[1].to_string()]);
    }
    let drift = |of: bool| -> Vec<f64> {
        traces.iter().zip(&right).filter(|(_, r)| **r == of).map(|(t, _)| t.late_drift(BAND.0, BAND.1)).collect()
    };
    let (of_right, of_wrong) = (drift(true), drift(false));
    let separation = auc(&of_wrong, &of_right);

    // Whoever was right once: is the answer kept for all segments that follow?
    let ever: Vec<&Trace> = traces.iter().filter(|t| t.first_right().is_some()).collect();
    let kept = ever.iter().filter(|t| t.first_right().is_some_and(|s| t.stays_right_from(s))).count();
    let cycles: Vec<(usize, bool)> = traces.iter().filter_map(|t| t.cycle.map(|c| (c.0, *t.exact.last().unwrap_or(&false)))).collect();
    let mut repeats = Table::new(&format!("States that repeat exactly within {SEGMENTS} segments"), &["period", "right", "wrong"]);
    let mut periods: Vec<usize> = cycles.iter().map(|c| c.0).collect();
    periods.sort_unstable();
    periods.dedup();
    for p in periods {
        let count = |r: bool| cycles.iter().filter(|c| c.0 == p && c.1 == r).count().to_string();
        repeats.row([if p == 1 { "1 (fixed point)".into() } else { p.to_string() }, count(true), count(false)]);
    }

    // A state that decodes to the answer, made from the answer: the solved grid is the puzzle at first.
    let n = (lab.n / 4).max(1);
    let (inputs, labels) = lab.puzzles(n);
    let (warm, watch) = (8, 32);
    lab.begin("fixed-point", n * (warm + watch));
    let start = vec![lab.start(0); n];
    let job = lab.job(&inputs, &labels, watch);
    let mut decoded = 0;
    let Lab { subject, progress, .. } = lab;
    let cells = job.sudoku.cells();
    let planted = trace::run(
        subject.as_mut(),
        job,
        &mut |subject, range| {
            let mut carry = subject.begin(&start[range.clone()], false)?;
            let answers = &labels[range.start * cells..range.end * cells];
            let mut tokens = Vec::new();
            for _ in 0..warm {
                tokens = subject.advance(answers, &mut carry)?.tokens;
            }
            decoded += tokens.chunks_exact(cells).zip(answers.chunks_exact(cells)).filter(|(a, b)| a == b).count();
            Ok(carry)
        },
        &mut |k| progress.add(k),
    )?;
    lab.end();
    let at = |s: usize| planted.iter().filter(|t| t.exact[s - 1]).count();
    let all = planted.iter().filter(|t| t.exact.iter().all(|&e| e)).count();
    let mut keep =
        Table::new(&format!("From a state that decodes to the answer ({decoded} of {n} do)"), &["segments on the puzzle", "right"]);
    for s in [1, 2, 4, 8, 16, 32] {
        keep.row([s.to_string(), percent(at(s), n)]);
    }
    keep.row(["1 to 32, at all".into(), percent(all, n)]);

    let curve = |of: bool, p: f64| -> Vec<(f64, f64)> {
        (0..SEGMENTS)
            .map(|s| {
                let v: Vec<f64> = traces.iter().filter(|t| t.exact.last() == Some(&of)).map(|t| t.residual[s]).collect();
                ((s + 1) as f64, quantile(&v, p))
            })
            .collect()
    };
    let residuals = Chart::new("Residual over segments (median, quartiles)", "segment", "||z' - z|| / ||z||")
        .log_y()
        .with("right at the end", Mark::Line, curve(true, 0.5))
        .with("wrong at the end", Mark::Line, curve(false, 0.5))
        .with("", Mark::Faint, curve(true, 0.25))
        .with("", Mark::Faint, curve(true, 0.75))
        .with("", Mark::Faint, curve(false, 0.25))
        .with("", Mark::Faint, curve(false, 0.75));
    let planted_chart = Chart::new("From a state that decodes to the answer", "segment", "share right").y_range(0.0, 1.0).with(
        "",
        Mark::Line,
        (1..=watch).map(|s| (s as f64, at(s) as f64 / n as f64)),
    );
    let bins = |v: &[f64]| -> Vec<(f64, f64)> {
        let mut counts = std::collections::BTreeMap::new();
        v.iter().filter(|&&d| d > 0.0).for_each(|d| *counts.entry((d.log10() / BIN).floor() as i64).or_insert(0usize) += 1);
        counts.into_iter().map(|(b, c)| ((b as f64 + 0.5) * BIN, c as f64)).collect()
    };
    let drifts = Chart::new("Drift of segments 13 to 16", "log10 of the mean row norm of z_H' - z_H", "runs")
        .bar_width(BIN)
        .with("right", Mark::Bars, bins(&of_right))
        .with("wrong", Mark::Bars, bins(&of_wrong));
    let failures = counts[0][1] + counts[1][1];
    let cut = settled.cut.map_or("no cut".into(), |c| {
        format!("cut at drift {:.3}, which explains {:.0} % of the variance", 10f64.powf(c.threshold), 100.0 * c.explained)
    });
    let lost: Vec<&Trace> = traces.iter().filter(|t| t.exact.last() == Some(&false)).collect();
    let stuck = lost.iter().filter(|t| t.is_stable(STABLE)).count();
    let clear = settled.cut.is_some_and(|c| c.explained >= SEPARATES);
    Ok(Section {
        title: "Fixed-point property".into(),
        method: vec![format!(
            "{} plain runs of {SEGMENTS} segments. *Drift*: mean over the rows of ||z_H' - z_H||, averaged over segments {} to {}; a run has *settled* if its drift is below Otsu's \
             threshold on the logarithm ({cut}{}). *Residual*: ||z_H' - z_H|| / ||z_H'||. States of the integer network are compared bit by bit. \
             For the planted states the solved grid itself is given as the puzzle for {warm} segments, then the puzzle.",
            traces.len(),
            BAND.0,
            BAND.1,
            if clear { "" } else { "; two bumps are not told apart clearly" }
        )],
        findings: vec![
            format!(
                "Paper: the fixed-point property fails, right answers are left again. Ours: of {} runs that were right once, {} kept the answer to segment {SEGMENTS}.",
                ever.len(),
                percent(kept, ever.len())
            ),
            format!(
                "From planted states {} are right after one segment on the puzzle, {} after 16, and {} at all of 32.",
                percent(at(1), n),
                percent(at(16), n),
                percent(all, n)
            ),
            format!(
                "Paper: failures settle at false fixed points. Later work (2026, 8,192 puzzles, HRM): 1.6 % of the failures settle, the others wander. Ours: {} of the failures are in \
                 the settled class; drift tells wrong from right with AUC {separation:.3}. {}",
                percent(counts[0][1], failures),
                match (failures, clear, counts[0][1] * 10 < failures) {
                    (0, ..) => "There is nothing to tell apart.",
                    (_, false, _) => "The drifts form no two bumps: the class says little here.",
                    (_, true, true) => "For this model the later work is right: failures wander.",
                    (_, true, false) => "For this model a part of the failures does settle.",
                }
            ),
            format!(
                "Of {} runs that are wrong after segment {SEGMENTS}, {} gave one and the same answer in the last {STABLE} segments.",
                lost.len(),
                percent(stuck, lost.len())
            ),
            format!(
                "Exact repeats of the state: {} of {} runs, {} of them right at the end.",
                cycles.len(),
                traces.len(),
                cycles.iter().filter(|c| c.1).count()
            ),
        ],
        data: json!({
            "two_by_two": counts, "threshold": settled.cut.map(|c| c.threshold), "explained": settled.cut.map(|c| c.explained), "auc": separation,
            "drift_right": of_right, "drift_wrong": of_wrong, "lost": lost.len(), "stuck": stuck, "ever": ever.len(), "kept": kept, "cycles": cycles,
            "planted": (1..=watch).map(at).collect::<Vec<_>>(), "planted_of": n, "decoded": decoded,
            "mean_residual": (0..SEGMENTS).map(|s| stats::mean(&traces.iter().map(|t| t.residual[s]).collect::<Vec<_>>())).collect::<Vec<_>>(),
        }),
        tables: vec![table, repeats, keep],
        plots: vec![
            Plot {
                name: "fixed-point-drift".into(),
                caption: "Right and wrong runs by drift (exact fixed points, drift 0, are left out).".into(),
                svg: drifts.svg(),
            },
            Plot {
                name: "fixed-point-residual".into(),
                caption: "Residual of runs by what they end with; grey: quartiles.".into(),
                svg: residuals.svg(),
            },
            Plot {
                name: "fixed-point-planted".into(),
                caption: format!("{n} puzzles, started at a state that decodes to the answer."),
                svg: planted_chart.svg(),
            },
        ],
        ..Section::default()
    })
}
