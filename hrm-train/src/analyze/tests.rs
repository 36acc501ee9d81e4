//! The measures on maps whose behaviour is known, and the whole command on small models.

use std::path::{Path, PathBuf};

use hrm_core::task::Sudoku;
use hrm_core::{Config, Mixer, Start};

use super::attractors::{Mode, basins};
use super::dynamics::reliability;
use super::fixed_point::{classify, two_by_two};
use super::grokking::leap;
use super::guesses::{Ablation, Guess, Rule, paper_protocol, shift_fields};
use super::subject::{Float, Integer, Subject};
use super::trace::{Job, Trace, run_from};
use super::{Analyze, EngineArgument, Experiment};
use crate::checkpoint::write_atomic;
use crate::engine::fused::FusedEngine;
use crate::engine::{Carry, Engine, Reading, StartOf};
use crate::evaluate::Model as _;
use crate::evaluate_int8::Int8;
use crate::model_file::{FloatModel, build_engine};
use crate::run_config::{EngineKind, RunConfig};

const CELLS: usize = 16;

/// A "network" of one channel whose segment is a given map of the state. Its answer is right where z_H is below one half.
struct Map {
    config: Config,
    step: fn(usize, f32) -> f32,
    labels: Vec<u8>,
}

fn config(start: Start) -> Config {
    Config {
        shared: true,
        mixer: Mixer::GroupSum,
        start,
        rope: false,
        tokens: CELLS as u16,
        prefix: 0,
        vocab: 6,
        fields: 1,
        channels: 1,
        inner: 4,
        token_inner: 0,
        heads: 0,
        groupings: 0,
        h_layers: 1,
        l_layers: 1,
        h_cycles: 1,
        l_cycles: 1,
    }
}

impl Subject for Map {
    fn kind(&self) -> &'static str {
        "map"
    }
    fn config(&self) -> &Config {
        &self.config
    }
    fn segment_macs(&self) -> u64 {
        1
    }
    fn begin(&mut self, starts: &[StartOf], _: bool) -> anyhow::Result<Carry> {
        let z: Vec<f32> =
            starts.iter().flat_map(|s| (0..CELLS).map(move |i| 1.0 + (s.number as usize * 31 + i * 7) as f32 % 13.0 / 13.0)).collect();
        Ok(Carry { l: vec![0.0; z.len()], h: z })
    }
    fn advance(&mut self, inputs: &[u8], carry: &mut Carry) -> anyhow::Result<Reading> {
        assert_eq!(inputs.len(), carry.h.len());
        for (i, z) in carry.h.iter_mut().enumerate() {
            *z = (self.step)(i / CELLS, *z);
        }
        self.read(carry)
    }
    fn read(&mut self, carry: &Carry) -> anyhow::Result<Reading> {
        let tokens = carry.h.iter().zip(self.labels.iter().cycle()).map(|(&z, &l)| if z < 0.5 { l } else { 1 }).collect();
        let n = carry.h.len() / CELLS;
        Ok(Reading { logits: vec![0.0; 6 * carry.h.len()], tokens, q_halt: vec![0.0; n], q_continue: Vec::new() })
    }
}

fn answer() -> Vec<u8> {
    let mut t = vec![0; CELLS];
    Sudoku::new(4).unwrap().parse("1243341221344321", &mut t).unwrap();
    t
}

fn traces(n: usize, segments: usize, step: fn(usize, f32) -> f32) -> Vec<Trace> {
    let labels = answer().repeat(n);
    let mut map = Map { config: config(Start::Random), step, labels: answer() };
    let inputs = vec![1; n * CELLS];
    let starts: Vec<StartOf> = (0..n as u64).map(|number| StartOf { seed: 0, number }).collect();
    let job = Job { sudoku: Sudoku::new(4).unwrap(), inputs: &inputs, labels: &labels, segments, noise: 0.0 };
    run_from(&mut map, job, &starts, false, &mut |_| {}).unwrap()
}

