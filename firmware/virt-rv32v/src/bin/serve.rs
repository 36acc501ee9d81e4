//! The solver service on the serial port: see `hrm_firmware::serve`.
#![no_std]
#![no_main]

use hrm_firmware::serve;
use hrm_virt_rv32v::{ARENA, Board, PACKED};

#[riscv_rt::entry]
fn main() -> ! {
    static mut GUESSES: [u8; serve::GUESSES] = [0; serve::GUESSES];
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    static mut WEIGHTS: [i32; PACKED] = [0; PACKED];
    // SAFETY: called once, and nothing else names these.
    let (memory, weights) = unsafe { (&mut *(&raw mut MEMORY), &mut *(&raw mut WEIGHTS)) };
    // SAFETY: as above.
    let guesses = unsafe { &mut *(&raw mut GUESSES) };
    serve::main::<Board>([memory, &mut []], weights, guesses)
}
