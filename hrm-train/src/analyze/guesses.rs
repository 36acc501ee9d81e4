//! Scaling the number of guesses: each perturbation alone, each way to select.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Context as _;
use hrm_core::rng::{Purpose, Stream};
use hrm_core::task::Symmetry;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::report::{Plot, Section, Table};
use super::subject::{Float, Subject};
use super::svg::{Chart, Mark};
use super::trace::{self, Job, Trace};
use super::{Lab, PAPER, percent};
use crate::engine::{Carry, StartOf};
use crate::run_config::resolve_threads;

/// Passes of the paper: the nine cyclic shifts of the digits.
const WIDTH: usize = 16;
/// Most snapshots that are bootstrapped over, as in the paper.
const SNAPSHOTS: usize = 10;
/// Noise on the carry that is tried, in standard deviations of the stream.
const NOISE: f32 = 0.1;

/// One guess, in the orientation of the puzzle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Guess {
    pub answer: Vec<u8>,
    pub right: bool,
    pub q: f64,
    pub residual: f64,
    /// Segment after which the verifier first accepted the answer, and whether that answer was right.
    pub valid: Option<(usize, bool)>,
    pub segments: usize,
}

impl Guess {
    fn new(trace: &Trace, symmetry: Option<&Symmetry>) -> Self {
        let last = trace.exact.len() - 1;
        let mut answer = trace.answer.clone();
        if let Some(s) = symmetry {
            // An answer may hold padding, which symmetries leave alone: lengths are all that can be wrong, and they are not.
            let _ = s.inverse().apply(&trace.answer, &mut answer);
        }
        let valid = trace.valid.iter().position(|&v| v).map(|s| (s + 1, trace.exact[s]));
        Self { answer, right: trace.exact[last], q: trace.q[last], residual: trace.residual[last], valid, segments: last + 1 }
    }
}

/// How one answer is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Any guess is right: needs the label, a bound and no method.
    Oracle,
    /// More than half of the guesses agree; else no answer.
    Majority,
    /// The most frequent answer, the earliest on ties.
    Plurality,
    /// The largest halt output.
    Q,
    /// The smallest residual.
    Residual,
    /// The first answer that keeps the rules; else no answer. Stops there.
    Verifier,
}

impl Rule {
    pub(super) const ALL: [(Self, &'static str); 6] = [
        (Self::Oracle, "pass@k (oracle: uses labels)"),
        (Self::Majority, "majority"),
        (Self::Plurality, "plurality"),
        (Self::Q, "Q head"),
        (Self::Residual, "residual"),
        (Self::Verifier, "verifier"),
    ];

    /// Whether the chosen answer is right (none: no answer), and the segments spent.
    pub(super) fn choose(self, guesses: &[Guess]) -> (Option<bool>, usize) {
        let all: usize = guesses.iter().map(|g| g.segments).sum();
        let best = |score: &dyn Fn(&Guess) -> f64| guesses.iter().max_by(|a, b| score(a).total_cmp(&score(b))).map(|g| g.right);
        let most = || {
            let mut votes: HashMap<&[u8], usize> = HashMap::new();
            guesses.iter().for_each(|g| *votes.entry(&g.answer).or_default() += 1);
            guesses.iter().rev().max_by_key(|g| votes[&g.answer[..]]).map(|g| (g.right, votes[&g.answer[..]]))
        };
        match self {
            Self::Oracle => (guesses.iter().any(|g| g.right).then_some(true), all),
            Self::Majority => (most().filter(|m| 2 * m.1 > guesses.len()).map(|m| m.0), all),
            Self::Plurality => (most().map(|m| m.0), all),
            Self::Q => (best(&|g| g.q), all),
            Self::Residual => (best(&|g| -g.residual), all),
            Self::Verifier => {
                let mut spent = 0;
                for g in guesses {
                    if let Some((at, right)) = g.valid {
                        return (Some(right), spent + at);
                    }
                    spent += g.segments;
                }
                (None, spent)
            }
        }
    }
}

/// The paper's protocol on the passes of several checkpoints, `[checkpoint][pass]`: only passes that the Q head halts count, a checkpoint is
/// right if more than half of its counted passes equal the label, the puzzle if any checkpoint is. It reads the label.
pub(super) fn paper_protocol(checkpoints: &[Vec<Guess>]) -> bool {
    checkpoints.iter().any(|passes| {
        let halted: Vec<&Guess> = passes.iter().filter(|g| g.q > 0.0).collect();
        2 * halted.iter().filter(|g| g.right).count() > halted.len()
    })
}

/// The paper's table: puzzles solved by its protocol, with one part of it at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Ablation {
    /// One pass of the last checkpoint, right after its last segment.
    pub one: usize,
    /// The shifts of the last checkpoint.
    pub perturbation: usize,
    /// One pass of each checkpoint.
    pub bootstrapping: usize,
    /// The shifts of each checkpoint.
    pub all: usize,
}

