//! Serial ports and counters of the emulated boards, as far as images use them: polled, because a segment is uninterrupted work and an
//! emulator keeps what comes in meanwhile.

/// Reads a register.
fn read(address: usize) -> u32 {
    // SAFETY: `address` is that of a 32-bit register of a board's manual, handed on by a constant of the board's crate; reading the
    // registers used here has no effect on memory.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register.
fn write(address: usize, value: u32) {
    // SAFETY: as in `read`; the registers used here start no transfer from or to memory.
    unsafe { (address as *mut u32).write_volatile(value) }
}

/// The UART of Arm's MPS2 and MPS3 boards (CMSDK APB UART) at `BASE`.
pub mod cmsdk {
    use super::{read, write};

    const STATE: usize = 0x4;
    const CTRL: usize = 0x8;
    const BAUDDIV: usize = 0x10;

    /// Switches on both directions.
    pub fn start<const BASE: usize>() {
        write(BASE + BAUDDIV, 16);
        write(BASE + CTRL, 0b11);
    }

    /// A byte that has come in.
    #[must_use]
    pub fn receive<const BASE: usize>() -> Option<u8> {
        (read(BASE + STATE) & 0b10 != 0).then(|| read(BASE) as u8)
    }

    /// Sends a byte once the one before has left.
    pub fn send<const BASE: usize>(byte: u8) {
        while read(BASE + STATE) & 0b01 != 0 {}
        write(BASE, u32::from(byte));
    }

    /// The free-running counter of the boards' FPGA (FPGAIO) at `BASE`.
    #[must_use]
    pub fn counter<const BASE: usize>() -> u32 {
        read(BASE + 0x18)
    }
}
