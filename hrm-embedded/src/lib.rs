//! placeholder docs
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
pub mod builtin;
#[cfg(feature = "std")]
pub mod engine;
#[cfg(feature = "std")]
pub mod parallel;

#[cfg(feature = "std")]
pub use engine::{Model, ModelError, Solved, Workspace};
pub use hrm_core;
