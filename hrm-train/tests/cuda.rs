//! The CUDA kernels against the core, bit for bit: on this host, and on a GPU where there is one.
//!
//! `cargo xtask test cuda` runs them with NVRTC and ptxas in reach.

#[path = "cuda/host.rs"]
mod host;
#[path = "cuda/ptxas.rs"]
mod ptxas;

use std::path::{Path, PathBuf};

use hrm_core::format::{AlignedBytes, Kind, layout::params};
use hrm_core::rng::{Purpose, Stream};
use hrm_core::solve::Select;
use hrm_core::testing::{configs, random_model, random_tokens, random_writer};
use hrm_core::{Config, Kernel, Machine, ModelView, Network, Plan, Run, Start};
use hrm_train::cuda::{Batched, Device, Gpu, LANES, Program, Slot, Starts, THREADS, compile};
use hrm_train::data::{GeneratorOptions, PuzzleSet, Side, generate};
use hrm_train::evaluate::Model as _;
use hrm_train::evaluate_int8::Int8;
use hrm_train::guesses::{GuessOptions, int8};

use host::{Host, HostDevice};

/// Shared memory of a block on an H100 and on an A100.
const H100: usize = 232_448;
const A100: usize = 166_912;

fn model_path(size: usize) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/sudoku-{size}x{size}.hrm"))
}

fn shipped(size: usize) -> AlignedBytes {
    AlignedBytes::new(&std::fs::read(model_path(size)).unwrap())
}

fn puzzles(size: usize, n: usize) -> PuzzleSet {
    let options =
        GeneratorOptions { size, seed: 43, extra_givens: if size < 9 { 4 } else { 0 }, side: Side::Test, ..GeneratorOptions::default() };
    generate(&options, n).unwrap()
}

/// Tokens read, Q, residual and state hash of a machine.
type State = (Vec<u8>, (i32, i32), Option<hrm_core::Residual>, u64);

fn state(machine: &impl Machine) -> State {
    (machine.answer().to_vec(), machine.q(), machine.residual(), machine.hash())
}

/// Begins puzzle `i` on a machine: from guess `i`, some of them from a random start whatever the model's own is.
fn begin(machine: &mut impl Machine, tokens: &[u8], i: usize) {
    machine.start(tokens, 7, i as u64).unwrap();
    if i % 3 == 2 {
        machine.start_randomly(8, 1 << 40 | i as u64);
    }
}

/// Readies puzzle `i` for segment `segment`: some puzzles get noise before some segments, up to the largest.
fn disturb(machine: &mut impl Machine, i: usize, segment: usize) {
    if (i + segment) % 3 == 1 {
        machine.add_noise(9, i as u64, segment as u16, [40, 1000, u16::MAX][segment % 3]);
    }
}

/// Runs `puzzles` for `segments` segments each on both batches of a device and compares every one with the scalar law. Puzzle `i` starts `i`
/// segments late, so that slots are idle, at their start, and under way at once.
fn compare(name: &str, device: &mut dyn Device, view: ModelView<'_>, program: &Program, puzzles: &[Vec<u8>], segments: usize) {
    let network = Network::new(view, Kernel::REFERENCE, &mut []).unwrap();
    let words = network.required_bytes(Plan::HOST).div_ceil(8);
    let mut arenas = vec![vec![0; words]; puzzles.len()];
    let mut runs: Vec<Run<'_, '_>> = arenas.iter_mut().map(|a| Run::new(network, a, Plan::HOST).unwrap()).collect();
    let starts = Starts::new(view);
    for lane in 0..LANES {
        let mut slots: Vec<Slot<'_, '_>> = puzzles.iter().map(|_| Slot::new(&starts)).collect();
        for step in 0..segments + puzzles.len() {
            let at_work = |i: usize| step >= i && step < i + segments;
            let mut commands = vec![0; device.slots() * program.command_words()];
            for (i, command) in commands.chunks_exact_mut(program.command_words()).take(puzzles.len()).enumerate() {
                if at_work(i) {
                    if step == i {
                        begin(&mut slots[i], &puzzles[i], i);
                    }
                    disturb(&mut slots[i], i, step - i);
                    command.copy_from_slice(slots[i].command());
                }
            }
            device.launch(lane, &commands).unwrap();
            let results = device.wait(lane).unwrap();
            for (i, result) in results.chunks_exact(program.result_words()).take(puzzles.len()).enumerate() {
                if at_work(i) {
                    if step == i {
                        begin(&mut runs[i], &puzzles[i], i);
                        assert_eq!((slots[i].answer(), slots[i].hash(), slots[i].q()), (runs[i].answer(), runs[i].hash(), runs[i].q()));
                    }
                    disturb(&mut runs[i], i, step - i);
                    assert_eq!(slots[i].take(result), runs[i].segment().unwrap(), "{name}: cells changed");
                    assert_eq!(state(&slots[i]), state(&runs[i]), "{name}: puzzle {i}, segment {}", step - i + 1);
                }
            }
        }
    }
}

