//! Loss of single puzzles over segments: a smooth mean hides leaps.

use serde_json::json;

use super::report::{Plot, Section, Table};
use super::svg::{Chart, Mark};
use super::trace::Trace;
use super::{Lab, PAPER, percent, stats};

/// The largest fall of the loss between two segments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Leap {
    /// Segment, from 2, after which the loss was lower.
    pub segment: usize,
    /// Fall of the loss.
    pub height: f64,
    /// Its part of the way from the largest loss to the smallest.
    pub share: f64,
}

pub(super) fn leap(loss: &[f64]) -> Option<Leap> {
    let falls = loss.windows(2).map(|p| p[0] - p[1]);
    let (at, height) = falls.enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let whole = loss.iter().copied().fold(f64::NEG_INFINITY, f64::max) - loss.iter().copied().fold(f64::INFINITY, f64::min);
    Some(Leap { segment: at + 2, height, share: if whole > 0.0 { height / whole } else { 0.0 } })
}

pub fn run(lab: &mut Lab) -> anyhow::Result<Section> {
    let traces = lab.plain()?;
    let cut: Vec<Trace> = traces
        .iter()
        .cloned()
        .map(|mut t| {
            t.loss.truncate(PAPER);
            t.exact.truncate(PAPER);
            t
        })
        .collect();
    let solved: Vec<&Trace> = cut.iter().filter(|t| t.exact[PAPER - 1]).collect();
    let failed: Vec<&Trace> = cut.iter().filter(|t| !t.exact[PAPER - 1]).collect();
    let mean = |of: &[&Trace]| -> Vec<(f64, f64)> {
        (0..PAPER).map(|s| ((s + 1) as f64, stats::mean(&of.iter().map(|t| t.loss[s]).collect::<Vec<_>>()))).collect()
    };
    let mut chart = Chart::new("Loss over segments: single puzzles and their mean", "segment", "cross entropy a cell (nats)");
    for t in cut.iter().take(40) {
        chart = chart.with("", Mark::Faint, t.loss.iter().enumerate().map(|(s, &l)| ((s + 1) as f64, l)));
    }
    let all: Vec<&Trace> = cut.iter().collect();
    let chart = chart.with("mean of all", Mark::Line, mean(&all)).with("mean of the unsolved", Mark::Line, mean(&failed)).with(
        "mean of the solved",
        Mark::Line,
        mean(&solved),
    );
    let leaps: Vec<Leap> = solved.iter().filter_map(|t| leap(&t.loss)).collect();
    let mut histogram = [0usize; PAPER + 1];
    leaps.iter().for_each(|l| histogram[l.segment] += 1);
    let bars = Chart::new("Segment of the largest fall, solved puzzles", "segment", "puzzles").with(
        "",
        Mark::Bars,
        histogram.iter().enumerate().skip(2).map(|(s, &c)| (s as f64, c as f64)),
    );
    let shares: Vec<f64> = leaps.iter().map(|l| l.share).collect();
    let heights: Vec<f64> = leaps.iter().map(|l| l.height).collect();
    let mut table = Table::new("Leaps of the solved puzzles", &["", "lower quartile", "median", "upper quartile"]);
    for (name, v) in [("height (nats a cell)", &heights), ("part of the way from the largest loss to the smallest", &shares)] {
        table.row([name.to_owned()].into_iter().chain([0.25, 0.5, 0.75].map(|p| format!("{:.3}", stats::quantile(v, p)))));
    }
    let sudden = shares.iter().filter(|&&s| s >= 0.5).count();
    Ok(Section {
        title: "Grokking over segments".into(),
        method: vec![format!(
            "Cross entropy of the answer after each of {PAPER} segments, {} puzzles. *Leap*: the largest fall between two segments.",
            cut.len()
        )],
        findings: vec![
            "Paper: the mean loss falls smoothly, single puzzles stay high for many segments and then drop to zero in one.".into(),
            format!(
                "Ours: {} of the {} solved puzzles go at least half of the way from their largest to their smallest loss in one segment; the median leap is {:.0} % of it, at segment {:.0}.",
                percent(sudden, leaps.len()),
                leaps.len(),
                100.0 * stats::quantile(&shares, 0.5),
                stats::quantile(&leaps.iter().map(|l| l.segment as f64).collect::<Vec<_>>(), 0.5)
            ),
        ],
        data: json!({
            "loss": cut.iter().map(|t| &t.loss).collect::<Vec<_>>(), "solved": cut.iter().map(|t| t.exact[PAPER - 1]).collect::<Vec<_>>(),
            "leaps": leaps.iter().map(|l| json!([l.segment, l.height, l.share])).collect::<Vec<_>>(),
        }),
        tables: vec![table],
        plots: vec![
            Plot { name: "grokking".into(), caption: "Grey: 40 puzzles. Lines: means.".into(), svg: chart.svg() },
            Plot { name: "grokking-leaps".into(), caption: "When the leap comes.".into(), svg: bars.svg() },
        ],
        ..Section::default()
    })
}
