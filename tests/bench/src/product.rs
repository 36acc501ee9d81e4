//! A matrix product with int8 operands, and our kernels at it.

use std::hint::black_box;

use anyhow::{Result, ensure};
use hrm_core::kernels::{Columns, Requant};
use hrm_core::{Aligned, Kernel};

use crate::race::Call;

/// `[m, k]` activations times `[n, k]` weights, transposed.
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) a: Vec<i8>,
    pub(crate) weights: Vec<i8>,
    /// `[m, n]`, by the scalar law.
    pub(crate) sums: Vec<i32>,
}

impl Product {
    pub(crate) fn new(m: usize, k: usize, n: usize) -> Result<Self> {
        let byte = |i: usize| ((i * 2_654_435_761) >> 13) as i8;
        let a: Vec<i8> = (0..m * k).map(byte).collect();
        let weights: Vec<i8> = (0..n * k).map(|i| byte(i + 7).max(-127)).collect();
        let mut sums = vec![0; m * n];
        Kernel::REFERENCE.accumulate(&a, &Columns::new(&weights, n, 0, k, &[]), None, &mut sums)?;
        Ok(Self { m, k, n, a, weights, sums })
    }

    /// The weights as `[k, n]`.
    pub(crate) fn transposed(&self) -> Vec<i8> {
        (0..self.k * self.n).map(|i| self.weights[i % self.n * self.k + i / self.n]).collect()
    }

    /// An engine's sums must be these.
    pub(crate) fn check(&self, engine: &str, sums: &[i32]) -> Result<()> {
        ensure!(sums == self.sums, "{engine} gives other sums for {}x{}x{}", self.m, self.k, self.n);
        Ok(())
    }
}

/// Our kernel with its requantisation to 16 bits, which the others do not do.
pub(crate) fn ours(p: &Product, kernel: Kernel) -> Result<Call<'_>> {
    let mut packed = Aligned::new(kernel.packed_words(p.n, p.k));
    kernel.pack(&Columns::new(&p.weights, p.n, 0, p.k, &[]), &mut packed)?;
    let mut sums = vec![0; p.m * p.n];
    kernel.accumulate(&p.a, &Columns::new(&p.weights, p.n, 0, p.k, &packed), None, &mut sums)?;
    p.check(kernel.name(), &sums)?;
    let (mult, bias) = (vec![1 << 20; p.n], vec![0; p.n]);
    let mut out = vec![0i16; p.m * p.n];
    Ok(Box::new(move || {
        let columns = Columns::new(&p.weights, p.n, 0, p.k, &packed);
        let requant = Requant { shift: 4, mult: &mult, bias: &bias };
        kernel.project(black_box(&p.a), &columns, &requant, None, &mut out)?;
        black_box(&out);
        Ok(())
    }))
}
