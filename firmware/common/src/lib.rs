//! What all images share. A board's own crate says where its memories, its serial port and its counter are; the rest is here.
//!
//! | module | |
//! |---|---|
//! | [`region`] | the model in a part of flash of its own |
//! | [`serve`] | the wire protocol on a serial port |
//! | [`verify`] | feature `emulated`: state hashes and instruction counts, compared with the host by `cargo xtask qemu` |
//! | [`stack`] | the most that the stack has taken |
//! | [`faults`] | feature `emulated` or `boards`: the end of an image that cannot go on |
//! | [`last_run`] | feature `boards`: why the run before ended |
//! | [`memories`] | feature `boards`: what each board gives to the network |
//! | [`port`] | feature `boards`: a serial port with an asynchronous driver |
//! | [`drivers`] | feature `emulated`: serial ports and counters |
#![no_std]

pub mod board;
#[cfg(feature = "emulated")]
pub mod drivers;
#[cfg(any(feature = "emulated", feature = "boards"))]
pub mod faults;
#[cfg(feature = "boards")]
pub mod last_run;
#[cfg(feature = "boards")]
pub mod memories;
#[cfg(feature = "boards")]
pub mod port;
pub mod region;
pub mod serve;
pub mod stack;
#[cfg(feature = "emulated")]
pub mod verify;

pub use board::Board;
pub use hrm_embedded::hrm_core::Plan;
