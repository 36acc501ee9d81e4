//! QEMU's RISC-V board `virt` as RV32IMC: no atomics, no floating point.
#![no_std]

use hrm_firmware::Plan;
use hrm_firmware::drivers::{self, ns16550};

const UART0: usize = 0x1000_0000;

/// The board.
pub struct Board;

impl hrm_firmware::Board for Board {
    const NAME: &'static str = "virt-rv32imc";
    const SIZES: (u32, u32) = (2 << 20, 4 << 20);
    const PLAN: Plan = Plan::ROOMY;
    const NANOSECONDS_OF_TICKS: (u32, u32) = (1, 1);

    fn start() {}

    fn ticks() -> u32 {
        drivers::instructions()
    }

    fn receive() -> Option<u8> {
        ns16550::receive::<UART0>()
    }

    fn send(byte: u8) -> bool {
        ns16550::send::<UART0>(byte)
    }
}

/// 64-bit words of the arena.
pub const ARENA: usize = 800 * 1024 / 8;
/// Words for weights in the form that the kernel wants.
pub const PACKED: usize = 256 * 1024 / 4;