impl Ablation {
    /// Counts puzzles of `[checkpoint][puzzle][shift]`, the last checkpoint last.
    pub(super) fn new(checkpoints: &[Vec<Vec<Guess>>]) -> Self {
        let n = checkpoints.last().map_or(0, Vec::len);
        let late = &checkpoints[checkpoints.len().saturating_sub(1)..];
        let solved = |of: &[Vec<Vec<Guess>>], passes: usize| {
            let of_puzzle = |i: usize| of.iter().map(|c| c[i][..passes.min(c[i].len())].to_vec()).collect::<Vec<_>>();
            (0..n).filter(|&i| paper_protocol(&of_puzzle(i))).count()
        };
        Self {
            one: late.iter().flatten().filter(|g| g[0].right).count(),
            perturbation: solved(late, usize::MAX),
            bootstrapping: solved(checkpoints, 1),
            all: solved(checkpoints, usize::MAX),
        }
    }

    /// Beside the paper's figures; `mixed`: whether the model was trained with easier puzzles, if that is known.
    fn table(&self, mixed: Option<bool>, checkpoints: usize, n: usize) -> Table {
        let ours = match mixed {
            Some(true) => "ours, trained with mixing",
            Some(false) => "ours, trained without mixing",
            None => "ours, training unknown",
        };
        let mut table = Table::new(
            &format!(
                "The paper's ablation by its own protocol (exact, 422,786 test puzzles, 27 M parameters; third parties' notes of the paper) beside ours ({n} puzzles, {checkpoints} \
                 checkpoint(s) of the float run)"
            ),
            &["", "paper, without data mixing", "paper, with data mixing", ours],
        );
        for (name, without, with, count) in [
            ("one guess", "54.5 to 55.0 %", "59.9 %", self.one),
            ("input perturbation (9 shifts)", "73.2 %", "not found", self.perturbation),
            ("bootstrapping (10 checkpoints)", "64.7 %", "82.9 %", self.bootstrapping),
            ("both", "not found", "96.9 %; reproduced by others: 90.5 %", self.all),
        ] {
            table.row([name.to_owned(), without.to_owned(), with.to_owned(), percent(count, n)]);
        }
        table
    }
}

/// Moves the fields of a carry as relabelling moves the digits: field `f` becomes field `f + shift`.
pub(super) fn shift_fields(carry: &mut Carry, fields: usize, channels: usize, shift: usize) {
    for z in [&mut carry.h, &mut carry.l] {
        for token in z.chunks_exact_mut(fields * channels) {
            token.rotate_right(shift % fields * channels);
        }
    }
}

/// What makes the guesses of a family differ.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Shifts,
    ShiftsWithStart,
    Group,
    Starts,
    Noise,
}

