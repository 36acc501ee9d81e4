//! Tasks: tokens, symmetries, verifiers. Nothing outside this room knows what a token means.

mod error;
pub mod grid;
pub mod solver;
pub mod sudoku;
pub mod symmetry;

pub use error::PuzzleError;
pub use grid::Grid;
pub use solver::{Solutions, count_solutions};
pub use sudoku::{MAX_CELLS, MAX_SIZE, Sudoku, Verdict};
pub use symmetry::Symmetry;
