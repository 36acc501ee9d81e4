//! Arm's MPS3 board with the FPGA image AN547, a Cortex-M55 with Helium at 32 MHz, as QEMU emulates it.
#![no_std]

use hrm_firmware::Plan;
use hrm_firmware::drivers::cmsdk;

const UART0: usize = 0x4930_3000;
const FPGAIO: usize = 0x4930_2000;

/// The board.
pub struct Board;

impl hrm_firmware::Board for Board {
    const NAME: &'static str = "mps3-an547";
    const SIZES: (u32, u32) = (512 << 10, 4 << 20);
    const PLAN: Plan = Plan::ROOMY;
    const NANOSECONDS_OF_TICKS: (u32, u32) = (50, 1);

    fn start() {
        cmsdk::start::<UART0>();
    }

    fn ticks() -> u32 {
        cmsdk::counter::<FPGAIO>()
    }

    fn receive() -> Option<u8> {
        cmsdk::receive::<UART0>()
    }

    fn send(byte: u8) -> bool {
        cmsdk::send::<UART0>(byte)
    }
}

/// 64-bit words of the arena.
pub const ARENA: usize = 800 * 1024 / 8;
/// Words for weights in the form that the kernel wants.
pub const PACKED: usize = 256 * 1024 / 4;
