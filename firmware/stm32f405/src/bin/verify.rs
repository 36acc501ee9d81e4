//! Puzzles from the emulator, state hashes to the emulator: see `hrm_firmware::verify`.
#![no_std]
#![no_main]

use hrm_stm32f405::{ARENA, Board, core_coupled};

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    // SAFETY: called once.
    let core_coupled = unsafe { core_coupled() };
    hrm_firmware::verify::main::<Board>([MEMORY, core_coupled], &mut [])
}
