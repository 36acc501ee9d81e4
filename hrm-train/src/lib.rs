//! Train, quantise and analyse Hierarchical Reasoning Models.
pub mod checkpoint;
pub mod data;
pub mod engine;
pub mod evaluate;
pub mod import;
pub mod model_file;
pub mod puzzles;
pub mod run_config;
pub mod spec;
pub mod train;
