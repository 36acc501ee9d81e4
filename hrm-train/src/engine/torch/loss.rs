//! The loss of a segment: symbols, and the Q head.

use tch::{Kind, Reduction, Tensor};

use super::block::Answer;
use crate::engine::Loss;

/// Sums over the batch, on the device.
pub(super) struct Losses {
    /// Cross entropy of each row averaged over its labelled cells, `[batch]`.
    pub cells: Tensor,
    /// The same against the whole target, with the rows' factors, summed.
    pub weighted: Tensor,
    /// Labelled cells answered right, `[batch]` (i64).
    pub right: Tensor,
    /// Whether all labelled cells are right, `[batch]`.
    pub exact: Tensor,
    /// Binary cross entropy of the halt logit against `exact`, with the rows' factors, summed.
    pub halt: Tensor,
}

/// Loss of `logits` `[batch, S, classes]` and halt logits `[batch]` against labels `[batch, S]` (i64; 0 does not count).
/// `first` is the token of class 0; `weights` `[batch]` are factors of the rows' losses;
/// `teacher`: probabilities `[batch, S, classes]`, and their share of the target.
pub(super) fn losses(
    kind: Loss,
    logits: &Tensor,
    halt: &Tensor,
    labels: &Tensor,
    first: i64,
    weights: Option<&Tensor>,
    teacher: Option<(&Tensor, f64)>,
) -> Answer<Losses> {
    let counts = labels.f_gt(0)?;
    let targets = labels.f_sub_scalar(first)?.f_clamp_min(0)?;
    let logarithm = match kind {
        Loss::Softmax => logits.f_log_softmax(-1, Kind::Float)?,
        Loss::Stablemax => log_stablemax(&logits.f_to_kind(Kind::Double)?)?,
    };
    let picked = logarithm.f_gather(-1, &targets.f_unsqueeze(-1)?, false)?.f_squeeze_dim(-1)?;
    let blank = counts.f_logical_not()?;
    let entropy = picked.f_neg()?.f_masked_fill(&blank, 0.0)?;
    let number = counts.f_sum_dim_intlist(&[-1i64][..], false, Kind::Int64)?;
    let divisor = number.f_clamp_min(1)?.f_unsqueeze(-1)?;
    let mean = |entropy: &Tensor| entropy.f_div(&divisor)?.f_sum_dim_intlist(&[-1i64][..], false, entropy.f_kind()?);
    let cells = mean(&entropy)?;

    let answer = logits.f_argmax(-1, false)?.f_add_scalar(first)?;
    let right = answer.f_eq_tensor(labels)?.f_logical_and(&counts)?.f_sum_dim_intlist(&[-1i64][..], false, Kind::Int64)?;
    let exact = right.f_eq_tensor(&number)?;
    let halt = binary(halt, &exact.f_to_kind(Kind::Float)?, weights)?;
    let whole = match teacher {
        None => cells.f_alias()?,
        Some((p, share)) => {
            let entropy = logarithm.f_mul(p)?.f_sum_dim_intlist(&[-1i64][..], false, logarithm.f_kind()?)?.f_neg()?;
            let advised = mean(&entropy.f_masked_fill(&blank, 0.0)?)?;
            cells.f_mul_scalar(1.0 - share)?.f_add(&advised.f_mul_scalar(share)?)?
        }
    };
    let weighted = weights.map_or_else(|| whole.f_alias(), |w| whole.f_mul(w))?.f_sum(whole.f_kind()?)?;
    Ok(Losses { cells, weighted, right, exact, halt })
}

/// Binary cross entropy of logits against probabilities, times the rows' weights if there are any, summed.
pub(super) fn binary(logits: &Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Answer<Tensor> {
    logits.f_binary_cross_entropy_with_logits(targets, weights, None::<&Tensor>, Reduction::Sum)
}

/// `log(s(x) / sum s(x))` over the last axis with `s(x) = x + 1` for `x >= 0`, else `1 / (1 - x)` (Prieto et al. 2025, in f64 as in HRM).
fn log_stablemax(x: &Tensor) -> Answer<Tensor> {
    // In this order: at a logit of exactly 1, which bf16 often gives, 1e-30 is all that keeps the branch not taken, and so its zero share of
    // the gradient, finite.
    let below = x.f_neg()?.f_add_scalar(1.0)?.f_add_scalar(1e-30)?.f_reciprocal()?;
    let s = x.f_add_scalar(1.0)?.f_where_self(&x.f_ge(0.0)?, &below)?;
    s.f_div(&s.f_sum_dim_intlist(&[-1i64][..], true, Kind::Double)?)?.f_log()
}
