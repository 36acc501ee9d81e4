//! Tasks: tokens, symmetries, verifiers.
