//! The integer network of a Hierarchical Reasoning Model and its fixed-point iteration. `no_std`, no allocation.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![deny(unsafe_code)]

#[cfg(feature = "std")]
mod aligned;
pub mod config;
pub mod cost;
pub mod format;
mod groups;
mod guesses;
pub mod iterate;
pub mod kernels;
mod layers;
mod lean;
pub mod memory;
pub mod network;
mod parts;
pub mod rng;
pub mod schedule;
pub mod solve;
mod state;
pub mod task;
#[cfg(feature = "std")]
pub mod testing;

#[cfg(feature = "std")]
pub use aligned::Aligned;
pub use config::{Config, ConfigError, Mixer, Start};
pub use format::{FormatError, ModelView};
pub use iterate::{Halt, Iteration, Machine, Policy, Segment};
pub use kernels::Kernel;
pub use memory::{MemoryError, Plan, Schedule, required_bytes};
pub use network::{InputError, Network, Part, Place, Residual, Run};
pub use parts::Broken;
pub use solve::{Outcome, Select, Solver};
