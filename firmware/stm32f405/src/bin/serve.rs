//! The solver service on the serial port: see `hrm_firmware::serve`.
#![no_std]
#![no_main]

use hrm_firmware::serve;
use hrm_stm32f405::{ARENA, Board, core_coupled};

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut GUESSES: [u8; hrm_stm32f405::GUESSES] = [0; hrm_stm32f405::GUESSES];
    static mut MEMORY: [u64; ARENA] = [0; ARENA];
    // SAFETY: called once.
    let core_coupled = unsafe { core_coupled() };
    serve::main::<Board>([MEMORY, core_coupled], &mut [], GUESSES)
}