/// Moves towards 0 in steps of 1/1024, as an integer network would.
fn contracting(_: usize, z: f32) -> f32 {
    (z * 0.5 * 1024.0).trunc() / 1024.0
}

#[test]
fn a_contracting_map_settles_and_a_turning_one_wanders() {
    // Even puzzles contract (and are right once below one half), odd ones jump by about one in each segment.
    let all = traces(10, 40, |i, z| if i % 2 == 0 { contracting(i, z) } else { (z + 0.37 * (1.0 + i as f32 / 10.0)) % 2.0 + 0.6 });
    let settled = classify(&all);
    assert_eq!(settled.settled, [true, false].repeat(5));
    assert!(settled.cut.unwrap().explained > 0.95);
    let right: Vec<bool> = all.iter().map(|t| t.exact[15]).collect();
    assert_eq!(two_by_two(&settled.settled, &right), [[5, 0], [0, 5]]);
    for t in all.iter().step_by(2) {
        // 2 * 2^-11 is below the unit: a fixed point after eleven segments at most, and the answer right from the second or third on.
        assert_eq!(t.cycle.unwrap().0, 1);
        assert!(t.cycle.unwrap().1 <= 12 && t.first_right().unwrap() <= 3 && t.stays_right_from(3));
        assert!(t.late_drift(13, 16) == 0.0 && t.residual[2] > 0.5 && t.residual[39] == 0.0);
    }
}

#[test]
fn a_planted_limit_cycle_is_found() {
    let all = traces(3, 20, |_, z| {
        if z < 1.0 {
            3.0
        } else if z < 3.0 {
            0.25
        } else {
            1.5
        }
    });
    // From whatever start: 0.25, 3, 1.5, 0.25, ..
    assert!(all.iter().all(|t| t.cycle == Some((3, 1))), "{:?}", all[0].cycle);
    assert_eq!(all[0].exact[..4], [true, false, false, true]);
    assert!(!all[0].stays_right_from(1) && !all[0].is_stable(4) && all[0].late_drift(13, 16) > 1.0);
}

fn made(exact: &[bool], answer: u8) -> Trace {
    Trace { exact: exact.to_vec(), changed: vec![false; exact.len()], answer: vec![answer; CELLS], ..Trace::default() }
}

#[test]
fn modes_and_basins() {
    let mut late = vec![false; 16];
    late[9..].fill(true);
    let modes = [(made(&[true; 16], 2), false), (made(&late, 2), true), (made(&[false; 16], 3), false), (made(&[false; 16], 3), true)];
    let found: Vec<Mode> = modes.iter().map(|(t, s)| Mode::of(t, *s)).collect();
    assert_eq!(found, [Mode::TrivialSuccess, Mode::NonTrivialSuccess, Mode::TrivialFailure, Mode::NonTrivialFailure]);
    // Of eight starts: four right, two in one wrong answer, one in another, one still changing.
    let mut runs = vec![made(&[true; 16], 2); 4];
    runs.extend([made(&[false; 16], 3), made(&[false; 16], 3), made(&[false; 16], 4), made(&[false; 16], 5)]);
    runs[7].changed[15] = true;
    let b = basins(&runs);
    assert_eq!((b.attractors, b.spurious, b.right, b.largest_spurious, b.wandering), (3, 2, 0.5, 0.25, 0.125));
}

fn guess(answer: u8, right: bool, q: f64, residual: f64, valid: Option<usize>) -> Guess {
    Guess { answer: vec![answer], right, q, residual, valid: valid.map(|s| (s, right)), segments: 16 }
}

#[test]
fn cells_are_revealed_until_few_are_unknown() {
    let (answer, mut random) = (answer(), super::random(1, 2));
    let mut puzzle = vec![1; CELLS];
    puzzle[0] = answer[0];
    for unknown in [20, 9, 1] {
        super::reveal(&mut puzzle, &answer, unknown, &mut random);
        assert_eq!(puzzle.iter().filter(|&&t| t == 1).count(), unknown.min(15));
        assert!(puzzle.iter().zip(&answer).all(|(&p, &a)| p == 1 || p == a));
    }
}

