//! The integer network and its matrix products beside other engines, in one run: one thread each, the least time of many calls.
//!
//! `hrm-peers LIBONNXRUNTIME MODEL ONNX [MILLISECONDS]`; `run.sh` makes what it needs. Prints Markdown.

mod candle;
mod network;
mod onnxruntime;
mod product;
mod race;
mod tract;

use std::time::Duration;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use hrm_core::format::AlignedBytes;
use hrm_core::{Kernel, ModelView, Schedule};

use product::Product;
use race::race;

/// The engines, each in its column.
const ENGINES: [&str; 6] = ["best", "avx2", "ONNX Runtime", "tract", "tract avx2", "candle Q8_0"];

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    ensure!((3..=4).contains(&args.len()), "usage: hrm-peers LIBONNXRUNTIME MODEL ONNX [MILLISECONDS]");
    ensure!(env::var("RAYON_NUM_THREADS").as_deref() == Ok("1"), "candle takes every core unless RAYON_NUM_THREADS is 1");
    let budget = Duration::from_millis(args.get(3).map_or(Ok(400), |ms| ms.parse()).context("MILLISECONDS is a number")?);
    let runtime = ort::init_from(&args[0])?.build()?;
    let file = AlignedBytes::new(&fs::read(&args[1]).with_context(|| args[1].clone())?);
    let view = ModelView::new_checked(file.as_slice()).with_context(|| args[1].clone())?;
    let onnx = fs::read(&args[2]).with_context(|| args[2].clone())?;
    let best = Kernel::best();

    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown CPU", |(_, name)| name);
    println!("{cpu}, best kernel {}; least time of the calls of {} ms for each figure", best.name(), budget.as_millis());
    println!("{}\n", ort::info());

    println!("GMAC/s, and how many times faster the best kernel is:\n");
    println!("| product | {} |\n|---{}|", ENGINES.join(" | "), "|---".repeat(ENGINES.len()));
    let c = *view.config();
    let (channels, inner) = (usize::from(c.channels), usize::from(c.inner));
    let shapes = [(81, 128, 128), (81, 512, 512), (c.rows(), channels, 2 * inner), (c.rows(), inner, channels)];
    for (m, k, n) in shapes {
        let product = Product::new(m, k, n)?;
        let engines = [
            Some(product::ours(&product, best)?),
            Kernel::by_name("avx2").map(|kernel| product::ours(&product, kernel)).transpose()?,
            Some(onnxruntime::product(&runtime, &product)?),
            tract::product(&product, |_| true)?,
            tract::product(&product, |name| name.starts_with("avx2_"))?,
            candle::product(&product)?,
        ];
        let seconds = race(engines, budget)?;
        let rate = |s: f64| (m * k * n) as f64 / s / 1e9;
        let cell = |s: &Option<f64>| s.map_or("-".to_owned(), |s| format!("{:.1} ({:.2}x)", rate(s), s / seconds[0].unwrap_or(s)));
        println!("| {m}x{k}x{n} | {} |", seconds.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }

    println!("\nOne segment of {}, {:.1} million MACs:\n", view.header().name(), view.segment_macs(Schedule::Cached) as f64 / 1e6);
    println!("| engine | ms | times the best kernel's |\n|---|---|---|");
    let seconds = network::segment(&runtime, view, &onnx, budget)?;
    for (name, s) in &seconds {
        println!("| {name} | {:.3} | {:.1} |", s * 1e3, s / seconds[0].1);
    }
    Ok(())
}
