//! Puzzles from the emulator, hashes to the emulator: see `hrm_firmware::verify`.
#![no_std]
#![no_main]

use hrm_mps2_an386::{ARENA, Board};

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    hrm_firmware::verify::main::<Board>(MEMORY)
}
