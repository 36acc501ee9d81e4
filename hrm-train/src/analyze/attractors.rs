//! Several fixed points: modes of reasoning, trajectories in the plane of principal components, attractors from many starts.

use std::collections::HashMap;

use serde_json::json;

use super::fixed_point::classify;
use super::report::{Plot, Section, Table};
use super::stats::{self, Plane, pca};
use super::svg::Landscape;
use super::trace::{self, Trace};
use super::{Lab, PAPER, percent, repeat};
use crate::engine::Carry;

/// A run that is right for good after this many segments is a trivial success.
const TRIVIAL: usize = 4;
/// Starts of each puzzle of the attractor count.
const STARTS: usize = 16;
/// Segments of each.
const DEPTH: usize = 32;
/// Segments that an answer must hold to be called an attractor's.
const HELD: usize = 4;
/// Points of the landscape along each side.
const GRID: usize = 25;
/// Broken rules from which on the landscape is darkest, as in the paper.
const WORST: f64 = 40.0;

/// The four modes of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    TrivialSuccess,
    NonTrivialSuccess,
    TrivialFailure,
    NonTrivialFailure,
}

impl Mode {
    const ALL: [(Self, &'static str, &'static str); 4] = [
        (Self::TrivialSuccess, "trivial success", "right from segment 4 or before to 16"),
        (Self::NonTrivialSuccess, "non-trivial success", "right at 16, but later than that"),
        (Self::TrivialFailure, "trivial failure", "wrong at 16 and wandering"),
        (Self::NonTrivialFailure, "non-trivial failure", "wrong at 16 and settled: a false fixed point"),
    ];

    pub(super) fn of(trace: &Trace, settled: bool) -> Self {
        let from = |s: usize| trace.exact[s - 1..PAPER].iter().all(|&e| e);
        match (trace.exact[PAPER - 1], from(TRIVIAL), settled) {
            (true, true, _) => Self::TrivialSuccess,
            (true, false, _) => Self::NonTrivialSuccess,
            (false, _, false) => Self::TrivialFailure,
            (false, _, true) => Self::NonTrivialFailure,
        }
    }
}

/// States z_H of one run, from the start, and the last carry.
fn states(lab: &mut Lab, input: &[u8]) -> anyhow::Result<(Vec<Vec<f32>>, Carry)> {
    let mut carry = lab.subject.begin(&[lab.start(0)], false)?;
    let mut out = vec![carry.h.clone()];
    for _ in 0..PAPER {
        lab.subject.advance(input, &mut carry)?;
        lab.progress.add(1);
        out.push(carry.h.clone());
    }
    Ok((out, carry))
}

fn landscape(lab: &mut Lab, input: &[u8], title: &str) -> anyhow::Result<(String, Plane)> {
    let (states, last) = states(lab, input)?;
    // The random start is far from everything that follows: the plane is that of the segments.
    let plane = pca(&states[1..]);
    let path: Vec<(f64, f64)> = states[1..].iter().map(|s| plane.project(s)).collect();
    let centre = path[path.len() - 1];
    let reach = path.iter().map(|p| (p.0 - centre.0).abs().max((p.1 - centre.1).abs())).fold(1.0, f64::max) * 1.25;
    let offset = |i: usize| (2.0 * i as f64 / (GRID - 1) as f64 - 1.0) * reach;
    let moved = |x: f64, y: f64| -> Vec<f32> {
        last.h.iter().zip(plane.axes[0].iter().zip(&plane.axes[1])).map(|(&h, (a, b))| (f64::from(h) + x * a + y * b) as f32).collect()
    };
    let cells = lab.set.sudoku.cells();
    let mut errors = Vec::new();
    for j in 0..GRID {
        let h: Vec<f32> = (0..GRID).flat_map(|i| moved(offset(i), offset(j))).collect();
        let reading = lab.subject.read(&Carry { l: last.l.repeat(GRID), h })?;
        errors.push(reading.tokens.chunks_exact(cells).map(|t| f64::from(lab.set.sudoku.conflicts(t)).min(WORST)).collect::<Vec<_>>());
    }
    // An arrow for every fourth point.
    let points: Vec<(f64, f64)> = (2..GRID).step_by(4).flat_map(|j| (2..GRID).step_by(4).map(move |i| (offset(i), offset(j)))).collect();
    let mut carry = Carry { h: points.iter().flat_map(|&(x, y)| moved(x, y)).collect(), l: last.l.repeat(points.len()) };
    lab.subject.advance(&input.repeat(points.len()), &mut carry)?;
    lab.progress.add(points.len());
    let len = last.h.len();
    let arrows: Vec<_> =
        points.iter().zip(carry.h.chunks_exact(len)).map(|(&(x, y), h)| ((centre.0 + x, centre.1 + y), plane.project(h))).collect();
    let svg = Landscape { title, reach, centre, errors: &errors, worst: WORST, arrows: &arrows, path: &path }.svg();
    Ok((svg, plane))
}

/// What the starts of one puzzle ended with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Basins {
    /// Share of the starts that ended right.
    pub right: f64,
    /// Distinct answers that were held.
    pub attractors: usize,
    /// Of these, wrong ones.
    pub spurious: usize,
    /// Largest share of the starts in one spurious attractor.
    pub largest_spurious: f64,
    /// Share of the starts that wander.
    pub wandering: f64,
}

