//! candle's quantised product: Q8_0 weights (32 values with a scale each), float activations that it quantises in every call.

use std::hint::black_box;

use anyhow::{Result, ensure};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module as _, Tensor};

use crate::product::Product;
use crate::race::Call;

/// None: a row is no whole number of blocks.
pub(crate) fn product(p: &Product) -> Result<Option<Call<'_>>> {
    if !p.k.is_multiple_of(GgmlDType::Q8_0.block_size()) {
        return Ok(None);
    }
    let float = |values: &[i8], shape| {
        let values: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    };
    let (a, weights) = (float(&p.a, (p.m, p.k))?, float(&p.weights, (p.n, p.k))?);
    let matrix = QMatMul::from_qtensor(QTensor::quantize(&weights, GgmlDType::Q8_0)?)?;
    let sums = matrix.forward(&a)?.flatten_all()?.to_vec1::<f32>()?;
    let square = |f: &dyn Fn(f32, f32) -> f32| sums.iter().zip(&p.sums).map(|(&a, &b)| f(a, b as f32).powi(2)).sum::<f32>();
    let error = (square(&|a, b| a - b) / square(&|_, b| b)).sqrt();
    ensure!(error < 0.02, "candle's sums are {error} beside the exact ones for {}x{}x{}", p.m, p.k, p.n);
    Ok(Some(Box::new(move || {
        black_box(matrix.forward(black_box(&a))?);
        Ok(())
    })))
}
