//! Train, quantise and analyse Hierarchical Reasoning Models.
pub mod data;
pub mod engine;
pub mod run_config;
pub mod spec;
