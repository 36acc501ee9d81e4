//! Update rules on flat vectors, and SignSGD for the table of puzzle embeddings.

use tch::{Device, Kind, Tensor, no_grad};

use super::block::Answer;
use super::layout::Layout;
use crate::engine::{EngineOptions, OptimizerKind, muon};

/// Moments, average and step count of one flat vector of parameters.
pub(super) struct Optimizer {
    kind: OptimizerKind,
    betas: (f64, f64),
    weight_decay: f64,
    ema: f64,
    clip: f64,
    /// One where weight decay applies; `None` where it applies everywhere.
    decayed: Option<Tensor>,
    /// Offset, rows and columns of what Muon's rule is for; empty for other rules.
    matrices: Vec<(i64, i64, i64)>,
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
    /// Running mean of the weights; `None` if it is switched off.
    pub average: Option<Tensor>,
    /// Steps made.
    pub steps: u64,
}

impl Optimizer {
    pub fn new(options: &EngineOptions, layout: &Layout, flat: &Tensor) -> Answer<Self> {
        let decayed = if layout.params.iter().all(|p| p.decay) {
            None
        } else {
            let mask: Vec<f32> = layout.params.iter().flat_map(|p| std::iter::repeat_n(f32::from(u8::from(p.decay)), p.len)).collect();
            Some(Tensor::f_from_slice(&mask)?.f_to_device(flat.device())?)
        };
        let matrices = layout.params.iter().filter(|p| p.matrix && options.optimizer == OptimizerKind::Muon);
        Ok(Self {
            matrices: matrices.map(|p| (p.offset as i64, p.shape[0] as i64, p.shape[1] as i64)).collect(),
            kind: options.optimizer,
            betas: options.betas,
            weight_decay: options.weight_decay,
            ema: options.ema,
            clip: options.clip,
            decayed,
            m: flat.f_zeros_like()?,
            v: flat.f_zeros_like()?,
            average: if options.ema > 0.0 { Some(flat.copy()) } else { None },
            steps: 0,
        })
    }

    /// One step of `flat` along `gradient`, which is finite.
    pub fn step(&mut self, flat: &mut Tensor, gradient: &Tensor, lr: f64) -> Answer<()> {
        no_grad(|| {
            let clipped = if self.clip > 0.0 {
                let norm = gradient.f_norm()?.f_double_value(&[])?;
                Some(gradient.f_mul_scalar(self.clip / norm.max(self.clip))?)
            } else {
                None
            };
            let gradient = clipped.as_ref().unwrap_or(gradient);
            self.steps += 1;
            let t = self.steps as f64;
            let (b1, b2) = self.betas;
            let (bias1, bias2) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));
            // Decoupled: the decay never enters the moments.
            match &self.decayed {
                None => drop(flat.f_mul_scalar_(1.0 - lr * self.weight_decay)?),
                Some(mask) => drop(flat.f_mul_(&mask.f_mul_scalar(-lr * self.weight_decay)?.f_add_scalar(1.0)?)?),
            }
            drop(self.m.f_lerp_(gradient, 1.0 - b1)?);
            drop(self.v.f_lerp_(&gradient.f_square()?, 1.0 - b2)?);
            let root = self.v.f_sqrt()?.f_div_scalar(bias2.sqrt())?;
            let update = match self.kind {
                // The uncorrected first moment enters the angle; its correction scales the step.
                OptimizerKind::AdamAtan2 => self.m.f_atan2(&root)?,
                OptimizerKind::AdamW | OptimizerKind::Muon => self.m.f_div(&root.f_add_scalar(1e-8)?)?,
            };
            let update = update.f_mul_scalar(lr / bias1)?;
            for &(offset, rows, columns) in &self.matrices {
                let own = |t: &Tensor| t.f_narrow(0, offset, rows * columns)?.f_view([rows, columns]);
                // Nesterov's momentum: the gradient counts once more than in the mean.
                let direction = orthogonal(&own(&self.m)?.f_lerp(&own(gradient)?, 1.0 - b1)?)?;
                own(&update)?.f_copy_(&direction.f_mul_scalar(lr)?)?;
            }
            drop(flat.f_sub_(&update)?);
            if let Some(average) = &mut self.average {
                drop(average.f_lerp_(flat, 1.0 - self.ema)?);
            }
            Ok(())
        })
    }
}

/// The direction of a Muon step, as [`crate::engine::muon`] says.
fn orthogonal(matrix: &Tensor) -> Answer<Tensor> {
    let (rows, columns) = matrix.size2()?;
    let mut x = matrix.f_div(&matrix.f_norm()?.f_add_scalar(muon::TINY)?)?;
    if rows > columns {
        x = x.f_tr()?;
    }
    let [a, b, c] = muon::QUINTIC.map(f64::from);
    for _ in 0..muon::STEPS {
        let square = x.f_matmul(&x.f_tr()?)?;
        let factor = square.f_mul_scalar(b)?.f_add(&square.f_matmul(&square)?.f_mul_scalar(c)?)?;
        x = x.f_mul_scalar(a)?.f_add(&factor.f_matmul(&x)?)?;
    }
    if rows > columns {
        x = x.f_tr()?;
    }
    x.f_mul_scalar(f64::from(muon::RMS) * (rows.max(columns) as f64).sqrt())
}

/// One step of SignSGD on the rows of `table` that the batch used: `p <- p (1 - lr wd) - lr sign(g)`, `g` summed over equal identifiers.
pub(super) fn sign_sgd(table: &mut Tensor, identifiers: &[i64], gradient: &Tensor, lr: f64, weight_decay: f64) -> Answer<()> {
    no_grad(|| {
        let mut used = identifiers.to_vec();
        used.sort_unstable();
        used.dedup();
        let place: Vec<i64> = identifiers.iter().map(|id| used.partition_point(|u| u < id) as i64).collect();
        let device: Device = table.device();
        let (used, place) = (Tensor::f_from_slice(&used)?.f_to_device(device)?, Tensor::f_from_slice(&place)?.f_to_device(device)?);
        let mut sum = Tensor::f_zeros([used.size()[0], table.size()[1]], (Kind::Float, device))?;
        drop(sum.f_index_add_(0, &place, &gradient.f_to_kind(Kind::Float)?)?);
        let rows = table.f_index_select(0, &used)?.f_mul_scalar(1.0 - lr * weight_decay)?.f_sub(&sum.f_sign()?.f_mul_scalar(lr)?)?;
        drop(table.f_index_copy_(0, &used, &rows)?);
        Ok(())
    })
}