#[test]
fn selections() {
    let all = [
        guess(1, false, 3.0, 0.5, None),
        guess(1, false, -1.0, 0.4, None),
        guess(2, true, 1.0, 0.1, Some(5)),
        guess(2, true, 2.0, 0.2, Some(9)),
        guess(2, true, 0.0, 0.3, None),
    ];
    let choose = |rule: Rule, k: usize| rule.choose(&all[..k]);
    assert_eq!(choose(Rule::Oracle, 2), (None, 32));
    assert_eq!(choose(Rule::Oracle, 3), (Some(true), 48));
    assert_eq!([2, 3, 4, 5].map(|k| choose(Rule::Majority, k).0), [Some(false), Some(false), None, Some(true)]);
    // On ties the earliest answer.
    assert_eq!([4, 5].map(|k| choose(Rule::Plurality, k).0), [Some(false), Some(true)]);
    assert_eq!((choose(Rule::Q, 5).0, choose(Rule::Residual, 5).0), (Some(false), Some(true)));
    // The verifier pays for two whole guesses and five segments of the third.
    assert_eq!((choose(Rule::Verifier, 5), choose(Rule::Verifier, 2)), ((Some(true), 37), (None, 32)));
    // Halted passes of the one checkpoint: 1 wrong, 2 right; of the other: none.
    let none: Vec<Guess> = all.iter().cloned().map(|g| Guess { q: -1.0, ..g }).collect();
    assert!(paper_protocol(&[none.clone(), all.to_vec()]) && !paper_protocol(&[none, all[..2].to_vec()]));
}

#[test]
fn the_papers_table_adds_one_part_at_a_time() {
    let (right, wrong) = (guess(2, true, 1.0, 0.1, Some(5)), guess(1, false, 1.0, 0.1, None));
    let not_halted = Guess { q: -1.0, ..right.clone() };
    // Puzzles: right by the first pass; by the shifts; by the other checkpoint's first pass; by its shifts; right but never halted.
    let last = vec![
        vec![right.clone(), right.clone(), wrong.clone()],
        vec![wrong.clone(), right.clone(), right.clone()],
        vec![wrong.clone(), wrong.clone(), wrong.clone()],
        vec![wrong.clone(), wrong.clone(), right.clone()],
        vec![not_halted; 3],
    ];
    let mut earlier = vec![vec![wrong.clone(); 3]; 5];
    earlier[2] = vec![right.clone(), wrong.clone(), wrong.clone()];
    earlier[3] = vec![wrong, right.clone(), right];
    assert_eq!(Ablation::new(&[earlier, last.clone()]), Ablation { one: 2, perturbation: 2, bootstrapping: 2, all: 3 });
    assert_eq!(Ablation::new(&[last]), Ablation { one: 2, perturbation: 2, bootstrapping: 1, all: 2 });
}

#[test]
fn leaps_and_reliability() {
    let found = leap(&[2.0, 1.9, 1.9, 0.2, 0.0]).unwrap();
    assert_eq!((found.segment, (found.share * 100.0).round()), (4, 85.0));
    assert_eq!(leap(&[1.0]), None);
    let with = |q: f64, right: bool| Trace { q: vec![q], exact: vec![right], ..Trace::default() };
    let bins = reliability(&[with(9.0, true), with(9.0, false), with(-9.0, false)], 1);
    assert_eq!((bins[9].0, bins[9].2, bins[0].0, bins[0].2), (2, 1, 1, 0));
    assert!(bins[9].1 > 0.999 && bins[5].0 == 0);
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name)
}

