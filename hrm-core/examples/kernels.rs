//! Speed of the kernels: GMAC/s for each matrix shape, and where the time of a segment of the 9x9 Sudoku shape goes.
//!
//! `cargo run --release -p hrm-core --features std --example kernels [kernel ...]`

use std::hint::black_box;
use std::time::Instant;

use hrm_core::kernels::{Columns, Kernel, Requant};
use hrm_core::rng::{Purpose, Stream};
use hrm_core::{Broken, ModelView, Network, Plan, Run, testing};

/// Seconds of the fastest of several rounds of `f`.
fn best_time(mut f: impl FnMut() -> Result<(), Broken>) -> Result<f64, Broken> {
    let start = Instant::now();
    f()?;
    let once = start.elapsed().as_secs_f64().max(1e-7);
    let calls = (0.01 / once).clamp(1.0, 1e5) as usize;
    let mut best = once;
    for _ in 0..10 {
        let start = Instant::now();
        for _ in 0..calls {
            f()?;
        }
        best = best.min(start.elapsed().as_secs_f64() / calls as f64);
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    for kernel in Kernel::available().filter(|k| names.is_empty() || names.iter().any(|n| n == k.name())) {
        println!("{}", kernel.name());
        shapes(kernel)?;
        segment(kernel, &testing::sudoku_config())?;
        for (name, config) in testing::configs() {
            print!("{name:>20}: ");
            segment(kernel, &config)?;
        }
    }
    Ok(())
}

/// The operations on the shapes of the 9x9 model and of larger ones.
fn shapes(kernel: Kernel) -> Result<(), Broken> {
    let mut stream = Stream::new(1, Purpose::Start, 0);
    for (rows, n, k) in [
        (72, 192, 48),
        (72, 48, 96),
        (729, 192, 48),
        (729, 48, 96),
        (324, 192, 48),
        (97, 384, 128),
        (81, 1536, 512),
        (81, 512, 512),
        (128, 512, 97),
    ] {
        let weights: Vec<i8> = (0..n * k).map(|_| (stream.next_u32() as i8).max(-127)).collect();
        let a: Vec<i8> = (0..rows * k).map(|_| stream.next_u32() as i8).collect();
        let (mult, bias) = (vec![1 << 20; n], vec![1 << 10; n]);
        let q = Requant { shift: 4, mult: &mult, bias: &bias };
        let mut packed = vec![0; kernel.packed_words(n, k)];
        kernel.pack(&Columns::new(&weights, n, 0, k, &[]), &mut packed)?;
        let w = Columns::new(&weights, n, 0, k, &packed);
        let (mut wide, mut narrow) = (vec![0; rows * n], vec![0; rows * n]);
        let macs = (rows * n * k) as f64;
        let t = best_time(|| kernel.accumulate(black_box(&a), &w, None, &mut wide))?;
        let u = best_time(|| kernel.project(black_box(&a), &w, &q, None, &mut narrow))?;
        println!("{rows:4} rows {k:4} -> {n:4}: accumulate {:7.1} GMAC/s, project {:7.1} GMAC/s", macs / t / 1e9, macs / u / 1e9);
    }
    let (rows, width) = (729, 48);
    let x: Vec<i16> = (0..rows * 4 * width).map(|_| stream.next_normals()[0]).collect();
    let mut view = vec![0; rows * width];
    let mut hidden = vec![0; rows * 2 * width];
    let mut y = x[..rows * width].to_vec();
    let index: Vec<u16> = (0..4 * rows).map(|i| (i % 4 * 81 + i / 4 % 81) as u16).collect();
    let mut sums = vec![0; 324 * width];
    let us = |t: f64| t * 1e6;
    println!("view8 {:.1} us", us(best_time(|| kernel.view8(black_box(&x[..rows * width]), 1016, &mut view))?));
    println!("glu {:.1} us", us(best_time(|| kernel.glu(black_box(&x), 2 * width, 0, &mut hidden))?));
    println!("add_norm {:.1} us", us(best_time(|| kernel.add_norm(&mut y, black_box(&x[..rows * width]), width))?));
    println!("group_sums {:.1} us", us(best_time(|| kernel.group_sums(black_box(&view), width, &index, 4, &mut sums))?));
    Ok(())
}

/// One segment of a model of this shape.
fn segment(kernel: Kernel, config: &hrm_core::Config) -> Result<(), Box<dyn std::error::Error>> {
    let file = testing::random_model(config, 1)?;
    let view = ModelView::new_checked(file.as_slice())?;
    let mut packed = vec![0; Network::packed_words(&view, kernel)];
    let network = Network::new(view, kernel, &mut packed)?;
    let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
    let mut run = Run::new(network, &mut arena, Plan::HOST)?;
    run.start(&testing::random_tokens(config, 1), 1, 0)?;
    let t = best_time(|| {
        black_box(run.segment()?);
        Ok(())
    })?;
    let hash = best_time(|| {
        black_box(run.hash());
        Ok(())
    })?;
    println!("segment {:.3} ms, hash {:.3} ms", t * 1e3, hash * 1e3);
    Ok(())
}
