//! Failures on easy puzzles: cells are revealed until few are unknown.

use serde_json::json;

use super::report::{Plot, Section, Table};
use super::svg::{Chart, Mark};
use super::{Lab, PAPER, percent, reveal};
use crate::engine::StartOf;

/// Puzzles at each number of unknowns, as a part of `--n`.
const PART: usize = 20;

/// Counts at one number of unknowns.
#[derive(Clone, Debug, Default)]
struct Level {
    of: usize,
    right_at: Vec<usize>,
    ever: usize,
    stays: usize,
}

pub fn run(lab: &mut Lab) -> anyhow::Result<Section> {
    let sudoku = lab.set.sudoku;
    let cells = sudoku.cells();
    let most = if cells == 81 { 64 } else { cells };
    let each = (lab.n / PART).max(3);
    let mut random = lab.random(1);
    let (mut inputs, mut labels, mut starts, mut unknowns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for level in 1..=most {
        let (mut found, mut tried) = (0, 0);
        while found < each && tried < 50 * each {
            tried += 1;
            let i = random(lab.set.len());
            let mut puzzle = lab.set.input(i).to_vec();
            if puzzle.iter().filter(|&&t| t == 1).count() < level {
                continue;
            }
            reveal(&mut puzzle, lab.set.label(i), level, &mut random);
            found += 1;
            inputs.extend(&puzzle);
            labels.extend(lab.set.label(i));
            // A seed of its own, so that `hrm trace --seed` begins at the same state.
            starts.push(StartOf { seed: lab.seed + unknowns.len() as u64, number: 0 });
            unknowns.push(level);
        }
    }
    lab.begin("easy", unknowns.len() * PAPER);
    let traces = lab.trace(&inputs, &labels, PAPER, &starts)?;
    lab.end();
    let mut levels = vec![Level { right_at: vec![0; PAPER], ..Level::default() }; most + 1];
    let mut failures = Vec::new();
    for (i, (trace, &level)) in traces.iter().zip(&unknowns).enumerate() {
        let l = &mut levels[level];
        l.of += 1;
        for (count, &exact) in l.right_at.iter_mut().zip(&trace.exact) {
            *count += usize::from(exact);
        }
        let stays = trace.first_right().is_some_and(|s| trace.stays_right_from(s));
        l.ever += usize::from(trace.first_right().is_some());
        l.stays += usize::from(stays);
        if !stays {
            failures.push((level, i, trace.first_right()));
        }
    }
    let mut table = Table::new(
        "By unknown cells",
        &["unknown", "puzzles", "right after 1", "after 4", "after 16", "right once, then left", "right and stays"],
    );
    let step = most.div_ceil(8);
    for from in (1..=most).step_by(step) {
        let part = &levels[from..=(from + step - 1).min(most)];
        let sum = |f: &dyn Fn(&Level) -> usize| part.iter().map(f).sum::<usize>();
        let of = sum(&|l| l.of);
        table.row([
            format!("{from}-{}", (from + step - 1).min(most)),
            of.to_string(),
            percent(sum(&|l| l.right_at[0]), of),
            percent(sum(&|l| l.right_at[3]), of),
            percent(sum(&|l| l.right_at[PAPER - 1]), of),
            sum(&|l| l.ever - l.stays).to_string(),
            percent(sum(&|l| l.stays), of),
        ]);
    }
    failures.sort_unstable();
    let text = |tokens: &[u8]| sudoku.format(tokens, &mut [0; 81]).map(str::to_owned).unwrap_or_default();
    let mut simplest = Table::new("The simplest puzzles that fail", &["unknown", "what happens", "again"]);
    for &(level, i, first) in failures.iter().take(8) {
        let what = first.map_or("never right".to_owned(), |s| format!("right after {s}, not to the end"));
        let puzzle = text(&inputs[i * cells..(i + 1) * cells]);
        // `hrm trace` runs `.hrm` files; a float model of a fixed start needs no seed either.
        let again = if lab.int8.is_some() {
            format!("`hrm trace --seed {} --segments {PAPER} {puzzle}`", starts[i].seed)
        } else {
            format!("`{puzzle}` (start {})", starts[i].seed)
        };
        simplest.row([level.to_string(), what, again]);
    }
    let line = |f: &dyn Fn(&Level) -> usize| -> Vec<(f64, f64)> {
        levels.iter().enumerate().filter(|(_, l)| l.of > 0).map(|(u, l)| (u as f64, f(l) as f64 / l.of as f64)).collect()
    };
    let chart = Chart::new("Right answers by number of unknown cells", "unknown cells", "share of puzzles")
        .y_range(0.0, 1.0)
        .with("after 1 segment", Mark::Line, line(&|l| l.right_at[0]))
        .with("after 4", Mark::Line, line(&|l| l.right_at[3]))
        .with("after 16", Mark::Line, line(&|l| l.right_at[PAPER - 1]))
        .with("right and stays", Mark::Line, line(&|l| l.stays));
    let easy = levels[1..=most.min(9)].iter().fold((0, 0), |a, l| (a.0 + l.stays, a.1 + l.of));
    let one = &levels[1];
    let left: usize = levels.iter().map(|l| l.ever - l.stays).sum();
    let ever: usize = levels.iter().map(|l| l.ever).sum();
    Ok(Section {
        title: "Easy failures".into(),
        method: vec![format!(
            "Cells of puzzles of the set are revealed, in random order, until 1 to {most} are unknown; {each} puzzles for each number, {PAPER} segments. *Right*: all \
             cells. *Stays*: right after some segment and after all later ones."
        )],
        findings: vec![
            "Paper: HRM fails on puzzles with a single unknown cell, and stays right on about 75 % of very easy puzzles (third parties' notes of the paper; the \
             mask size is not certain)."
                .into(),
            format!(
                "Ours: with one unknown cell {} are right and stay so, with 1 to 9 {}. Of {ever} runs that were right once, {left} did not stay right. {}",
                percent(one.stays, one.of),
                percent(easy.0, easy.1),
                match (easy.0 == easy.1, lab.record().map(|r| r.data.easier)) {
                    (false, _) => "Failures on easy puzzles exist here too.".to_owned(),
                    (true, Some(p)) if p > 0.0 => format!("No easy puzzle fails; the model was trained with easier puzzles in {:.0} % of its draws (the paper's data mixing).", 100.0 * p),
                    (true, _) => "No easy puzzle fails.".to_owned(),
                }
            ),
        ],
        data: json!({
            "each": each, "levels": levels.iter().enumerate().map(|(u, l)| json!({"unknown": u, "of": l.of, "right_at": l.right_at, "ever": l.ever, "stays": l.stays})).collect::<Vec<_>>(),
        }),
        tables: vec![table, simplest],
        plots: vec![Plot { name: "easy".into(), caption: format!("P(right at segment s) and P(right and stays right) by unknown cells; {each} puzzles each."), svg: chart.svg() }],
        ..Section::default()
    })
}
