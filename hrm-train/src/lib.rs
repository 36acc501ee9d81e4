//! Train, quantise and analyse Hierarchical Reasoning Models.
pub mod analyze;
pub mod checkpoint;
pub mod data;
pub mod engine;
pub mod evaluate;
pub mod evaluate_int8;
pub mod export;
pub mod guesses;
pub mod import;
pub mod model_file;
pub mod monitor;
pub mod puzzles;
pub mod quantize;
pub mod queue;
pub mod run_config;
pub mod spec;
pub mod train;
