//! `hrm inspect`: what a model file holds, what it costs, and whether it computes what it should.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use hrm_core::format::layout::{ENTRY_LEN, HEADER_LEN, expected};
use hrm_core::format::{DType, Kind, SelfTest};
use hrm_core::{Config, Kernel, Mixer, Plan, Schedule, Solver, Start};
use hrm_embedded::Model;
use serde::Serialize;
use serde_json::{Value, json};

use super::devices::Devices;
use super::models::task_name;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The model file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Output.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Segments a puzzle, for the cost of one.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    segments: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Everything that is printed.
#[derive(Serialize)]
struct Report {
    name: String,
    crc32: String,
    task: String,
    config: Value,
    /// Learned numbers: embeddings, matrices, and the biases that the float model has.
    parameters: usize,
    int8_weights: usize,
    flash_bytes: usize,
    /// Bytes by kind of tensor; headers, table and padding as `overhead`.
    flash: BTreeMap<String, usize>,
    ram: Ram,
    macs_per_segment: Macs,
    macs_per_puzzle: Macs,
    segments_per_puzzle: u16,
    devices: Devices,
    scales: Value,
    self_test: Test,
    record: Value,
}

#[derive(Serialize)]
struct Ram {
    /// Arena of [`Plan::HOST`]: cached group products, residuals.
    arena_host: usize,
    /// Arena of [`Plan::DEVICE`]: lean, without residuals.
    arena_device: usize,
    /// Memory of a solver that selects with the verifier or takes the first answer.
    solver: usize,
    /// Added for each guess of a vote.
    solver_per_vote: usize,
    /// Weights packed for this CPU; devices read them in place.
    packed_weights: usize,
}

#[derive(Serialize)]
struct Macs {
    cached: u64,
    lean: u64,
}

#[derive(Serialize)]
struct Test {
    /// `passed`, `failed` or `absent`.
    result: &'static str,
    expected: Option<String>,
    /// State hash by kernel.
    found: BTreeMap<&'static str, String>,
}

impl Report {
    fn new(model: &Model, segments: u16) -> anyhow::Result<Self> {
        let (view, c) = (model.view(), model.config());
        let mut flash: BTreeMap<String, usize> = BTreeMap::new();
        let (mut parameters, mut int8_weights) = (0, 0);
        for e in expected(c, view.header().q_outputs()) {
            *flash.entry(kebab(&format!("{:?}", e.kind))).or_default() += e.bytes();
            let count = e.dims[0] * e.dims[1];
            int8_weights += if e.dtype == DType::I8 { count } else { 0 };
            // Other biases only carry the rounding of the requantisation.
            let learned = matches!(e.kind, Kind::Embed | Kind::Prefix | Kind::QBias) || e.dtype == DType::I8;
            let learned = learned || (e.kind == Kind::UpBias && c.mixer == Mixer::GroupSum);
            parameters += if learned { count } else { 0 };
        }
        let optional = [("record", view.record().map(str::len)), ("self-test", view.self_test().map(|t| SelfTest::HEAD + t.tokens.len()))];
        for (name, bytes) in optional {
            if let Some(bytes) = bytes {
                flash.insert(name.into(), bytes);
            }
        }
        let payload: usize = flash.values().sum();
        flash.insert("overhead".into(), view.bytes().len() - payload);
        debug_assert!(view.bytes().len() - payload >= HEADER_LEN + ENTRY_LEN * usize::from(view.header().tensors));
        let network = model.network();
        let tokens = usize::from(c.tokens);
        let options = model.default_options();
        let ram = Ram {
            arena_host: network.required_bytes(Plan::HOST),
            arena_device: network.required_bytes(Plan::DEVICE),
            solver: Solver::required_bytes(tokens, &options),
            solver_per_vote: tokens,
            packed_weights: 4 * hrm_core::Network::packed_words(view, model.kernel()),
        };
        let mut arena = vec![0; ram.arena_device.div_ceil(8)];
        let on_a_device = hrm_core::Run::new(*network, &mut arena, Plan::DEVICE).map(|run| run.segment_macs());
        let on_a_device = on_a_device.unwrap_or_else(|_| view.segment_macs(Schedule::Lean));
        let macs = |n: u64| Macs { cached: n * view.segment_macs(Schedule::Cached), lean: n * on_a_device };
        let record = view.record().map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.into())));
        let crc32 = format!("{:08x}", view.crc());
        Ok(Self {
            name: view.header().name().to_owned(),
            devices: Devices::of(&crc32)?,
            crc32,
            task: task_name(view.header().task),
            config: config(c),
            parameters,
            int8_weights,
            flash_bytes: view.bytes().len(),
            flash,
            ram,
            macs_per_segment: macs(1),
            macs_per_puzzle: macs(u64::from(segments)),
            segments_per_puzzle: segments,
            scales: scales(model),
            self_test: test(model)?,
            record,
        })
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        writeln!(out, "{name}: {}, crc32 {}", self.task, self.crc32)?;
        writeln!(out, "config           {}", one_line(&self.config))?;
        writeln!(out, "parameters       {} ({} int8 weights)", self.parameters, self.int8_weights)?;
        writeln!(out, "flash            {} bytes", self.flash_bytes)?;
        for (kind, bytes) in &self.flash {
            writeln!(out, "  {kind:18} {bytes:>9}")?;
        }
        let Ram { arena_host, arena_device, solver, solver_per_vote, packed_weights } = self.ram;
        writeln!(out, "RAM              {} bytes on a device: arena {arena_device}, solver {solver}", arena_device + solver)?;
        writeln!(out, "                 {arena_host} bytes of arena on a host, {packed_weights} of packed weights")?;
        writeln!(out, "                 a vote takes {solver_per_vote} bytes a guess more")?;
        let row = |name: &str, m: &Macs| format!("{name:17}{} cached (host), {} lean (device)", m.cached, m.lean);
        writeln!(out, "{}", row("MACs a segment", &self.macs_per_segment))?;
        writeln!(out, "{} at {} segments", row("MACs a puzzle", &self.macs_per_puzzle), self.segments_per_puzzle)?;
        self.devices.text(out)?;
        writeln!(out, "scales")?;
        for (name, value) in self.scales.as_object().into_iter().flatten() {
            match value.as_array() {
                Some(blocks) => blocks.iter().try_for_each(|b| writeln!(out, "  {}", one_line(b)))?,
                None => writeln!(out, "  {name} {value}")?,
            }
        }
        writeln!(out, "self-test        {}", self.self_test)?;
        match &self.record {
            Value::Null => writeln!(out, "record           none"),
            record => writeln!(out, "record           {record}"),
        }
    }
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.expected {
            None => f.write_str("none in the file"),
            Some(expected) => {
                let found: Vec<String> = self.found.iter().map(|(kernel, hash)| format!("{kernel} {hash}")).collect();
                write!(f, "{}: expected {expected}, found {}", self.result, found.join(", "))
            }
        }
    }
}

