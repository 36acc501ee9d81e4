//! Puzzles from the emulator, state hashes to the emulator: see `hrm_firmware::verify`.
#![no_std]
#![no_main]

use hrm_virt_rv32v::{ARENA, Board, PACKED};

#[riscv_rt::entry]
fn main() -> ! {
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    static mut WEIGHTS: [i32; PACKED] = [0; PACKED];
    // SAFETY: called once, and nothing else names these.
    let (memory, weights) = unsafe { (&mut *(&raw mut MEMORY), &mut *(&raw mut WEIGHTS)) };
    hrm_firmware::verify::main::<Board>([memory, &mut []], weights)
}
