//! The kernels of a core against the scalar law, and their instructions: the part that does not depend on the machine.
#![no_std]

pub mod bench;
pub mod check;
