//! Ranks as processes, connected by gloo: what they train together is what one process trains, and none waits for ever for another.

use std::net::TcpListener;
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hrm_train::checkpoint::decode_tensors;
use hrm_train::engine::Tensors;

mod common;

use common::{bits, stderr};

/// Structured cells on the fused engine. Sixteen rows are four chunks: two ranks have two each, which they add as one process does.
const FUSED: &str = r#"
[task]
size = 4
[data]
generate = { n = 700, seed = 1, extra_givens = 4 }
holdout = 300
[model]
channels = 16
inner = 24
layers = 1
[train]
steps = 60
batch = 16
lr = 8e-3
warmup = 10
ema = 0.98
q_weight = 0.5
threads = 1
log_every = 5
carry_noise = 0.01
halt_max_steps = 6
[eval]
every = 20
segments = 4
[checkpoint]
seconds = 0.0
steps = 10
"#;

/// What each launcher puts into the environment of a rank, but for the port.
type Launcher = fn(usize, usize) -> Vec<(&'static str, String)>;

fn torchrun(rank: usize, world: usize) -> Vec<(&'static str, String)> {
    let (rank, world, host) = (rank.to_string(), world.to_string(), "127.0.0.1".to_owned());
    vec![("RANK", rank.clone()), ("WORLD_SIZE", world.clone()), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", world), ("MASTER_ADDR", host)]
}

fn mpirun(rank: usize, world: usize) -> Vec<(&'static str, String)> {
    let (rank, world) = (rank.to_string(), world.to_string());
    let local = [("OMPI_COMM_WORLD_LOCAL_RANK", rank.clone()), ("OMPI_COMM_WORLD_LOCAL_SIZE", world.clone())];
    [("OMPI_COMM_WORLD_RANK", rank), ("OMPI_COMM_WORLD_SIZE", world)].into_iter().chain(local).collect()
}

fn srun(rank: usize, world: usize) -> Vec<(&'static str, String)> {
    let (rank, world) = (rank.to_string(), world.to_string());
    vec![
        ("SLURM_PROCID", rank.clone()),
        ("SLURM_NTASKS", world),
        ("SLURM_LOCALID", rank),
        ("SLURM_JOB_NODELIST", "localhost,far".to_owned()),
    ]
}

struct Run(common::Run);

impl Deref for Run {
    type Target = common::Run;

    fn deref(&self) -> &common::Run {
        &self.0
    }
}

impl Run {
    fn new(config: &str) -> Self {
        Self(common::Run::new(config))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.command(arguments);
        // What may have started this test must not count.
        for (name, _) in std::env::vars()
            .filter(|(n, _)| ["SLURM_", "OMPI_", "PMI", "MPI_", "MASTER_", "TORCHELASTIC_"].iter().any(|p| n.starts_with(p)))
        {
            command.env_remove(name);
        }
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"] {
            command.env_remove(name);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the ranks; `more` are arguments of one of them.
    fn ranks(&self, launcher: Launcher, world: usize, arguments: &[&str], more: impl Fn(usize) -> Vec<&'static str>) -> Vec<Child> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let start = |rank| {
            let mut command = self.command(arguments);
            command.args(more(rank)).envs(launcher(rank, world)).env("MASTER_PORT", &port).spawn().unwrap()
        };
        (0..world).map(start).collect()
    }

    /// Runs on so many ranks; 1: without a launcher.
    fn finish(&self, world: usize, arguments: &[&str]) {
        if world == 1 {
            let output = self.command(arguments).output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            return;
        }
        for (rank, child) in self.ranks(torchrun, world, arguments, |_| vec![]).into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "rank {rank}: {}", stderr(&output));
            // One rank speaks.
            assert_eq!((output.stdout.is_empty(), stderr(&output).contains("done after")), (rank > 0, rank == 0));
        }
    }

    fn state(&self) -> Tensors {
        decode_tensors(&self.0.state()).unwrap().0
    }
}