/// The self-test on every kernel of this machine, or on the one that `HRM_KERNEL` names.
fn test(model: &Model) -> anyhow::Result<Test> {
    let mut test = Test { result: "absent", expected: None, found: BTreeMap::new() };
    let forced = std::env::var_os("HRM_KERNEL").is_some_and(|v| !v.is_empty());
    for kernel in Kernel::available().filter(|k| !forced || *k == model.kernel()) {
        if let Some((expected, found)) = model.with_kernel(kernel)?.self_test()? {
            test.expected = Some(format!("{expected:016x}"));
            test.found.insert(kernel.name(), format!("{found:016x}"));
            test.result = if expected == found && test.result != "failed" { "passed" } else { "failed" };
        }
    }
    Ok(test)
}

fn config(c: &Config) -> Value {
    let mixer = match c.mixer {
        Mixer::Attention => "attention",
        Mixer::TokenMlp => "token-mlp",
        Mixer::GroupSum => "group-sum",
        Mixer::GroupAttention => "group-attention",
    };
    json!({
        "mixer": mixer,
        "shared": c.shared,
        "start": if c.start == Start::Random { "random" } else { "fixed" },
        "rope": c.rope,
        "tokens": c.tokens,
        "prefix": c.prefix,
        "vocab": c.vocab,
        "fields": c.fields,
        "rows": c.rows(),
        "channels": c.channels,
        "inner": c.inner,
        "token_inner": c.token_inner,
        "heads": c.heads,
        "groupings": c.groupings,
        "h_layers": c.h_layers,
        "l_layers": c.l_layers,
        "h_cycles": c.h_cycles,
        "l_cycles": c.l_cycles,
    })
}

/// Value of one int8 step of every view, of one unit of the heads, and the shifts of the matrices.
fn scales(model: &Model) -> Value {
    let (view, c) = (model.view(), model.config());
    let heads = view.heads();
    let step = |m: i16| 32.0 / f64::from(m);
    let mut blocks = Vec::new();
    for m in 0..c.modules() {
        for l in 0..c.layers(m) {
            let block = view.block(m, l);
            let name = format!("{}.{l}", if c.shared { "shared" } else { ["L", "H"][m] });
            let mut entry = json!({
                "block": name,
                "input_step": step(block.mlp.m_in),
                "up_shift": block.mlp.up.shift,
                "down_shift": block.mlp.down.shift,
            });
            if c.mixer == Mixer::GroupSum {
                let steps: Vec<f64> = block.mlp.m_group[..usize::from(c.groupings)].iter().map(|&m| step(m)).collect();
                entry["group_steps"] = json!(steps);
            }
            if let Some(a) = block.attention {
                entry["attention_input_step"] = json!(step(a.m_in));
                entry["qkv_steps"] = json!(a.m_qkv.map(step));
                entry["attention_output_step"] = json!(step(a.m_out));
            }
            if let Some(t) = block.token_mlp {
                entry["token_input_step"] = json!(step(t.m_in));
            }
            blocks.push(entry);
        }
    }
    json!({
        "stream_step": 1.0 / 1024.0,
        "head_input_step": step(heads.m_head),
        "logit_step": heads.logit_scale,
        "q_step": heads.q_scale,
        "blocks": blocks,
    })
}

fn kebab(name: &str) -> String {
    let dashed = |c: char| if c.is_ascii_uppercase() { format!("-{}", c.to_ascii_lowercase()) } else { c.to_string() };
    name.chars().map(dashed).collect::<String>().trim_start_matches('-').to_owned()
}

/// `a 1, b 2` of a JSON object.
fn one_line(value: &Value) -> String {
    let entries = value.as_object().into_iter().flatten();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    entries.map(|(k, v)| format!("{k} {}", text(v))).collect::<Vec<_>>().join(", ")
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let model = Model::open(&args.file)?;
    let report = Report::new(&model, args.segments)?;
    let mut out = io::stdout().lock();
    match args.format {
        Format::Text => report.text(&mut out)?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
    }
    if report.self_test.result == "failed" {
        anyhow::bail!("{}: the self-test {}", args.file.display(), report.self_test);
    }
    Ok(ExitCode::SUCCESS)
}
