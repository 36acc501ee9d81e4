//! What all images share. A board's own crate says where its memories, its serial port and its counter are; the rest is here.
//!
//! Images of emulated boards come in two: `serve` answers the wire protocol on the serial port, as on a real board; `verify` takes
//! puzzles from the emulator through semihosting and prints the hash of the state after every segment, which `cargo xtask qemu`
//! compares with the host's.
#![no_std]

pub mod board;
pub mod drivers;
pub mod faults;
pub mod region;
pub mod verify;

pub use board::Board;
