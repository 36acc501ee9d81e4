//! The integer network.
#![no_std]