/// Compares a model on this host in blocks of `threads` threads that have `shared` bytes.
fn on_host(name: &str, file: &AlignedBytes, puzzles: &[Vec<u8>], segments: usize, (threads, shared): (u32, usize), flags: &'static [&str]) {
    let view = ModelView::new_checked(file.as_slice()).unwrap();
    let program = Program::new(&view, threads, shared).unwrap();
    let mut device = HostDevice::start(&program, Host { slots: puzzles.len() + 1, flags }).unwrap();
    compare(name, &mut device, view, &program, puzzles, segments);
    device.end().unwrap();
}

fn tokens_of(set: &PuzzleSet) -> Vec<Vec<u8>> {
    (0..set.len()).map(|i| set.input(i).to_vec()).collect()
}

fn random_puzzles(config: &Config, n: u64) -> Vec<Vec<u8>> {
    (0..n).map(|seed| random_tokens(config, seed)).collect()
}

#[test]
fn shipped_models() {
    for (size, n, segments, shape) in [(4, 5, 6, (64, H100)), (6, 4, 5, (48, A100)), (9, 3, 4, (64, H100)), (9, 2, 2, (33, A100))] {
        let name = format!("{size}x{size}, {shape:?}");
        on_host(&name, &shipped(size), &tokens_of(&puzzles(size, n)), segments, shape, &[]);
    }
}

/// Structured cells of every kind: with and without fields, one and two modules, both starts, odd widths, one and eight groupings.
fn structured() -> Vec<(String, Config)> {
    let known = || configs().into_iter().filter(|(name, _)| name.starts_with("group-sum"));
    let base = known().next().unwrap().1;
    let mut all: Vec<_> = known().map(|(name, c)| (name.to_owned(), c)).collect();
    let odd = Config { tokens: 9, vocab: 5, fields: 3, channels: 5, inner: 7, ..base };
    let wide = Config { fields: 1, groupings: 8, channels: 100, inner: 130, h_cycles: 3, l_cycles: 1, h_layers: 3, l_layers: 3, ..base };
    let two = Config { shared: false, h_layers: 1, l_layers: 3, start: Start::Fixed, channels: 17, inner: 33, groupings: 1, ..base };
    all.extend([("odd", odd), ("wide", wide), ("two modules", two)].map(|(name, c)| (name.to_owned(), c)));
    all
}

#[test]
fn random_models_of_every_kind() {
    // One thread does all the work of a block, and more threads than there is work leave some without.
    let shapes = [(64, H100), (1, H100), (40, 0), (65, 20_000), (7, 50_000)];
    for (i, (name, config)) in structured().iter().enumerate() {
        let file = random_model(config, i as u64 + 1).unwrap();
        on_host(name, &file, &random_puzzles(config, 4), 4, shapes[i % shapes.len()], &[]);
    }
}

