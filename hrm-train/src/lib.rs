//! Train, quantise and analyse Hierarchical Reasoning Models.
pub mod data;
pub mod engine;
pub mod spec;
