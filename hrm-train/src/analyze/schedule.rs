//! How a verified task spends its guesses: the policies of [`hrm_core::schedule`] on held-out training puzzles, by the solver that ships.

use hrm_core::iterate::Policy;
use hrm_core::schedule::Depth;
use hrm_core::solve::{Options, Perturb, Select};
use hrm_core::{Plan, Solver};
use serde_json::json;

use super::report::{Plot, Section, Table};
use super::svg::{Chart, Mark};
use super::{Lab, PAPER, percent};

/// Segments that a puzzle may cost at most, in every policy: 16 and 63 times 8.
const BUDGET: u32 = 520;

/// What came of one puzzle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spent {
    solved: bool,
    wrong: bool,
    segments: u32,
}

fn options(perturb: Perturb, depth: Depth, segments: u16, change: impl FnOnce(&mut Options)) -> Options {
    let policy = Policy { depth, ..Policy::budget(segments) };
    let select = Select::Verify;
    let guesses = depth.guesses_within(BUDGET, segments, perturb.assumes(select));
    let mut o = Options { policy, guesses, select, perturb, noise: 0, seed: 0 };
    change(&mut o);
    o
}

pub fn run(lab: &mut Lab) -> anyhow::Result<Option<Section>> {
    let (Some(int8), Some(set)) = (&lab.int8, &lab.holdout) else { return Ok(None) };
    let n = (lab.n / 6).clamp(1, set.len());
    let paper = PAPER as u16;
    let plain = |_: &mut Options| {};
    let policies = [
        ("one guess", options(Perturb::Starts, Depth::Same, paper, |o| o.guesses = 1)),
        ("one long guess", options(Perturb::Starts, Depth::Same, BUDGET as u16, |o| o.guesses = 1)),
        ("starts", options(Perturb::Starts, Depth::Same, paper, plain)),
        ("starts, Luby x 8", options(Perturb::Starts, Depth::Luby, 8, plain)),
        ("starts, doubling every 4", options(Perturb::Starts, Depth::Doubling(4), 8, plain)),
        ("starts, give up settled states", options(Perturb::Starts, Depth::Same, paper, |o| o.policy.settled = 100)),
        ("starts, give up after 4 unchanged answers", options(Perturb::Starts, Depth::Same, paper, |o| o.policy.stable = 4)),
        ("starts and symmetries", options(Perturb::Both, Depth::Same, paper, plain)),
        ("starts and noise 0.1", options(Perturb::Starts, Depth::Same, paper, |o| o.noise = 102)),
        ("assume any cells, 16 then 8", options(Perturb::AssumeAny, Depth::Auto, paper, plain)),
        ("assume, 16 each", options(Perturb::Assume, Depth::Same, paper, plain)),
        ("assume, 16 then 8 (default)", options(Perturb::Assume, Depth::Auto, paper, plain)),
        ("assume, 16 then 4", options(Perturb::Assume, Depth::Later(4), paper, plain)),
        ("assume, 8 each", options(Perturb::Assume, Depth::Same, 8, plain)),
    ];
    lab.progress = super::Progress { what: "schedule", done: 0, of: policies.len() };
    let puzzles: Vec<&[u8]> = (0..n).map(|i| set.input(i)).collect();
    let mut results = Vec::new();
    for (name, o) in policies {
        let spent = int8.each(&puzzles, |i, run| {
            let mut memory = vec![0; Solver::required_bytes(puzzles[i].len(), &o)];
            let mut solver = Solver::new(run, puzzles[i], o, &mut memory)?;
            let outcome = solver.finish()?;
            Ok(Spent { solved: outcome.verified, wrong: outcome.answer.is_some_and(|a| a != set.label(i)), segments: outcome.segments })
        })?;
        lab.progress.add(1);
        results.push((name, o, spent));
    }
    let macs = lab.subject.segment_macs() as f64 / 1e9;
    let mean = |s: &[Spent]| s.iter().map(|s| f64::from(s.segments)).sum::<f64>() / n as f64;
    let one = mean(&results[0].2);
    let mut table = Table::new(
        &format!(
            "{n} held-out training puzzles, at most {BUDGET} segments a puzzle, verifier ({}; {plan:?})",
            int8.view()?.header().name(),
            plan = Plan::HOST.schedule
        ),
        &["policy", "guesses", "solved", "wrong", "segments on average", "GMAC", "cost of one guess"],
    );
    for (name, o, spent) in &results {
        let solved = spent.iter().filter(|s| s.solved).count();
        let average = mean(spent);
        table.row([
            (*name).to_owned(),
            o.guesses.to_string(),
            percent(solved, n),
            spent.iter().filter(|s| s.wrong).count().to_string(),
            format!("{average:.1}"),
            format!("{:.2}", average * macs),
            format!("{:.1} x", average / one),
        ]);
    }
    let mut chart = Chart::new("Solved within a number of segments", "segments a puzzle", "share of puzzles").y_range(0.0, 1.0);
    for (name, _, spent) in
        results.iter().filter(|r| ["one long guess", "starts", "starts, Luby x 8", "assume, 16 then 8 (default)"].contains(&r.0))
    {
        let share = |limit: u32| spent.iter().filter(|s| s.solved && s.segments <= limit).count() as f64 / n as f64;
        chart = chart.with(name, Mark::Line, (0..=BUDGET).step_by(8).map(|s| (f64::from(s), share(s))));
    }
    lab.end();
    let solved =
        |name: &str| results.iter().find(|r| r.0 == name).map_or((0, 0.0), |r| (r.2.iter().filter(|s| s.solved).count(), mean(&r.2)));
    let (single, (default, cost)) = (solved("one guess").0, solved("assume, 16 then 8 (default)"));
    let wrong: usize = results.iter().flat_map(|r| &r.2).filter(|s| s.wrong).count();
    Ok(Some(Section {
        title: "The cure: scheduling guesses".into(),
        method: vec![
            "The solver of `hrm solve` and of the firmware, on training puzzles that were held out of training: no test set is looked at for the choice. *Assume*: a few cells that \
             break no rule and in which the last two answers differ are taken for granted, as the last has them, in the next guess, which starts afresh; the verifier judges by the puzzle alone."
                .into(),
        ],
        findings: vec![
            format!("One guess leaves {} of {n} unsolved; the default, up to 64 guesses, {} at {:.1} times the average cost. Wrong answers over all policies: {wrong}.", n - single, n - default, cost / one),
            format!(
                "Must hold (at most half as many unsolved, below 8 times the cost, none wrong): {}.",
                if 2 * (n - default) <= n - single && cost < 8.0 * one && wrong == 0 { "holds here" } else { "does not hold here" }
            ),
        ],
        data: json!(results.iter().map(|(name, o, s)| json!({"policy": name, "guesses": o.guesses, "solved": s.iter().filter(|s| s.solved).count(), "of": n, "segments": mean(s)})).collect::<Vec<_>>()),
        tables: vec![table],
        plots: vec![Plot { name: "schedule".into(), caption: "What a budget of segments buys.".into(), svg: chart.svg() }],
        ..Section::default()
    }))
}
