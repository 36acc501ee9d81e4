//! `hrm solve` and `hrm-train eval` are the same computation: equal answers, segments and state hashes, on one and on two threads.

use std::path::Path;
use std::process::Command;

use hrm_embedded::Model;
use hrm_embedded::hrm_core::Plan;
use hrm_embedded::hrm_core::solve::Select;
use hrm_train::data::{GeneratorOptions, PuzzleSet, Side, generate};
use hrm_train::evaluate_int8::Int8;
use hrm_train::guesses::{GuessOptions, Guessed, int8};

fn model_path(size: usize) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/sudoku-{size}x{size}.hrm"))
}

fn puzzles(size: usize, n: usize) -> PuzzleSet {
    let options =
        GeneratorOptions { size, seed: 41, extra_givens: if size < 9 { 6 } else { 0 }, side: Side::Test, ..GeneratorOptions::default() };
    generate(&options, n).unwrap()
}

/// By `hrm-train eval`, on `threads` threads.
fn evaluated(size: usize, set: &PuzzleSet, options: GuessOptions, threads: usize) -> Vec<Guessed> {
    let model = Int8::load(&model_path(size), options.seed).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| int8(&model, set, set.len(), options)).unwrap()
}

/// By what `hrm solve` calls.
fn solved(size: usize, set: &PuzzleSet, o: GuessOptions) -> Vec<Guessed> {
    let model = Model::open(model_path(size)).unwrap();
    let mut options = model.default_options();
    (options.guesses, options.select, options.seed, options.policy.segments) = (o.guesses, o.select, o.seed, o.segments);
    (0..set.len())
        .map(|i| {
            let s = model.solve(set.input(i), &options).unwrap();
            Guessed { answer: s.answer, guesses: s.guesses, segments: s.segments, hash: Some(s.hash) }
        })
        .collect()
}

#[test]
fn solve_and_eval_agree_in_every_state_hash() {
    for (size, n, segments) in [(4, 60, 4), (6, 30, 4), (9, 8, 6)] {
        let set = puzzles(size, n);
        for select in [Select::Verify, Select::Vote, Select::Q, Select::Residual, Select::First] {
            let options = GuessOptions { guesses: 3, segments, select, seed: 5 };
            let one = evaluated(size, &set, options, 1);
            assert_eq!(one, evaluated(size, &set, options, 2), "{size}, {select:?}: threads");
            assert_eq!(one, solved(size, &set, options), "{size}, {select:?}: solve");
            let other = evaluated(size, &set, GuessOptions { seed: 6, ..options }, 1);
            assert_ne!(one, other, "{size}, {select:?}: the seed does nothing");
        }
    }
}

#[test]
fn the_commands_print_the_same_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, out) = (folder.path().join("p.csv"), folder.path().join("p.jsonl"));
    let set = puzzles(4, 40);
    hrm_train::data::csv::write(&csv, &set).unwrap();
    let bin = |name: &str| {
        let exe = std::env::current_exe().unwrap();
        exe.ancestors().map(|dir| dir.join(name)).find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is not built"))
    };
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let settings = ["--segments", "3", "--guesses", "2", "--seed", "9"];
    let eval = run(Command::new(bin("hrm-train"))
        .args(["eval", "--model"])
        .arg(model_path(4))
        .arg("--data")
        .arg(&csv)
        .args(settings)
        .arg("--puzzles")
        .arg(&out));
    assert!(eval.contains("int8 model, 40 puzzles, seed 9, up to 2 guesses of up to 3 segments, selected by verify"), "{eval}");
    let field = |line: &str, name: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[name].clone();
    let fields = |text: &str| -> Vec<_> { text.lines().map(|l| ["hash", "answer", "segments", "guesses"].map(|f| field(l, f))).collect() };
    let expected = fields(&std::fs::read_to_string(&out).unwrap());
    assert_eq!(expected.len(), 40);
    for threads in ["1", "2"] {
        let solve = run(Command::new(bin("hrm")).arg("solve").arg(&csv).args(settings).args(["--format", "jsonl", "--threads", threads]));
        assert_eq!(fields(&solve), expected, "{threads} threads");
    }
}

/// The models for devices with 128 and 256 KiB of RAM fit them, and solve more than half of puzzles that they were not trained on.
#[test]
fn the_other_models_fit_and_solve() {
    let set = puzzles(9, 8);
    for (name, kib) in [("tiny", 128), ("wide", 256), ("large", 256)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/sudoku-9x9-{name}.hrm"));
        let model = Model::open(path).unwrap();
        let arena = model.network().required_bytes(Plan::DEVICE);
        assert!(arena + 1024 <= kib * 1024, "{name}: {arena} bytes, and the solver's");
        let options = model.default_options();
        let solved =
            (0..set.len()).filter(|&i| model.solve(set.input(i), &options).unwrap().answer.as_deref() == Some(set.label(i))).count();
        assert!(solved > set.len() / 2, "{name}: {solved} of {}", set.len());
    }
}

/// Puzzles around a trivalue oddagon, as hard as the collections', of which models that were not trained on such solve few in one pass.
#[test]
fn models_that_learned_oddagons_solve_them_in_one_pass() {
    let set = generate(&GeneratorOptions { oddagon: true, seed: 3, ..GeneratorOptions::default() }, 24).unwrap();
    let solved = |name: &str| {
        let model = Model::open(model_path(9).with_file_name(name)).unwrap();
        let mut options = model.default_options();
        (options.guesses, options.policy.segments) = (1, 64);
        (0..set.len()).filter(|&i| model.solve(set.input(i), &options).unwrap().answer.as_deref() == Some(set.label(i))).count()
    };
    let (embedded, large, wide) = (solved("sudoku-9x9.hrm"), solved("sudoku-9x9-large.hrm"), solved("sudoku-9x9-wide.hrm"));
    assert!(embedded >= 20 && large >= 20 && wide <= 12, "{embedded}, {large} and {wide} of {}", set.len());
}