/// A model whose every number is at an end of its range: embeddings, starts, biases, multipliers, view multipliers, shifts.
fn extreme(config: &Config, seed: u64) -> AlignedBytes {
    let ends = |count: usize, low: i64, high: i64| {
        (0..count).map(|i| if (i as u64 * 7 + seed).is_multiple_of(3) { low } else { high }).collect::<Vec<_>>()
    };
    let mut writer = random_writer(config, seed).unwrap();
    let expected: Vec<_> = writer.expected().copied().collect();
    for e in expected {
        let (count, module, layer) = (e.dims[0] * e.dims[1], usize::from(e.module), usize::from(e.layer));
        let values = match e.kind {
            Kind::Embed | Kind::Init => ends(count, i64::from(i16::MIN), i64::from(i16::MAX)),
            Kind::UpMult | Kind::DownMult => ends(count, 0, i64::from(i32::MAX)),
            Kind::QBias => ends(count, i64::MIN, i64::MAX),
            Kind::UpWeight | Kind::DownWeight | Kind::HeadWeight | Kind::QWeight => ends(count, -127, 127),
            // As large as accumulators may be without a shift.
            Kind::UpBias | Kind::DownBias | Kind::HeadBias => ends(count, -2_000_000_000, 2_000_000_000),
            Kind::Global => vec![i64::from(i16::MAX), 0, 0, 0],
            Kind::MlpParams => {
                let mut p = vec![0; count];
                p[params::M_IN] = i64::from(i16::MAX);
                p[params::M_GROUP..params::M_GROUP + usize::from(config.groupings)].fill(i64::from(i16::MAX));
                p[params::RESIDUAL_SHIFT] = if e.layer == 0 { 12 } else { 0 };
                p[params::GATE_SHIFT] = if e.layer == 0 { 4 } else { 0 };
                p
            }
            _ => continue,
        };
        writer.set(e.kind, module, layer, &values).unwrap();
    }
    writer.finish().unwrap()
}

/// Vectors whose mean square makes the norm's root a power of two, or nearly: where its multiplier reaches its end. A model without products: each
/// token class brings one vector, which only the norms change.
fn norms(seed: u64) -> (AlignedBytes, Vec<Vec<u8>>) {
    let (_, base) = structured().swap_remove(1);
    let config = Config { tokens: 225, vocab: 226, channels: 64, inner: 4, groupings: 1, l_layers: 1, start: Start::Fixed, ..base };
    let mut random = Stream::new(seed, Purpose::Start, 0);
    let mut embed = Vec::new();
    for class in 0..226i64 {
        // floor(sum / 64) + 10 = 4^e + a little, e = 2 to 14.
        let e = 2 + class % 13;
        let mut left = 64 * (4i64.pow(e as u32) - 10 + class / 13 % 3) + 63;
        for c in (1..=64).rev() {
            let most = left.isqrt().min(32767);
            // A few elements at the end take up what the others leave.
            let x = if c > 5 { (i64::from(random.next_u32()) * 2 * (left / c).isqrt().min(16383)) >> 32 } else { most };
            left -= x * x;
            embed.push(if random.next_u32().is_multiple_of(2) { x } else { -x });
        }
        assert!(left < 64, "class {class}: {left} are left");
    }
    let mut writer = random_writer(&config, seed).unwrap();
    let expected: Vec<_> = writer.expected().copied().collect();
    for e in expected {
        let count = e.dims[0] * e.dims[1];
        let values = match e.kind {
            Kind::Embed => embed.clone(),
            Kind::Init | Kind::UpMult | Kind::DownMult => vec![0; count],
            _ => continue,
        };
        writer.set(e.kind, usize::from(e.module), usize::from(e.layer), &values).unwrap();
    }
    (writer.finish().unwrap(), vec![(1..=225).collect()])
}

#[test]
fn norms_at_powers_of_two() {
    let (file, puzzles) = norms(1);
    on_host("norms", &file, &puzzles, 1, (64, H100), &[]);
}

#[test]
fn models_at_the_ends_of_all_ranges() {
    for (seed, (name, config)) in structured().iter().enumerate() {
        let file = extreme(config, seed as u64);
        on_host(&format!("{name}, extreme"), &file, &random_puzzles(config, 3), 3, (48, H100), &[]);
    }
}

/// Small models under a sanitizer, their regions in shared memory and in the arena in turns.
fn sanitized(flags: &'static [&'static str]) {
    for (i, (name, config)) in structured().iter().filter(|(name, _)| name != "wide").enumerate() {
        let file = random_model(config, 3).unwrap();
        on_host(&format!("{name}, {flags:?}"), &file, &random_puzzles(config, 2), 2, (24, [H100, 0][i % 2]), flags);
    }
}

#[test]
fn no_thread_meets_another_without_a_barrier() {
    sanitized(&["-g", "-fsanitize=thread"]);
}

