//! The ONNX export run by tract, against the core: states, answers and Q outputs, bit for bit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hrm_core::format::AlignedBytes;
use hrm_core::{Config, ModelView, Plan, Run, testing};
use hrm_embedded::tract::{Heads, Tract, TractError};
use hrm_embedded::{Model, Workspace};
use hrm_train::export;

fn tract(file: &AlignedBytes) -> Tract {
    let onnx = export::onnx(&ModelView::new_checked(file.as_slice()).unwrap()).unwrap();
    Tract::from_bytes(&onnx, Path::new("model.onnx")).unwrap()
}

/// The answer that logits mean, by the rule of the numerics page: the largest, the lowest index on ties.
fn answer(c: &Config, logits: &[i32]) -> Vec<u8> {
    let tokens = usize::from(c.tokens);
    let first = |l: &[i32]| l.iter().enumerate().fold((i32::MIN, 0), |best, (i, &v)| if v > best.0 { (v, i) } else { best }).1;
    logits.chunks_exact(logits.len() / tokens).map(|l| (first(l) + if c.fields > 1 { 2 } else { 0 }) as u8).collect()
}

/// Runs `puzzles` for `segments` segments on both sides, tract always on its own carry. Returns the time of each side.
fn compare(name: &str, file: &AlignedBytes, puzzles: impl Iterator<Item = Vec<u8>>, segments: usize) -> (Duration, Duration) {
    let tract = tract(file);
    let model = Model::from_bytes(file.as_slice()).unwrap();
    let (network, c) = (*model.network(), *model.config());
    let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
    let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
    let mut times = (Duration::ZERO, Duration::ZERO);
    for (p, tokens) in puzzles.enumerate() {
        run.start(&tokens, 7, p as u64).unwrap();
        let (mut h, mut l) = (run.carry().0.to_vec(), run.carry().1.to_vec());
        for s in 1..=segments {
            let begin = Instant::now();
            run.segment().unwrap();
            times.0 += begin.elapsed();
            let begin = Instant::now();
            let Heads { logits, q } = tract.segment(&tokens, &mut h, &mut l).unwrap();
            times.1 += begin.elapsed();
            let place = format!("{name}, puzzle {p}, segment {s}");
            assert_eq!(answer(&c, &logits), run.answer(), "answer: {place}");
            assert_eq!((&*h, &*l), run.carry(), "carry: {place}");
            assert_eq!(q, [run.q().0, run.q().1][..q.len()], "q: {place}");
        }
    }
    println!("{name}: core {:?}, tract {:?}, ratio {:.1}", times.0, times.1, times.1.as_secs_f64() / times.0.as_secs_f64());
    times
}

fn random_puzzles(c: Config, count: u64) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(move |p| testing::random_tokens(&c, p))
}

#[test]
fn every_mixer_on_a_hundred_puzzles() {
    for (name, config) in testing::configs() {
        // Token mixing over 97 rows is the slowest of these; all of them diverge within a segment if one bit is wrong.
        compare(name, &testing::random_model(&config, 5).unwrap(), random_puzzles(config, 100), 4);
    }
}

#[test]
fn the_nine_by_nine_shape() {
    let config = testing::sudoku_config();
    compare("sudoku 9x9, random", &testing::random_model(&config, 2).unwrap(), random_puzzles(config, 2), 4);
}

/// The models of the repository, as many as there are.
fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "hrm")).collect();
    files.sort();
    files
}

#[test]
fn the_shipped_models() {
    for path in shipped() {
        let file = AlignedBytes::new(&fs::read(&path).unwrap());
        let config = *ModelView::new_checked(file.as_slice()).unwrap().config();
        // Real states; a segment of the 9x9 model takes long in tract.
        let (puzzles, segments) = if config.tokens > 36 { (10, 4) } else { (100, 8) };
        compare(&path.display().to_string(), &file, random_puzzles(config, puzzles), segments);
    }
}

#[test]
fn solving_gives_the_same_outcome_and_hash() {
    let (_, config) = testing::configs().into_iter().find(|(name, _)| *name == "group-sum").unwrap();
    let file = testing::random_model(&config, 5).unwrap();
    let (tract, model) = (tract(&file), Model::from_bytes(file.as_slice()).unwrap());
    let mut options = model.default_options();
    (options.guesses, options.seed) = (3, 11);
    let puzzle = [2, 1, 1, 1, 1, 1, 3, 1, 1, 4, 1, 1, 1, 1, 1, 5];
    let mut events = 0;
    let mut workspace = Workspace::default();
    let mut by_tract = tract.solve_in(&model, &mut workspace, &puzzle, &options, |_, _| events += 1).unwrap();
    let by_core = model.solve(&puzzle, &options).unwrap();
    by_tract.time = by_core.time;
    assert_eq!(by_tract, by_core);
    assert_eq!(events, by_core.segments);
    // Another seed takes another way: the hash is no constant.
    options.seed = 12;
    assert_ne!(tract.solve_in(&model, &mut workspace, &puzzle, &options, |_, _| {}).unwrap().hash, by_core.hash);
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let (_, config) = testing::configs().into_iter().find(|(name, _)| *name == "group-sum").unwrap();
    let [first, second] = [1, 2].map(|seed| testing::random_model(&config, seed).unwrap());
    let other = Model::from_bytes(second.as_slice()).unwrap();
    let tract = tract(&first);
    let error = tract.check(&other).unwrap_err();
    assert!(matches!(error, TractError::OtherModel { .. }), "{error}");
    assert!(error.to_string().ends_with("export it again"), "{error}");
    let mut z = vec![0; 12];
    assert!(matches!(tract.segment(&[1; 16], &mut z.clone(), &mut z), Err(TractError::Run(_))));

    let onnx = export::onnx(&ModelView::new_checked(first.as_slice()).unwrap()).unwrap();
    for bytes in [&b""[..], b"not a graph", &onnx[..onnx.len() / 2]] {
        let error = Tract::from_bytes(bytes, Path::new("x.onnx")).unwrap_err();
        assert!(error.to_string().starts_with("x.onnx: "), "{error}");
    }
    let error = Tract::open("/no/such/file.onnx").unwrap_err().to_string();
    assert!(error.starts_with("cannot read the ONNX file /no/such/file.onnx: "), "{error}");
}

#[test]
fn the_export_is_written_at_once_and_only_for_valid_models() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let file = testing::random_model(&testing::configs()[2].1, 1).unwrap();
    fs::write(at("m.hrm"), file.as_slice()).unwrap();
    let bytes = export::export(&at("m.hrm"), &at("m.onnx")).unwrap();
    assert_eq!(bytes as u64, fs::metadata(at("m.onnx")).unwrap().len());
    Tract::open(at("m.onnx")).unwrap().check(&Model::open(at("m.hrm")).unwrap()).unwrap();
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");

    fs::write(at("bad.hrm"), &file.as_slice()[..500]).unwrap();
    assert!(export::export(&at("bad.hrm"), &at("bad.onnx")).is_err());
    assert!(!at("bad.onnx").exists());
    let error = format!("{:#}", export::export(&at("m.hrm"), Path::new("/no/such/folder/m.onnx")).unwrap_err());
    assert!(error.starts_with("cannot write /no/such/folder/m.onnx"), "{error}");
}
