//! Solving at the edge: the `hrm` command, and what stands behind it as a library.
//!
//! A Hierarchical Reasoning Model thinks by iterating a small network on a state until its answer holds. [`hrm_core`] runs that
//! iteration in integers, without allocation, in memory that the caller lends it: right for firmware, laborious for a program on a
//! host. This crate adds what a host has: models that own their bytes, memory that grows by itself, threads, and files. The
//! answers and state hashes are those of the core, bit for bit, on every kernel and with any number of threads.
//!
//! | module | |
//! |---|---|
//! | [`engine`] | [`Model`]: open a `.hrm` file or take an embedded one, [`Model::solve`], [`Workspace`] |
//! | [`parallel`] | [`Model::solve_all`]: a stream of puzzles on several threads, results in input order |
//! | [`builtin`] | the models that were embedded when the program was built |
//! | [`service`], [`protocol`] | a device that solves: requests and events over any transport, one segment a call; `no_std`, no allocation |
//! | [`client`] | the host's side: a device behind a serial port or a TCP connection |
//! | `tract` | feature `tract`: segments run by tract from an exported ONNX file, in the same solving loop |
//! | [`hrm_core`] | the network, its file format, tasks with verifiers; what firmware links beside the service |
//!
//! ```
//! use hrm_embedded::{Model, hrm_core::task::Sudoku, hrm_core::testing};
//!
//! // A random model stands here for a trained one: `Model::open("models/sudoku-9x9.hrm")?` or `Model::builtin(9)?`.
//! let file = testing::random_model(&testing::sudoku_config(), 1)?;
//! let model = Model::from_bytes(file.as_slice())?;
//! let sudoku = Sudoku::new(9).unwrap();
//! let mut puzzle = [0; 81];
//! sudoku.parse(".71.....9.............1.5.49......3..1.9.....786......8..3.....3..7.846..5..6...7", &mut puzzle)?;
//! let mut options = model.default_options();
//! options.guesses = 1;
//! let solved = model.solve(&puzzle, &options)?;
//! // The verifier decides: a random model has no valid answer.
//! assert_eq!((solved.answer, solved.verified, solved.segments), (None, false, 16));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Features: `std` (default) for everything above and the command; `tract` for the tract backend; `log` for messages about loaded models; `defmt` passes on to the
//! core. Without `std` the crate is `no_std`: the service, its protocol and the core.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
pub mod builtin;
#[cfg(feature = "std")]
pub mod client;
#[cfg(feature = "std")]
pub mod engine;
mod fmt;
#[cfg(feature = "std")]
pub mod parallel;
pub mod protocol;
pub mod service;
#[cfg(feature = "tract")]
pub mod tract;

#[cfg(feature = "std")]
pub use engine::{Model, ModelError, Solved, Workspace};
pub use hrm_core;
