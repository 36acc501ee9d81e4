//! STM32F405xG: Cortex-M4F, 1 MiB flash, 128 KiB RAM, 64 KiB core-coupled RAM. QEMU emulates it on the board Netduino Plus 2.
#![no_std]

use core::mem::MaybeUninit;

use hrm_firmware::Plan;
use hrm_firmware::drivers::stm32f405;

/// The board.
pub struct Board;

impl hrm_firmware::Board for Board {
    const NAME: &'static str = "stm32f405";
    const SIZES: (u32, u32) = (768 << 10, 192 << 10);
    const PLAN: Plan = Plan::DEVICE;
    const NANOSECONDS_OF_TICKS: (u32, u32) = (1, 1);

    fn start() {
        stm32f405::start();
    }

    fn ticks() -> u32 {
        stm32f405::counter()
    }

    fn receive() -> Option<u8> {
        stm32f405::receive()
    }

    fn send(byte: u8) -> bool {
        stm32f405::send(byte)
    }
}

/// 64-bit words of the arena in RAM, beside which 2.5 KiB are left for everything else.
pub const ARENA: usize = 251 * 512 / 8;
/// Bytes for guesses: no votes.
pub const GUESSES: usize = 3 * 81;
/// 64-bit words of the rest of the arena, in the core-coupled memory above the stack.
const CORE_COUPLED_WORDS: usize = (64 * 1024 - 16256) / 8;

/// The core-coupled memory above the stack, zeroed.
///
/// # Safety
/// To be called once.
#[must_use]
pub unsafe fn core_coupled() -> &'static mut [u64] {
    #[unsafe(link_section = ".ccm")]
    static mut WORDS: MaybeUninit<[u64; CORE_COUPLED_WORDS]> = MaybeUninit::uninit();
    // SAFETY: the only reference, as the caller promises.
    unsafe { &mut *(&raw mut WORDS) }.write([0; CORE_COUPLED_WORDS])
}
