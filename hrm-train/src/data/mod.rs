//! Puzzles in and out: files, the solver and the generator, what training draws.

pub mod arc;
pub mod augment;
pub mod canonical;
pub mod csv;
pub mod generator;
pub mod grid;
pub mod grid_npy;
pub mod maze;
pub mod npy;
mod oddagon;
pub mod rng;
mod set;
pub mod solver;

pub use augment::{Sampler, SamplerOptions};
pub use generator::{Generator, GeneratorOptions, Side, generate};
pub use set::PuzzleSet;
pub use solver::Solver;
