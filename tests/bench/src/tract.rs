//! tract's int8 kernels, called one by one: its fastest for the shape, with both operands packed beforehand.

use std::time::Instant;

use anyhow::Result;
use tract_data::internal::tract_ndarray::Array2;
use tract_data::internal::{Datum as _, DatumType, Tensor};
use tract_linalg::MmmDispatch;
use tract_linalg::mmm::{AsInputValue, FusedSpec, MMMInputValue, MatMatMul, ScratchSpace};

use crate::product::Product;
use crate::race::Call;

/// A kernel with its operands.
struct Packed {
    kernel: Box<dyn MatMatMul>,
    packing: usize,
    a: Box<dyn MMMInputValue>,
    b: Box<dyn MMMInputValue>,
    scratch: Box<dyn ScratchSpace>,
    out: Tensor,
}

impl Packed {
    fn run(&mut self) -> Result<()> {
        let (m, n) = (self.out.shape()[0], self.out.shape()[1]);
        // SAFETY: rows and columns of the output, which is of the accumulators' type and outlives the call.
        let store = unsafe { self.kernel.c_view(Some(0), Some(1)).wrap(&self.out.view_mut()) };
        let (a, b) = (AsInputValue::Borrowed(&*self.a), AsInputValue::Borrowed(&*self.b));
        let work = [FusedSpec::AddMatMul { a, b, packing: self.packing }, FusedSpec::Store(store)];
        // SAFETY: the operands are `[m, k]` and `[k, n]`, packed by the formats of this packing; the scratch is the kernel's own.
        unsafe { self.kernel.run_with_scratch_space(m, n, &mut *self.scratch, &work) }
    }
}

/// The fastest of the kernels whose name is `wanted`, over their packings of int8 operands; None if this CPU has none.
pub(crate) fn product(p: &Product, wanted: impl Fn(&str) -> bool) -> Result<Option<Call<'_>>> {
    let a: Tensor = Array2::from_shape_vec((p.m, p.k), p.a.clone())?.into();
    let b: Tensor = Array2::from_shape_vec((p.k, p.n), p.transposed())?.into();
    let mut best: Option<(f64, Packed)> = None;
    for kernel in MmmDispatch::native().runnable() {
        if kernel.internal_type() != i32::datum_type() || !wanted(kernel.name()) || !kernel.stores().contains(&DatumType::I32) {
            continue;
        }
        let int8 = i8::datum_type().into();
        for (packing, (of_a, of_b)) in kernel.packings().iter().enumerate() {
            if of_a.precursor() != int8 || of_b.precursor() != int8 {
                continue;
            }
            let (a, b) = (of_a.prepare_one(&a, 1, 0)?, of_b.prepare_one(&b, 0, 1)?);
            // SAFETY: it is handed back to this kernel alone.
            let scratch = unsafe { kernel.allocate_scratch_space() };
            let out = Tensor::zero_dt(DatumType::I32, &[p.m, p.n])?;
            let mut packed = Packed { kernel: kernel.clone(), packing, a, b, scratch, out };
            let mut seconds = f64::INFINITY;
            for _ in 0..50 {
                let begin = Instant::now();
                packed.run()?;
                seconds = seconds.min(begin.elapsed().as_secs_f64());
            }
            p.check(kernel.name(), packed.out.try_as_plain_ram()?.as_slice::<i32>()?)?;
            if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                best = Some((seconds, packed));
            }
        }
    }
    Ok(best.map(|(_, mut packed)| -> Call<'_> { Box::new(move || packed.run()) }))
}
