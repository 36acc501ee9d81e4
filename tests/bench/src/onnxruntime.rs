//! ONNX Runtime through its C interface, with inputs and outputs bound beforehand.

use anyhow::{Context as _, Result, anyhow};
use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use crate::product::Product;
use crate::race::Call;

/// A session on one thread.
pub(crate) fn session(runtime: &Environment, onnx: &[u8]) -> Result<Session> {
    let mut builder = Session::builder(runtime)?
        .with_intra_threads(1)
        .and_then(|b| b.with_optimization_level(GraphOptimizationLevel::All))
        .map_err(|e| anyhow!("{e}"))?;
    builder.commit_from_memory(onnx).context("ONNX Runtime cannot load the graph")
}

/// MatMulInteger in its fastest form: unsigned activations without a zero point, constant signed weights.
pub(crate) fn product<'p>(runtime: &Environment, p: &'p Product) -> Result<Call<'p>> {
    let mut session = session(runtime, &graph(p))?;
    let mut binding = session.create_binding()?;
    // The same activations, 128 higher.
    let a: Vec<u8> = p.a.iter().map(|&a| a as u8 ^ 0x80).collect();
    binding.bind_input("a", &Tensor::from_array(([p.m, p.k], a))?)?;
    binding.bind_output("y", Tensor::<i32>::new(&Allocator::default(), [p.m, p.n])?)?;
    let mut sums = run(&mut session, &binding)?;
    for row in sums.chunks_exact_mut(p.n) {
        for (sum, weights) in row.iter_mut().zip(p.weights.chunks_exact(p.k)) {
            *sum -= weights.iter().map(|&w| 128 * i32::from(w)).sum::<i32>();
        }
    }
    p.check("ONNX Runtime", &sums)?;
    Ok(Box::new(move || {
        session.run_binding(&binding)?;
        Ok(())
    }))
}

fn run(session: &mut Session, binding: &IoBinding) -> Result<Vec<i32>> {
    Ok(session.run_binding(binding)?["y"].try_extract_tensor::<i32>()?.1.to_vec())
}

/// The ONNX file of the product: protobuf messages with the field numbers of the ONNX standard.
fn graph(p: &Product) -> Vec<u8> {
    const UINT8: usize = 2;
    const INT8: usize = 3;
    const INT32: usize = 6;
    let value = |name: &str, kind, shape: [usize; 2]| {
        let shape = shape.map(|d| part(1, &number(1, d))).concat();
        let tensor = part(1, &[number(1, kind), part(2, &shape)].concat());
        [part(1, name.as_bytes()), part(2, &tensor)].concat()
    };
    let node = [part(1, b"a"), part(1, b"w"), part(2, b"y"), part(4, b"MatMulInteger")].concat();
    let raw: Vec<u8> = p.transposed().iter().map(|&w| w as u8).collect();
    let weights = [number(1, p.k), number(1, p.n), number(2, INT8), part(8, b"w"), part(9, &raw)].concat();
    let (a, y) = (value("a", UINT8, [p.m, p.k]), value("y", INT32, [p.m, p.n]));
    let graph = [part(1, &node), part(2, b"product"), part(5, &weights), part(11, &a), part(12, &y)].concat();
    // Version 8 of the format, operator set 17.
    [number(1, 8), part(7, &graph), part(8, &number(2, 17))].concat()
}

/// A field that holds bytes or a message.
fn part(field: usize, bytes: &[u8]) -> Vec<u8> {
    [&varint(field << 3 | 2)[..], &varint(bytes.len()), bytes].concat()
}

/// A field that holds a number.
fn number(field: usize, n: usize) -> Vec<u8> {
    [varint(field << 3), varint(n)].concat()
}

fn varint(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}
