//! The integer network.
#![no_std]
#![deny(unsafe_code)]
pub mod config;
pub mod task;
pub use config::{Config, ConfigError, Mixer, Start};
