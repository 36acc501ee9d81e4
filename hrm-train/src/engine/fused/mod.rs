//! Structured cells on CPUs.