#[test]
fn no_access_is_out_of_bounds_and_no_operation_undefined() {
    sanitized(&["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
}

#[test]
fn guesses_and_passes_are_those_of_the_core() {
    for (size, n, segments, guesses) in [(4, 20, 4, 3), (6, 9, 4, 2), (9, 5, 3, 2)] {
        let set = puzzles(size, n);
        let load = || Int8::load(&model_path(size), 5).unwrap();
        let program = Program::new(&load().view().unwrap(), 32, H100).unwrap();
        // Fewer slots than puzzles: they are taken again.
        let mut device = HostDevice::start(&program, Host { slots: 2, flags: &[] }).unwrap();
        for select in [Select::Verify, Select::Vote, Select::Q, Select::Residual, Select::First] {
            let options = GuessOptions { guesses, segments, select, seed: 5 };
            let expected = int8(&load(), &set, n, options).unwrap();
            let found = Batched::new(&load(), program.clone(), &mut device).guess(&set, n, options).unwrap();
            assert_eq!(found, expected, "{size}, {select:?}");
        }
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        let inputs = &set.inputs[..n * set.sudoku.cells()];
        load().infer(inputs, 3, 0, &mut |s, answers, q| expected.push((s, answers.to_vec(), q.to_vec()))).unwrap();
        Batched::new(&load(), program.clone(), &mut device)
            .infer(inputs, 3, 0, &mut |s, answers, q| found.push((s, answers.to_vec(), q.to_vec())))
            .unwrap();
        assert_eq!(found, expected, "{size}");
        device.end().unwrap();
    }
}

#[test]
fn other_models_are_refused() {
    for (name, config) in configs() {
        let file = random_model(&config, 1).unwrap();
        let made = Program::new(&ModelView::new_checked(file.as_slice()).unwrap(), THREADS, H100);
        match made {
            Ok(_) => assert!(name.starts_with("group-sum"), "{name}"),
            Err(error) => {
                assert!(error.to_string().contains("structured cells (mixer group-sum), this model has mixer"), "{name}: {error}")
            }
        }
    }
}

/// The compute capabilities that the kernels are compiled for here: A100, H100.
const CAPABILITIES: [(i32, i32, usize); 2] = [(8, 0, A100), (9, 0, H100)];

/// Compiles with NVRTC, then with ptxas: prints registers, shared memory and spills of the kernels, and fails if a thread has more registers than
/// a block of this size can have, or if any is spilled. Needs `HRM_CUDA`, the folder of `cargo xtask test cuda`.
#[test]
fn nvrtc_and_ptxas_accept_the_source() {
    let Some(tools) = ptxas::tools() else { return };
    for size in [4, 6, 9] {
        let file = shipped(size);
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        for (major, minor, shared) in CAPABILITIES {
            let program = Program::new(&view, THREADS, shared).unwrap();
            let ptx = compile(&program, (major, minor)).unwrap();
            let told = ptxas::accept(&tools, &size.to_string(), &ptx, (major, minor), 2);
            println!("{size}x{size}, sm_{major}{minor}, {} bytes of shared memory a block: {told:#?}", program.shared_bytes);
        }
    }
}

/// Compares a model and its guesses on a real GPU with the core.
#[test]
fn a_gpu_agrees() {
    for size in [4, 6, 9] {
        let model = Int8::load(&model_path(size), 5).unwrap();
        let (mut gpu, program) = match Gpu::open("cuda:0", &model.view().unwrap()) {
            Ok(opened) => opened,
            Err(error) => {
                println!("skipped: no CUDA device ({error:#})");
                assert!(std::env::var_os("HRM_NEED_GPU").is_none(), "HRM_NEED_GPU is set, but there is no CUDA device: {error:#}");
                return;
            }
        };
        println!("on {}", gpu.name());
        let set = puzzles(size, 40);
        compare(&format!("{size}x{size} on a GPU"), &mut gpu, model.view().unwrap(), &program, &tokens_of(&set)[..8], 16);
        let options = GuessOptions { guesses: 8, segments: 16, select: Select::Verify, seed: 5 };
        let found = Batched::new(&model, program, &mut gpu).guess(&set, set.len(), options).unwrap();
        assert_eq!(found, int8(&model, &set, set.len(), options).unwrap());
    }
}