/// An attractor is an answer that a run has held for its last [`HELD`] segments.
pub(super) fn basins(traces: &[Trace]) -> Basins {
    let mut by_answer: HashMap<&[u8], (usize, bool)> = HashMap::new();
    let mut wandering = 0;
    for t in traces {
        if t.is_stable(HELD) {
            let entry = by_answer.entry(&t.answer).or_insert((0, *t.exact.last().unwrap_or(&false)));
            entry.0 += 1;
        } else {
            wandering += 1;
        }
    }
    let n = traces.len() as f64;
    let spurious: Vec<usize> = by_answer.values().filter(|v| !v.1).map(|v| v.0).collect();
    Basins {
        right: by_answer.values().filter(|v| v.1).map(|v| v.0).sum::<usize>() as f64 / n,
        attractors: by_answer.len(),
        spurious: spurious.len(),
        largest_spurious: spurious.iter().copied().max().unwrap_or(0) as f64 / n,
        wandering: wandering as f64 / n,
    }
}

pub fn run(lab: &mut Lab) -> anyhow::Result<Section> {
    let traces = lab.plain()?;
    let settled = classify(&traces).settled;
    let modes: Vec<Mode> = traces.iter().zip(&settled).map(|(t, &s)| Mode::of(t, s)).collect();
    let mut table = Table::new("Modes", &["mode", "criterion", "runs"]);
    for (mode, name, criterion) in Mode::ALL {
        table.row([name.to_owned(), criterion.to_owned(), percent(modes.iter().filter(|&&m| m == mode).count(), modes.len())]);
    }

    let cells = lab.set.sudoku.cells();
    let n = (lab.n / 20).max(2).min(lab.n);
    lab.begin("attractors", n * STARTS * DEPTH + 4 * (PAPER + 36));
    let (mut plots, mut planes) = (Vec::new(), Vec::new());
    for (mode, name, _) in Mode::ALL {
        let Some(i) = modes.iter().position(|&m| m == mode) else { continue };
        let input = lab.set.input(i).to_vec();
        let (svg, plane) = landscape(lab, &input, &format!("Puzzle {i}: {name}"))?;
        let file = format!("attractors-{}", name.replace(' ', "-"));
        let explained = 100.0 * (plane.explained[0] + plane.explained[1]);
        plots.push(Plot {
            name: file,
            caption: format!("{name}: broken rules of the answer on the plane of the run ({explained:.0} % of its variance)."),
            svg,
        });
        planes.push(json!({"puzzle": i, "mode": name, "explained": plane.explained}));
    }

    let (inputs, labels) = lab.puzzles(n);
    let starts: Vec<_> = (0..n * STARTS).map(|i| lab.start(i % STARTS)).collect();
    let (inputs, labels) = (repeat(&inputs, cells, STARTS), repeat(&labels, cells, STARTS));
    let job = lab.job(&inputs, &labels, DEPTH);
    let Lab { subject, progress, .. } = lab;
    // Models with a fixed start get random ones here: the question is where else one may end.
    let many = trace::run_from(subject.as_mut(), job, &starts, true, &mut |k| progress.add(k))?;
    lab.end();
    let found: Vec<Basins> = many.chunks_exact(STARTS).map(basins).collect();
    let mean = |f: &dyn Fn(&Basins) -> f64| stats::mean(&found.iter().map(f).collect::<Vec<_>>());
    let mut counted = Table::new(&format!("{STARTS} random starts of {n} puzzles, {DEPTH} segments"), &["", "mean over puzzles"]);
    for (name, value) in [
        ("share of starts in the right attractor", mean(&|b| b.right)),
        ("distinct attractors", mean(&|b| b.attractors as f64)),
        ("of these, spurious", mean(&|b| b.spurious as f64)),
        ("share of starts in the largest spurious one", mean(&|b| b.largest_spurious)),
        ("share of starts that wander", mean(&|b| b.wandering)),
    ] {
        counted.row([name.to_owned(), format!("{value:.3}")]);
    }
    let always = found.iter().filter(|b| b.right == 1.0).count();
    let never = found.iter().filter(|b| b.right == 0.0).count();
    counted.row(["puzzles that all starts solve".into(), always.to_string()]);
    counted.row(["puzzles that no start solves".into(), never.to_string()]);
    let share = |m: Mode| modes.iter().filter(|&&x| x == m).count();
    Ok(Section {
        title: "Several fixed points".into(),
        method: vec![
            "The paper names four modes and tells them by eye. Here: see the table; *settled* is the drift-band class of the section above. The plane is spanned by the first two principal \
             components of z_H over the run's segments, centred on the last state; the error is the number of surplus digits over all rows, columns and boxes of the answer, cut at 40; \
             arrows show where one segment takes a state of the plane (z_L is the last one)."
                .into(),
            format!("An *attractor* is an answer that a run has held for its last {HELD} segments; a run that still changes its answer wanders."),
        ],
        findings: vec![
            "Paper: all four modes occur; a run lingers near spurious fixed points and takes the first that holds it.".into(),
            format!(
                "Ours: {} of the runs succeed trivially, {} with effort, {} wander to the end, {} settle on a wrong answer. A puzzle's random starts end in {:.2} attractors, {:.2} of them \
                 spurious; {always} of {n} puzzles are solved from every start, {never} from none.",
                percent(share(Mode::TrivialSuccess), modes.len()),
                percent(share(Mode::NonTrivialSuccess), modes.len()),
                percent(share(Mode::TrivialFailure), modes.len()),
                percent(share(Mode::NonTrivialFailure), modes.len()),
                mean(&|b| b.attractors as f64),
                mean(&|b| b.spurious as f64)
            ),
        ],
        data: json!({
            "modes": modes.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>(), "planes": planes,
            "basins": found.iter().map(|b| json!([b.right, b.attractors, b.spurious, b.largest_spurious, b.wandering])).collect::<Vec<_>>(),
        }),
        tables: vec![table, counted],
        plots,
        ..Section::default()
    })
}
