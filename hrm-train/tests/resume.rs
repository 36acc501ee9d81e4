//! What must survive: a run that is killed, a disk that is full, a checkpoint that is damaged, a loss that is no number.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hrm_train::checkpoint::{FileReference, decode_tensors, encode_tensors};
use hrm_train::engine::Tensors;
use serde_json::Value;

mod common;

use common::{bits, stderr};

const CONFIG: &str = r#"
[task]
size = 4
[data]
generate = { n = 60, seed = 1, extra_givens = 4 }
holdout = 16
[model]
channels = 16
inner = 24
layers = 1
[train]
steps = 500
batch = 12
lr = 8e-3
warmup = 10
ema = 0.98
q_weight = 0.5
threads = 1
log_every = 25
carry_noise = 0.01
halt_max_steps = 6
[eval]
every = 90
segments = 4
[checkpoint]
seconds = 0.0
steps = 9
"#;

struct Run(common::Run);

impl Deref for Run {
    type Target = common::Run;

    fn deref(&self) -> &common::Run {
        &self.0
    }
}

impl Run {
    fn new() -> Self {
        Self(common::Run::new(CONFIG))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn finish(&self, arguments: &[&str]) {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// Where the run stands, on any number of threads.
    fn position(&self) -> Value {
        let mut content = self.0.position();
        content["config"]["train"].as_object_mut().unwrap().remove("threads");
        content
    }
}

fn assert_same(a: &Run, b: &Run) {
    assert!(a.state() == b.state(), "the engine's state differs");
    assert_eq!(bits(&a.weights()), bits(&b.weights()));
    assert_eq!(a.position(), b.position());
    assert_eq!(a.metrics(), b.metrics());
}

#[test]
fn killed_at_any_moment_and_resumed_the_weights_are_the_same() {
    let whole = Run::new();
    let begin = Instant::now();
    whole.finish(&[]);
    let duration = begin.elapsed();

    let killed = Run::new();
    let (mut kills, mut resumes, mut x) = (0, 0, 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id()));
    loop {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        // Two threads in every other life: the number of threads must not matter either.
        let threads = if resumes % 2 == 0 { "train.threads=1" } else { "train.threads=2" };
        let mut child = killed.command(&["--resume", "--set", threads]).spawn().unwrap();
        resumes += 1;
        // A few kills early on, so that the run must end in reasonable time whatever the machine does.
        if kills < 12 {
            std::thread::sleep(duration.mul_f64((x % 1000) as f64 / 4000.0) + Duration::from_millis(5));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
                child.wait().unwrap();
                continue;
            }
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        break;
    }
    assert!(kills >= 3, "the process was killed {kills} times only");
    // The run must be one in which rows halt at different times.
    let steps: BTreeSet<u64> = whole.position()["rows"].as_array().unwrap().iter().map(|row| row["steps"].as_u64().unwrap()).collect();
    assert!(steps.len() > 1, "{steps:?}");
    assert_same(&whole, &killed);
}

#[test]
fn a_stopped_run_goes_on_exactly_and_refuses_another_config() {
    let (whole, parts) = (Run::new(), Run::new());
    whole.finish(&[]);
    parts.finish(&["--stop-after", "100"]);
    let again = parts.command(&[]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("already holds a run"), "{}", stderr(&again));
    let other = parts.command(&["--resume", "--set", "train.lr=1e-3"]).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(stderr(&other).contains("train.lr is 0.001, the run was started with 0.008"), "{}", stderr(&other));
    let data = parts.command(&["--resume", "--set", "data.generate={n=61,seed=1}"]).output().unwrap();
    assert!(stderr(&data).contains("data.generate is"), "{}", stderr(&data));
    parts.finish(&["--resume", "--stop-after", "101"]);
    // A slice of no time is one step.
    parts.finish(&["--resume", "--seconds", "1e-9"]);
    assert_eq!(parts.position()["step"], 102);
    parts.finish(&["--resume"]);
    assert_same(&whole, &parts);
    // A finished run is left as it is.
    parts.finish(&["--resume"]);
    assert_same(&whole, &parts);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    // Carries of 64 puzzles: a checkpoint of some 300 KB, while everything else stays far below the limit of the file size.
    let big = ["--set", "train.batch=64", "--set", "train.steps=60", "--set", "checkpoint.keep=1"];
    let (whole, full) = (Run::new(), Run::new());
    whole.finish(&big);
    full.finish(&[&big[..], &["--stop-after", "30"]].concat());
    let before = (fs::read(full.out().join("last.json")).unwrap(), full.state());
    assert!(before.1.len() > 150_000, "{}", before.1.len());

    // With SIGXFSZ ignored, a write beyond the limit fails as on a full disk, in the middle of the file. The limit is counted in
    // blocks of 512 or 1024 bytes: both are between what may be written and what may not.
    let command = full.command(&[&big[..], &["--resume"]].concat());
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("the previous one is still valid") && message.contains("cannot write"), "{message}");
    assert_eq!((fs::read(full.out().join("last.json")).unwrap(), full.state()), before);
    let names: Vec<String> = fs::read_dir(full.out()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".tmp")), "{names:?}");

    full.finish(&[&big[..], &["--resume"]].concat());
    assert_same(&whole, &full);
}