/// `width` guesses of each of the first `n` puzzles, `[puzzle][guess]`.
fn family(lab: &mut Lab, n: usize, family: Family, width: usize) -> anyhow::Result<Vec<Vec<Guess>>> {
    lab.kept(&format!("guesses-{family:?}").to_lowercase(), |lab| {
        let Lab { subject, progress, set, seed, .. } = lab;
        passes(subject.as_mut(), set, *seed, n, family, width, PAPER, &mut |k| progress.add(k))
    })
}

#[allow(clippy::too_many_arguments)]
fn passes(
    subject: &mut dyn Subject,
    set: &crate::data::PuzzleSet,
    seed: u64,
    n: usize,
    family: Family,
    width: usize,
    segments: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Vec<Guess>>> {
    let (sudoku, cells) = (set.sudoku, set.sudoku.cells());
    let (fields, channels) = (usize::from(subject.config().fields), usize::from(subject.config().channels));
    let mut out = vec![Vec::with_capacity(width); n];
    for guess in 0..width {
        let symmetry = match family {
            Family::Shifts | Family::ShiftsWithStart => Some(Symmetry::cyclic_digits(sudoku, guess)),
            Family::Group if guess > 0 => {
                let mut stream = Stream::new(seed, Purpose::Symmetry, guess as u64);
                Some(Symmetry::random(&mut || stream.next_u32(), sudoku))
            }
            _ => None,
        };
        let image = |tokens: &[u8]| -> anyhow::Result<Vec<u8>> {
            let mut to = tokens.to_vec();
            if let Some(s) = &symmetry {
                for (from, to) in tokens.chunks_exact(cells).zip(to.chunks_exact_mut(cells)) {
                    s.apply(from, to)?;
                }
            }
            Ok(to)
        };
        let (inputs, labels) = (image(&set.inputs[..n * cells])?, image(&set.labels[..n * cells])?);
        let number = if family == Family::Starts { guess as u64 } else { 0 };
        let starts = vec![StartOf { seed, number }; n];
        let random = family == Family::Starts && guess > 0;
        let noise = if family == Family::Noise && guess > 0 { NOISE * (1.0 + guess as f32 / width as f32) } else { 0.0 };
        let job = Job { sudoku, inputs: &inputs, labels: &labels, segments, noise };
        let begin = &mut |subject: &mut dyn Subject, range: std::ops::Range<usize>| {
            let mut carry = subject.begin(&starts[range], random)?;
            if family == Family::ShiftsWithStart && fields > 1 {
                shift_fields(&mut carry, fields, channels, guess);
            }
            Ok(carry)
        };
        let traces = trace::run(subject, job, begin, progress)?;
        for (guesses, t) in out.iter_mut().zip(&traces) {
            guesses.push(Guess::new(t, symmetry.as_ref()));
        }
    }
    Ok(out)
}

/// Rows of one family: for each number of guesses, each rule.
fn rows(table: &mut Table, name: &str, guesses: &[Vec<Guess>], counts: &[usize], macs: u64) -> Vec<serde_json::Value> {
    let n = guesses.len();
    let mut data = Vec::new();
    for &k in counts {
        for (rule, label) in Rule::ALL {
            let chosen: Vec<_> = guesses.iter().map(|g| rule.choose(&g[..k])).collect();
            let right = chosen.iter().filter(|c| c.0 == Some(true)).count();
            let wrong = chosen.iter().filter(|c| c.0 == Some(false)).count();
            let spent = chosen.iter().map(|c| c.1).sum::<usize>() as f64 / n as f64;
            data.push(json!({"family": name, "guesses": k, "rule": label, "right": right, "wrong": wrong, "of": n, "segments": spent}));
            if k == counts[counts.len() - 1] || (k == 1 && matches!(rule, Rule::Plurality)) {
                let label = if k == 1 { "the only one" } else { label };
                table.row([
                    name.to_owned(),
                    k.to_string(),
                    label.to_owned(),
                    percent(right, n),
                    wrong.to_string(),
                    format!("{:.2}", spent * macs as f64 / 1e9),
                ]);
            }
        }
    }
    data
}

/// The last snapshots of a folder, by step.
fn snapshots(folder: &PathBuf) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let step = |p: &PathBuf| p.file_stem().and_then(|s| s.to_str()?.rsplit('-').next()?.parse::<u64>().ok());
    let mut found: Vec<(u64, PathBuf)> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .filter_map(|p| Some((step(&p)?, p)))
        .collect();
    found.sort();
    anyhow::ensure!(!found.is_empty(), "{} holds no snapshot (step-N.safetensors)", folder.display());
    Ok(found.split_off(found.len().saturating_sub(SNAPSHOTS)).into_iter().map(|f| f.1).collect())
}