fn tiny() -> (RunConfig, FusedEngine) {
    let text = "[task]\nsize = 4\n[data]\ngenerate = { n = 40, extra_givens = 6 }\nholdout = 8\n[model]\nchannels = 8\ninner = 8\nlayers = 1\nl_cycles = 1\n[train]\nthreads = 1\n";
    let config = RunConfig::parse(text, &[]).unwrap();
    let engine = FusedEngine::new(&config.spec().unwrap(), &config.engine_options()).unwrap();
    (config, engine)
}

#[test]
fn segments_from_given_carries_are_those_of_infer() {
    let (_, mut engine) = tiny();
    let inputs: Vec<u8> = (0..3 * CELLS).map(|i| 1 + (i * 7 % 5) as u8).collect();
    let mut expected = Vec::new();
    engine.infer(&inputs, 3, 9, &mut |_, tokens, q| expected.push((tokens.to_vec(), q.to_vec()))).unwrap();
    let starts: Vec<StartOf> = (0..3).map(|number| StartOf { seed: 9, number }).collect();
    let mut carry = engine.begin(&starts, false).unwrap();
    for (tokens, q) in expected {
        let reading = engine.advance(&inputs, &mut carry).unwrap();
        assert_eq!((&reading.tokens, &reading.q_halt), (&tokens, &q));
        assert_eq!(engine.read(&carry).unwrap(), reading);
    }
    assert!(engine.advance(&inputs[CELLS..], &mut carry).unwrap_err().to_string().contains("for 3 carries"));
    let mut int8 = Int8::load(&shipped("sudoku-4x4.hrm"), 9).unwrap();
    let mut expected = Vec::new();
    int8.infer(&inputs, 3, 0, &mut |_, tokens, q| expected.push((tokens.to_vec(), q.to_vec()))).unwrap();
    let mut subject = Integer::new(int8).unwrap();
    let mut carry = subject.begin(&[StartOf { seed: 9, number: 0 }; 3], false).unwrap();
    for (tokens, q) in expected {
        let reading = subject.advance(&inputs, &mut carry).unwrap();
        assert_eq!((&reading.tokens, &reading.q_halt), (&tokens, &q));
        assert_eq!(subject.read(&carry).unwrap(), reading);
        // The logits are worked out here, the answer by the core.
        let width = reading.logits.len() / reading.tokens.len();
        for (cell, &token) in reading.logits.chunks_exact(width).zip(&reading.tokens) {
            let best = cell.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(cell[usize::from(token) - 2], best);
        }
    }
}

#[test]
fn a_network_with_fields_gives_the_same_guess_under_shifted_digits() {
    let mut int8 = Integer::new(Int8::load(&shipped("sudoku-4x4.hrm"), 0).unwrap()).unwrap();
    let (fields, channels) = (usize::from(int8.config().fields), usize::from(int8.config().channels));
    let puzzle: Vec<u8> = (0..CELLS).map(|i| if i % 3 == 0 { 2 + (i / 3 % 4) as u8 } else { 1 }).collect();
    let shifted: Vec<u8> = puzzle.iter().map(|&t| if t > 1 { (t - 2 + 1) % 4 + 2 } else { t }).collect();
    let start = int8.begin(&[StartOf { seed: 3, number: 0 }], false).unwrap();
    let (mut a, mut b) = (start.clone(), start.clone());
    shift_fields(&mut b, fields, channels, 1);
    let mut unshifted = start;
    let mut differs = false;
    for _ in 0..4 {
        let one = int8.advance(&puzzle, &mut a).unwrap().tokens;
        let other = int8.advance(&shifted, &mut b).unwrap().tokens;
        differs |= int8.advance(&shifted, &mut unshifted).unwrap().tokens != other || unshifted != b;
        assert_eq!(one.iter().map(|&t| (t - 2 + 1) % 4 + 2).collect::<Vec<_>>(), other);
    }
    assert!(differs);
}

fn arguments(model: &Path, out: &Path) -> Analyze {
    Analyze {
        experiment: Experiment::All,
        model: model.into(),
        data: None,
        holdout: None,
        unknown: None,
        n: 20,
        out: out.into(),
        snapshots: None,
        reference: None,
        seed: 1,
        threads: 2,
        engine: EngineArgument::Fused,
        device: "cpu".into(),
        fresh: false,
        markdown: None,
    }
}

