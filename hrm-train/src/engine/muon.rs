//! Numbers of Muon's rule (Jordan et al. 2024), which both engines have: the momentum of a matrix with its singular values brought near
//! 1, so that no direction of the matrix learns faster than another. `X = M / (|M| + TINY)`, [`STEPS`] times
//! `X <- a X + (b A + c A^2) X` with `A = X X^T` (the short side first), then times `RMS sqrt(long side)`. `M` is Nesterov's momentum
//! `b1 m + (1 - b1) g`.

/// Coefficients `a`, `b`, `c` of the iteration (Jordan et al.): steep at 0, singular values end between 0.7 and 1.2.
pub const QUINTIC: [f32; 3] = [3.4445, -4.775, 2.0315];

/// Iterations.
pub const STEPS: usize = 5;

/// Root mean square of a step's elements, as AdamW's have (Liu et al. 2025, arXiv 2502.16982): learning rate and weight decay of the two
/// mean the same.
pub const RMS: f32 = 0.2;

/// Keeps the first division finite.
pub const TINY: f64 = 1e-7;