pub fn run(lab: &mut Lab) -> anyhow::Result<Section> {
    let n = (lab.n / 4).max(2).min(lab.n);
    let size = lab.set.sudoku.size();
    let macs = lab.subject.segment_macs();
    let late = lab.args.snapshots.as_ref().map(snapshots).transpose()?.unwrap_or_default();
    let deep = 16 * PAPER;
    lab.begin("guesses", n * PAPER * ((2 + late.len()) * size + 3 * WIDTH) + n * deep);
    let mut table = Table::new(
        &format!("{n} puzzles, {PAPER} segments a guess unless said otherwise; wrong: an answer was given and it is wrong"),
        &["perturbation", "guesses", "selection", "right", "wrong", "GMAC a puzzle"],
    );
    let mut data = Vec::new();
    let mut lines: Vec<(&str, Vec<Vec<Guess>>)> = Vec::new();
    let powers = |most: usize| -> Vec<usize> { (0..).map(|i| 1 << i).take_while(|&k| k < most).chain([most]).collect() };
    let coincide;
    {
        let shifts = family(lab, n, Family::Shifts, size)?;
        data.extend(rows(&mut table, "digit shifts", &shifts, &powers(size), macs));
        lines.push(("digit shifts", shifts));
        let moved = family(lab, n, Family::ShiftsWithStart, size)?;
        coincide = moved.iter().filter(|g| g.iter().all(|x| x.answer == g[0].answer)).count();
        data.extend(rows(&mut table, "digit shifts, start shifted along", &moved, &powers(size), macs));
        for (name, kind) in
            [("symmetries of the whole group", Family::Group), ("random starts", Family::Starts), ("latent noise", Family::Noise)]
        {
            let guesses = family(lab, n, kind, WIDTH)?;
            data.extend(rows(&mut table, name, &guesses, &powers(WIDTH), macs));
            lines.push((name, guesses));
        }
    }
    // Longer iteration: one guess of 16 times the segments, looked at on the way.
    let (inputs, labels) = lab.puzzles(n);
    let starts = vec![lab.start(0); n];
    let long: Vec<Trace> = lab.kept("guesses-long", |lab| lab.trace(&inputs, &labels, deep, &starts))?;
    let at = |s: usize| long.iter().filter(|t| t.exact[s - 1]).count();
    for s in [32, 64, 128, 256] {
        let valid = |t: &Trace| t.valid[..s].iter().position(|&v| v);
        let spent = long.iter().map(|t| valid(t).map_or(s, |p| p + 1)).sum::<usize>() as f64 / n as f64;
        let found = |right: bool| long.iter().filter(|t| valid(t).is_some_and(|p| t.exact[p] == right)).count();
        table.row([
            format!("longer iteration, {s} segments"),
            "1".into(),
            "verifier".into(),
            percent(found(true), n),
            found(false).to_string(),
            format!("{:.2}", spent * macs as f64 / 1e9),
        ]);
        data.push(json!({"family": "longer", "segments": s, "right_at_end": at(s), "of": n}));
    }
    // Late checkpoints of one run, `[checkpoint][puzzle][shift]`. Without them the model itself is the only one.
    let mut by_checkpoint: Vec<Vec<Vec<Guess>>> = Vec::new();
    for path in &late {
        let step = path.file_stem().unwrap_or_default().to_string_lossy();
        by_checkpoint.push(lab.kept(&format!("guesses-{step}"), |lab| {
            let mut float = Float::load(path, lab.args.engine_kind(), &lab.args.device, resolve_threads(lab.args.threads))?;
            let Lab { set, seed, progress, .. } = lab;
            passes(&mut float, set, *seed, n, Family::Shifts, size, PAPER, &mut |k| progress.add(k))
        })?);
    }
    if late.is_empty() {
        by_checkpoint.push(lines[0].1.clone());
    } else {
        let ones: Vec<Vec<Guess>> = (0..n).map(|i| by_checkpoint.iter().map(|c| c[i][0].clone()).collect()).collect();
        data.extend(rows(&mut table, "late checkpoints (float)", &ones, &powers(late.len()), macs));
    }
    let ablation = Ablation::new(&by_checkpoint);
    table.row([
        format!("**the paper's protocol**: digit shifts x {} checkpoint(s)", by_checkpoint.len()),
        (by_checkpoint.len() * size).to_string(),
        "majority of halted passes, OR over checkpoints (**uses labels**)".into(),
        percent(ablation.all, n),
        "-".into(),
        format!("{:.2}", (by_checkpoint.len() * size * PAPER) as f64 * macs as f64 / 1e9),
    ]);
    lab.end();
    let mut chart = Chart::new("Puzzles with a valid answer among k guesses (verifier)", "guesses k", "share of puzzles").y_range(0.0, 1.0);
    for (name, guesses) in &lines {
        let most = guesses[0].len();
        chart = chart.with(
            name,
            Mark::Line,
            (1..=most).map(|k| (k as f64, guesses.iter().filter(|g| g[..k].iter().any(|x| x.valid.is_some())).count() as f64 / n as f64)),
        );
    }
    let equivariant = lab.subject.config().fields > 1;
    let mixed = lab.record().map(|r| r.data.easier > 0.0);
    let paper = ablation.table(mixed, by_checkpoint.len(), n);
    let one = lines[0].1.iter().filter(|g| g[0].right).count();
    let wins = lines
        .iter()
        .map(|(name, g)| (g.iter().filter(|g| g.iter().any(|x| x.valid.is_some())).count(), *name))
        .max()
        .unwrap_or((0, "none"));
    Ok(Section {
        title: "Scaling guesses".into(),
        method: vec![format!(
            "Every guess runs {PAPER} segments to the end; the verifier looks after every segment and stops at the first grid that keeps rules and givens, all other selections pay for all guesses. Noise: \
             {NOISE} to {:.1} standard deviations of the stream before each segment. pass@k is an oracle. The paper's protocol counts only passes that the Q head halts, takes a strict majority of \
             them that equals the *label*, and calls a puzzle solved if that holds for any checkpoint: it reads the label twice, so it is a bound and no method.",
            2.0 * NOISE
        )],
        findings: vec![
            format!(
                "Nine digit shifts with the start shifted along give the same answer nine times on {} of the puzzles. {}",
                percent(coincide, n),
                if equivariant && coincide == n {
                    "This network is exactly equivariant to relabelling: the paper's perturbation is no perturbation for it, unless the random start stays where it is."
                } else {
                    ""
                }
            ),
            format!("Widest: {} find a valid grid with {}; one guess: {}.", percent(wins.0, n), wins.1, percent(one, n)),
            format!("One long guess: {} right after 64 segments, {} after 256.", percent(at(64), n), percent(at(256), n)),
        ],
        data: json!({ "rows": data, "coincide": coincide, "n": n, "mixed": mixed, "ablation": ablation }),
        tables: vec![paper, table],
        plots: vec![Plot {
            name: "guesses".into(),
            caption: format!("{n} puzzles; what the verifier finds among the first k guesses of {PAPER} segments."),
            svg: chart.svg(),
        }],
        ..Section::default()
    })
}