fn assert_same(a: &Run, b: &Run) {
    let (x, y) = (a.state(), b.state());
    assert!(bits(&x) == bits(&y), "the states differ by up to {:e}", distance(&x, &y));
    assert_eq!(bits(&a.weights()), bits(&b.weights()));
    assert_eq!(a.position(), b.position());
    assert_eq!(a.metrics(), b.metrics());
}

/// Largest difference of any two weights.
fn distance(a: &Tensors, b: &Tensors) -> f32 {
    let pairs = a.iter().flat_map(|(name, (_, values))| values.iter().zip(&b[name].1));
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// The losses in the order of the steps.
fn losses(run: &Run) -> Vec<f64> {
    run.metrics().iter().filter_map(|line| line["loss"].as_f64()).collect()
}

/// What the ranks say, which all must end in an error before the time is over.
fn errors(ranks: Vec<Child>, seconds: u64) -> Vec<String> {
    let begin = Instant::now();
    let end = |mut child: Child| {
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > Duration::from_secs(seconds) {
                child.kill().unwrap();
                panic!("a rank hangs");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    ranks.into_iter().map(end).collect()
}

#[test]
fn two_ranks_are_one_process_bit_for_bit() {
    let (one, two) = (Run::new(FUSED), Run::new(FUSED));
    one.finish(1, &[]);
    two.finish(2, &[]);
    assert_same(&one, &two);
    // It was a run that learned something, in which rows halt at different times.
    let losses = losses(&one);
    assert!(losses[losses.len() - 1] < 0.9 * losses[0], "{losses:?}");
}

#[test]
fn other_numbers_of_ranks_differ_by_rounding() {
    // Shares of 3 and 4 rows, whose chunks are not those of one process, or whose sums gloo orders.
    for (world, batch) in [(2, "train.batch=6"), (4, "train.batch=16"), (3, "train.batch=9")] {
        let arguments = ["--set", batch, "--set", "train.steps=20"];
        let (one, many) = (Run::new(FUSED), Run::new(FUSED));
        one.finish(1, &arguments);
        many.finish(world, &arguments);
        let (distance, scale) =
            (distance(&one.weights(), &many.weights()), one.weights().values().flat_map(|(_, v)| v).fold(0.0f32, |m, x| m.max(x.abs())));
        assert!(distance < 1e-4 * scale, "{world} ranks: {distance:e} of {scale}");
        for (a, b) in losses(&one).iter().zip(losses(&many)) {
            assert!((a - b).abs() < 1e-4 * a, "{world} ranks: a loss of {b}, expected {a}");
        }
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let whole = Run::new(FUSED);
    whole.finish(1, &[]);
    for order in [[2, 1, 2], [1, 2, 1]] {
        let parts = Run::new(FUSED);
        parts.finish(order[0], &["--stop-after", "15"]);
        parts.finish(order[1], &["--resume", "--stop-after", "33"]);
        parts.finish(order[2], &["--resume"]);
        assert_same(&whole, &parts);
    }
}

#[test]
fn a_teacher_advises_every_rank() {
    let teacher = Run::new(FUSED);
    teacher.finish(1, &[]);
    let named = format!("train.teacher={}", teacher.out().display());
    let arguments = ["--set", &named, "--set", "train.teacher_segments=3", "--set", "train.steps=20"];
    let (one, parts) = (Run::new(FUSED), Run::new(FUSED));
    one.finish(1, &arguments);
    parts.finish(2, &[&arguments[..], &["--stop-after", "9"]].concat());
    parts.finish(2, &[&arguments[..], &["--resume"]].concat());
    assert_same(&one, &parts);
}

#[test]
fn the_torch_engine_differs_by_rounding() {
    let public = FUSED.replace("layers = 1", "layers = 1\nmixer = 'attention'\nfields = false\nheads = 2\nprefix = 1\nshared = false");
    let structured = FUSED.to_owned();
    for config in [public, structured] {
        let config = config.replace("[train]", "[train]\nengine = 'torch'").replace("steps = 60", "steps = 20");
        let (one, two, parts) = (Run::new(&config), Run::new(&config), Run::new(&config));
        one.finish(1, &[]);
        two.finish(2, &[]);
        parts.finish(2, &["--stop-after", "11"]);
        parts.finish(1, &["--resume"]);
        for other in [&two, &parts] {
            let distance = distance(&one.weights(), &other.weights());
            assert!(distance < 1e-3, "{distance:e}");
            for (a, b) in losses(&one).iter().zip(losses(other)) {
                assert!((a - b).abs() < 1e-4 * a, "a loss of {b}, expected {a}");
            }
        }
    }
}

#[test]
fn each_launcher_brings_the_ranks_together() {
    for launcher in [torchrun as Launcher, mpirun, srun] {
        let run = Run::new(FUSED);
        for child in run.ranks(launcher, 2, &["--stop-after", "3"], |_| vec![]) {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            assert!(stderr(&output).contains("of 2 ("), "{}", stderr(&output));
        }
        assert_eq!(run.position()["step"], 3);
    }
}

#[test]
fn what_the_ranks_cannot_share_is_refused() {
    let run = Run::new(FUSED);
    for said in errors(run.ranks(torchrun, 2, &["--set", "train.batch=15"], |_| vec![]), 60) {
        assert!(said.contains("train.batch is 15") && said.contains("a multiple of the 2 ranks"), "{said}");
    }
    let other = errors(run.ranks(torchrun, 2, &[], |rank| if rank == 1 { vec!["--set", "train.lr=1e-3"] } else { vec![] }), 60);
    assert!(other.iter().all(|said| said.contains("train.lr is 0.001, the run was started with 0.008")), "{other:?}");
    assert!(other[0].contains("rank 1 cannot go on"), "{}", other[0]);
    // The folder is looked at by rank 0, its error is known to all.
    run.finish(1, &["--stop-after", "2"]);
    let held = errors(run.ranks(torchrun, 2, &[], |_| vec![]), 60);
    assert!(held.iter().all(|said| said.contains("already holds a run")), "{held:?}");
    let output = run.command(&[]).env("RANK", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("RANK is 1, but WORLD_SIZE is not set"), "{}", stderr(&output));
}

/// Waits until the run has written a checkpoint.
fn under_way(run: &Run) {
    let begin = Instant::now();
    while !run.out().join("last.json").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn a_rank_that_is_gone_or_silent_ends_the_others() {
    let long = ["--set", "train.steps=1000000", "--set", "train.warmup=10", "--set", "eval.every=0"];
    for (signal, victim) in [("KILL", 1), ("KILL", 0), ("STOP", 1)] {
        let run = Run::new(FUSED);
        let mut ranks = run.ranks(torchrun, 2, &[&long[..], &["--rank-timeout", "5"]].concat(), |_| vec![]);
        under_way(&run);
        let mut gone = ranks.remove(victim);
        assert!(Command::new("kill").args([format!("-{signal}"), gone.id().to_string()]).status().unwrap().success());
        let said = errors(ranks, 60);
        gone.kill().unwrap();
        gone.wait().unwrap();
        let rank = 1 - victim;
        assert!(said[0].contains(&format!("rank {rank} of 2 has lost the others")), "{signal} of rank {victim}: {}", said[0]);
        // The last checkpoint is whole: one process goes on with it.
        let step = run.position()["step"].as_u64().unwrap();
        run.finish(1, &[&long[..], &["--resume", "--stop-after", &(step + 1).to_string()]].concat());
        assert_eq!(run.position()["step"], step + 1);
    }
}

#[test]
fn a_rank_that_nobody_meets_gives_up() {
    let run = Run::new(FUSED);
    let ranks = run.ranks(torchrun, 2, &["--rank-timeout", "2"], |_| vec![]);
    let alone = ranks.into_iter().enumerate().filter_map(|(rank, mut child)| {
        if rank == 0 {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        Some(child)
    });
    let said = errors(alone.collect(), 60);
    assert!(said[0].contains("rank 1 of 2 has not met the others at 127.0.0.1:"), "{}", said[0]);
}