/// Changes the state of the last checkpoint; with `consistent` its JSON describes the changed file.
fn damage(folder: &Path, change: impl Fn(&mut Tensors), consistent: bool) {
    let path = folder.join("last.json");
    let mut last: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let name = last["tensors"]["file"].as_str().unwrap().to_owned();
    let mut tensors = decode_tensors(&fs::read(folder.join(&name)).unwrap()).unwrap().0;
    change(&mut tensors);
    let bytes = encode_tensors(&tensors, None).unwrap();
    fs::write(folder.join(&name), &bytes).unwrap();
    if consistent {
        last["tensors"] = serde_json::to_value(FileReference::new(name, &bytes)).unwrap();
        fs::write(path, serde_json::to_vec(&last).unwrap()).unwrap();
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint() {
    let run = Run::new();
    run.finish(&["--stop-after", "50"]);
    let poison = |tensors: &mut Tensors| {
        let mut changed = 0;
        for (name, (_, values)) in tensors.iter_mut() {
            if name.ends_with("head.weight") {
                values[0] = f32::NAN;
                changed += 1;
            }
        }
        assert!(changed > 0);
    };
    damage(&run.out(), poison, true);
    let before = (run.last(), run.state());
    let output = run.command(&["--resume"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("training stopped in step 51") && message.contains("(step 50)"), "{message}");
    assert!((run.last(), run.state()) == before);
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let run = Run::new();
    run.finish(&["--stop-after", "50", "--set", "checkpoint.keep=1"]);
    damage(&run.out(), |tensors| tensors.values_mut().next().unwrap().1[0] += 1.0, false);
    let output = run.command(&["--resume", "--set", "checkpoint.keep=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("is damaged") && message.contains("an older one can"), "{message}");
    // A state of another shape is refused before anything is changed.
    damage(&run.out(), |tensors| drop(tensors.pop_first()), true);
    let output = run.command(&["--resume", "--set", "checkpoint.keep=1"]).output().unwrap();
    assert!(stderr(&output).contains("does not fit"), "{}", stderr(&output));
}

/// Switches of the recipe that change with the step, the draw or the row's segment.
const CURRICULA: [&str; 8] = [
    "model.h_cycles=2",
    "train.depth=[{until=0.2,h_cycles=1,l_cycles=1},{until=0.6,h_cycles=1,l_cycles=2}]",
    "train.supervision_decay=0.7",
    "data.easier_first=200",
    "train.unroll=2",
    "train.gradient=segment",
    "train.steps=150",
    "train.log_every=10",
];

#[test]
fn curricula_resume_exactly_and_each_of_them_matters() {
    let arguments = |sets: &[&'static str]| sets.iter().flat_map(|&set| ["--set", set]).collect::<Vec<_>>();
    let all = arguments(&CURRICULA);
    let (whole, parts) = (Run::new(), Run::new());
    whole.finish(&all);
    // Within each stage, and where one ends.
    for (i, stop) in ["11", "30", "60", "90", "91"].iter().enumerate() {
        let resume: &[&str] = if i > 0 { &["--resume"] } else { &[] };
        parts.finish(&[&all, resume, &["--stop-after", stop]].concat());
    }
    parts.finish(&[&all[..], &["--resume"]].concat());
    assert_same(&whole, &parts);
    for without in &CURRICULA[1..5] {
        let sets: Vec<&str> = CURRICULA.into_iter().filter(|set| set != without).collect();
        let other = Run::new();
        other.finish(&arguments(&sets));
        assert!(whole.state() != other.state(), "{without} changes nothing");
    }
}

#[test]
fn a_student_of_a_teacher_resumes_exactly_and_learns_its_answers() {
    let teacher = Run::new();
    teacher.finish(&[]);
    let named = format!("train.teacher={}", teacher.out().display());
    let sets =
        [named.as_str(), "train.teacher_share=1.0", "train.teacher_segments=4", "train.steps=120", "model.channels=8", "train.batch=7"];
    let arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let with = |more: &[&'static str]| [arguments.as_slice(), more].concat();
    let (whole, parts, alone) = (Run::new(), Run::new(), Run::new());
    whole.finish(&arguments);
    parts.finish(&with(&["--stop-after", "50"]));
    parts.finish(&with(&["--resume", "--stop-after", "51"]));
    parts.finish(&with(&["--resume"]));
    assert_same(&whole, &parts);
    alone.finish(&with(&["--set", "train.teacher_share=0.0"]));
    assert!(whole.weights() != alone.weights(), "the teacher changes nothing");

    let output = Run::new().command(&with(&["--set", "task.size=6"])).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("answers 16 cells with 6 tokens, expected 36 with 8"), "{}", stderr(&output));
}

#[test]
fn mazes_resume_exactly_and_become_int8() {
    let sets = [
        "task.kind=maze",
        "task.size=5",
        "data.generate={n=60,seed=1,shortest=4,unique=true}",
        "data.easier=0.0",
        "model.fields=false",
        "train.steps=60",
    ];
    let arguments: Vec<&str> = sets.iter().flat_map(|&set| ["--set", set]).collect();
    let (whole, parts) = (Run::new(), Run::new());
    whole.finish(&arguments);
    parts.finish(&[&arguments[..], &["--stop-after", "25"]].concat());
    parts.finish(&[&arguments[..], &["--resume"]].concat());
    assert_same(&whole, &parts);

    let (out, here) = (whole.out().display().to_string(), whole.folder.path().display());
    let (file, mazes) = (format!("{here}/m.hrm"), format!("{here}/m.csv"));
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hrm-train")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    run(&["quantize", "--model", &out, "--out", &file, "--untuned", "--puzzles", "8", "--segments", "2"]);
    run(&["data", "generate", "--task", "maze", "--size", "5", "--unique", "--n", "20", "--out", &mazes]);
    for (model, kind) in [(&file, "int8"), (&out, "float")] {
        let report: Value =
            serde_json::from_slice(&run(&["eval", "--model", model, "--data", &mazes, "--segments", "2", "--json"])).unwrap();
        assert_eq!((&report["model"], &report["examples"]), (&kind.into(), &20.into()));
        // Walls, S and G are in the puzzle: what a network learns first.
        assert!(report["segments"][1]["cells"].as_f64().unwrap() > 0.5, "{report}");
    }
}

#[test]
fn fine_tuning_with_roundings_resumes_exactly_and_keeps_the_architecture() {
    let base = Run::new();
    base.finish(&["--stop-after", "90"]);
    let init = format!("train.init={}", base.out().display());
    let sets = ["train.quantize=true", "train.lr=1e-3", "train.steps=60", "train.warmup=5", "eval.every=60", &init];
    let arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let with = |more: &[&'static str]| [arguments.as_slice(), more].concat();

    let (whole, parts, plain) = (Run::new(), Run::new(), Run::new());
    whole.finish(&arguments);
    parts.finish(&with(&["--stop-after", "25"]));
    parts.finish(&with(&["--resume"]));
    assert!(whole.state() == parts.state());
    plain.finish(&with(&["--set", "train.quantize=false"]));
    assert!(whole.weights() != plain.weights(), "the roundings change nothing");

    // More groupings start with weight zero: a model that learns nothing answers as before.
    let still = |groups: &'static str| {
        let run = Run::new();
        run.finish(&with(&["--set", "train.quantize=false", "--set", "train.lr=0", "--set", "train.steps=30", "--set", groups]));
        // Sums are added in another order: the loss may differ in its last bits.
        let mut metrics = run.metrics();
        metrics.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("loss")));
        (metrics, run.weights())
    };
    let ((before, few), (after, more)) = (still("model.intersections=false"), still("model.intersections=true"));
    assert_eq!(before, after);
    assert_eq!(few["module.0.0.up.weight"].0, [48, 80]);
    assert_eq!(more["module.0.0.up.weight"].0, [48, 112]);

    let output = Run::new().command(&with(&["--set", "model.channels=12"])).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("another architecture than [model] and no smaller one"), "{}", stderr(&output));
}
