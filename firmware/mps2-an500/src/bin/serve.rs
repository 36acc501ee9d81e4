//! The solver service on the serial port: see `hrm_firmware::serve`.
#![no_std]
#![no_main]

use hrm_firmware::serve;
use hrm_mps2_an500::{ARENA, Board, PACKED};

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut GUESSES: [u8; serve::GUESSES] = [0; serve::GUESSES];
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    static mut WEIGHTS: [i32; PACKED] = [0; PACKED];
    serve::main::<Board>([MEMORY, &mut []], WEIGHTS, GUESSES)
}
