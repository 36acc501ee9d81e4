//! Puzzles from the emulator, state hashes to the emulator: see `hrm_firmware::verify`.
#![no_std]
#![no_main]

use hrm_mps2_an505::{ARENA, Board, PACKED};

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    static mut WEIGHTS: [i32; PACKED] = [0; PACKED];
    hrm_firmware::verify::main::<Board>([MEMORY, &mut []], WEIGHTS)
}