fn data(out: &Path, name: &str) -> serde_json::Value {
    let text = std::fs::read(out.join(format!("{name}.json"))).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["value"]["data"].clone()
}

#[test]
fn everything_on_the_shipped_4x4_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut args = arguments(&shipped("sudoku-4x4.hrm"), &out);
    args.markdown = Some(folder.path().join("page.md"));
    let text = super::run(&args).unwrap();
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for part in ["id=easy", "id=fixed-point", "id=grokking", "id=attractors", "id=guesses", "id=dynamics", "id=schedule", "<svg"] {
        assert!(page.contains(part), "{part} is missing");
    }
    assert!(
        std::fs::read_to_string(folder.path().join("page.md")).unwrap().contains("(page/easy.svg)")
            && folder.path().join("page/easy.svg").exists()
    );
    // This model solves every puzzle of its size: the measures have to say so.
    let levels = data(&out, "easy")["levels"].clone();
    let (of, stays) =
        levels.as_array().unwrap().iter().fold((0, 0), |a, l| (a.0 + l["of"].as_u64().unwrap(), a.1 + l["stays"].as_u64().unwrap()));
    assert!(of >= 20 && stays == of, "{stays} of {of}");
    let fixed = data(&out, "fixed-point");
    assert_eq!((&fixed["ever"], &fixed["kept"], &fixed["planted"][31]), (&20.into(), &20.into(), &5.into()));
    let guesses = data(&out, "guesses");
    assert_eq!(guesses["coincide"], guesses["n"]);
    let schedule = data(&out, "schedule");
    assert!(schedule.as_array().unwrap().iter().all(|p| p["solved"] == p["of"]));
    // A second run takes up what the first has left, another seed does not.
    let before = std::fs::metadata(out.join("easy.json")).unwrap().modified().unwrap();
    assert_eq!(super::run(&args).unwrap(), text);
    assert_eq!(std::fs::metadata(out.join("easy.json")).unwrap().modified().unwrap(), before);
}

#[test]
fn everything_on_an_untrained_float_model_with_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let (config, engine) = tiny();
    let spec = config.spec().unwrap();
    let snapshots = folder.path().join("snapshots");
    std::fs::create_dir(&snapshots).unwrap();
    let model = FloatModel { spec: spec.clone(), weights: engine.weights(), record: None };
    for stem in ["step-1", "step-20"] {
        model.save(&snapshots, stem).unwrap();
    }
    let out = folder.path().join("out");
    let mut args = arguments(&snapshots.join("step-20.safetensors"), &out);
    args.n = 8;
    args.snapshots = Some(snapshots);
    super::run(&args).unwrap();
    // An untrained network solves nothing, so its right answers are none and nothing is called a success.
    assert!(data(&out, "guesses")["rows"].as_array().unwrap().iter().all(|r| r["rule"] != "verifier" || r["right"].as_u64() < Some(2)));
    assert!(!out.join("schedule.json").exists());
    // The folder is no model, a data file of another size is refused by name.
    let bad = folder.path().join("bad.csv");
    write_atomic(&bad, b"source,question,answer,rating\n").unwrap();
    let refused = super::run(&Analyze { data: Some(bad), ..args.clone() }).unwrap_err();
    assert!(format!("{refused:#}").contains("bad.csv"), "{refused:#}");
    let refused = super::run(&Analyze { unknown: Some(17), ..args.clone() }).unwrap_err();
    assert_eq!(refused.to_string(), "--unknown is 17, expected 1 to 16");
    assert!(super::run(&Analyze { n: 0, ..args }).unwrap_err().to_string().contains("--n is 0"));
    let _ = build_engine(&config, &spec, None).unwrap();
    assert!(Float::load(Path::new("/nowhere"), EngineKind::Fused, "cpu", 1).is_err());
}
