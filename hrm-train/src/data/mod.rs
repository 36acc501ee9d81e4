//! Puzzles in and out.
