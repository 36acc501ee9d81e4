//! What each guess gets to see and how deep it goes, on a model that never finds a valid grid.
#![cfg(feature = "std")]

use hrm_core::config::{Config, Mixer, Start};
use hrm_core::iterate::Policy;
use hrm_core::schedule::{Depth, MOST_ASSUMED};
use hrm_core::solve::{Options, Perturb, Select};
use hrm_core::testing::{self, random_model};
use hrm_core::{Broken, Kernel, ModelView, Network, Plan, Run, Solver};

fn config(start: Start) -> Config {
    Config {
        shared: true,
        mixer: Mixer::GroupSum,
        start,
        rope: false,
        tokens: 81,
        prefix: 0,
        vocab: 11,
        fields: if start == Start::Random { 9 } else { 1 },
        channels: 8,
        inner: 8,
        token_inner: 0,
        heads: 0,
        groupings: 4,
        h_layers: 1,
        l_layers: 1,
        h_cycles: 1,
        l_cycles: 1,
    }
}

/// (guess, tokens it saw, answer at its end, segments it took) of every guess.
fn guesses(start: Start, options: Options) -> Vec<(u16, Vec<u8>, Vec<u8>, u16)> {
    let file = random_model(&config(start), 3).unwrap();
    let view = ModelView::new_checked(file.as_slice()).unwrap();
    let mut packed = vec![0; Network::packed_words(&view, Kernel::REFERENCE)];
    let network = Network::new(view, Kernel::REFERENCE, &mut packed).unwrap();
    let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
    let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
    let mut memory = vec![0; Solver::required_bytes(81, &options)];
    let mut solver = Solver::new(&mut run, &puzzle(), options, &mut memory).unwrap();
    let mut out: Vec<(u16, Vec<u8>, Vec<u8>, u16)> = Vec::new();
    while let Some(event) = solver.step().unwrap() {
        let (tokens, answer) = (solver.run().tokens().to_vec(), solver.answer_now().to_vec());
        if out.last().is_none_or(|last| last.0 != event.guess) {
            out.push((event.guess, tokens, Vec::new(), 0));
        }
        let last = out.last_mut().unwrap();
        (last.2, last.3) = (answer, event.segment.index);
    }
    out
}

fn puzzle() -> Vec<u8> {
    let mut puzzle = vec![1u8; 81];
    (puzzle[0], puzzle[40], puzzle[80]) = (2, 3, 4);
    puzzle
}

fn options(select: Select, perturb: Perturb) -> Options {
    let policy = Policy { fixed_point: false, ..Policy::budget(6) };
    Options { policy, guesses: 12, select, perturb, noise: 0, seed: 5 }
}

#[test]
fn guesses_assume_cells_of_the_answer_before() {
    for start in [Start::Random, Start::Fixed] {
        let all = guesses(start, options(Select::Verify, Perturb::Auto));
        assert_eq!(all.len(), 12);
        assert_eq!((&all[0].1, all[0].3), (&puzzle(), 6));
        let mut assumed = Vec::new();
        for pair in all.windows(2) {
            let (answer, tokens) = (&pair[0].2, &pair[1].1);
            let cells: Vec<usize> = (0..81).filter(|&c| tokens[c] != puzzle()[c]).collect();
            assert!(cells.len() <= MOST_ASSUMED as usize && cells.iter().all(|&c| puzzle()[c] == 1 && tokens[c] == answer[c]), "{cells:?}");
            assert_eq!(pair[1].3, 3);
            assumed.extend(cells);
        }
        // The fixed start of this model answers with two digits only: nothing to assume, so the start has to differ.
        assert!(assumed.len() >= 6 || start == Start::Fixed, "{assumed:?}");
        assert!(all.windows(2).all(|pair| pair[0].2 != pair[1].2));
    }
}

/// The network finds by itself what its answers agree on.
#[test]
fn guesses_assume_what_the_last_two_answers_differ_in() {
    let all = guesses(Start::Random, options(Select::Verify, Perturb::Assume));
    let mut unsure = 0;
    for three in all.windows(3) {
        let (before, last, tokens) = (&three[0].2, &three[1].2, &three[2].1);
        let assumed = (0..81).filter(|&c| tokens[c] != puzzle()[c]);
        let differ: Vec<bool> = assumed.map(|c| before[c] != last[c]).collect();
        // Any cells, if none of those that differ keeps the rules.
        assert!(differ.iter().all(|&d| d == differ[0]), "{differ:?}");
        unsure += differ.iter().filter(|&&d| d).count();
    }
    assert!(unsure > 0);
    assert_ne!(all, guesses(Start::Random, options(Select::Verify, Perturb::AssumeAny)));
}

#[test]
fn guesses_of_a_vote_do_not_know_of_each_other() {
    for guess in guesses(Start::Random, options(Select::Vote, Perturb::Auto)) {
        assert_eq!((guess.1, guess.3), (puzzle(), 6));
    }
}

#[test]
fn depths_and_a_settled_state() {
    let mut o = options(Select::Verify, Perturb::Starts);
    o.policy.depth = Depth::Doubling(2);
    o.guesses = 5;
    assert_eq!(guesses(Start::Random, o).iter().map(|g| g.3).collect::<Vec<_>>(), [6, 6, 12, 12, 24]);
    // Every state of this model moves by less than 64 times its size: each guess is given up after one segment.
    o.policy.settled = u16::MAX;
    assert!(guesses(Start::Random, o).iter().all(|g| g.3 == 1));
}

/// Whatever the guesses before have answered: once an invariant is broken, nothing is an answer any more.
#[test]
fn a_broken_invariant_ends_without_an_answer() {
    for (name, config) in testing::configs() {
        let file = random_model(&config, 3).unwrap();
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        let tokens = vec![1; usize::from(config.tokens)];
        for plan in [Plan::HOST, Plan::DEVICE, Plan::ROOMY] {
            let network = Network::reference(view);
            let mut arena = vec![0; network.required_bytes(plan).div_ceil(8)];
            let mut run = Run::new(network, &mut arena, plan).unwrap();
            let options =
                Options { policy: Policy::budget(1), guesses: 9, select: Select::Vote, perturb: Perturb::Starts, noise: 0, seed: 1 };
            let mut memory = vec![0; Solver::required_bytes(tokens.len(), &options)];
            let mut solver = Solver::new(&mut run, &tokens, options, &mut memory).unwrap();
            assert!(solver.step().unwrap().is_some() && solver.outcome().answer.is_some(), "{name}");
            let damaged = |run: &mut Run<'_, '_>| {
                testing::damage(run);
                run.segment()
            };
            let broken: Broken = solver.step_by(damaged).unwrap_err();
            assert!(["layers.rs", "lean.rs"].contains(&broken.place().0), "{name}: {broken}");
            let outcome = solver.outcome();
            assert_eq!((outcome.answer, outcome.verified, outcome.confidence), (None, false, 0.0), "{name}");
            assert_eq!(solver.step(), Ok(None), "{name}");
            // The memory has not come back.
            run.start(&tokens, 1, 0).unwrap();
            assert!(run.segment().is_err() && run.segment_parts(&mut |_| {}).is_err(), "{name}");
        }
    }
}
