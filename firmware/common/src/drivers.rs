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

    /// Takes a byte to send if the one before has left.
    #[must_use]
    pub fn send<const BASE: usize>(byte: u8) -> bool {
        let free = read(BASE + STATE) & 0b01 == 0;
        if free {
            write(BASE, u32::from(byte));
        }
        free
    }

    /// The free-running counter of the boards' FPGA (FPGAIO) at `BASE`.
    #[must_use]
    pub fn counter<const BASE: usize>() -> u32 {
        read(BASE + 0x18)
    }
}

/// Instructions so far, the low 32 bits (`minstret`).
#[cfg(target_arch = "riscv32")]
#[must_use]
pub fn instructions() -> u32 {
    riscv::register::minstret::read() as u32
}

/// A 16550 UART with registers of one byte at `BASE`, as QEMU's `virt` board has it.
#[cfg(target_arch = "riscv32")]
pub mod ns16550 {
    const LSR: usize = 5;

    fn read<const BASE: usize>(register: usize) -> u8 {
        // SAFETY: `BASE` is that of the board's UART; its registers are bytes, and reading one has no effect on memory.
        unsafe { ((BASE + register) as *const u8).read_volatile() }
    }

    /// A byte that has come in.
    #[must_use]
    pub fn receive<const BASE: usize>() -> Option<u8> {
        (read::<BASE>(LSR) & 1 != 0).then(|| read::<BASE>(0))
    }

    /// Takes a byte to send if the one before has left.
    #[must_use]
    pub fn send<const BASE: usize>(byte: u8) -> bool {
        let free = read::<BASE>(LSR) & 0x20 != 0;
        if free {
            // SAFETY: the transmit register of the UART.
            unsafe { (BASE as *mut u8).write_volatile(byte) };
        }
        free
    }
}

/// USART1 and TIM2 of an STM32F405.
pub mod stm32f405 {
    use super::{read, write};

    const RCC_AHB1ENR: usize = 0x4002_3830;
    const RCC_APB1ENR: usize = 0x4002_3840;
    const RCC_APB2ENR: usize = 0x4002_3844;
    const USART1: usize = 0x4001_1000;
    const TIM2: usize = 0x4000_0000;
    const GPIOA: usize = 0x4002_0000;

    /// Switches on USART1 on PA9 and PA10 (115200 baud at the reset clock of 16 MHz) and TIM2 (every clock counts).
    pub fn start() {
        write(RCC_AHB1ENR, read(RCC_AHB1ENR) | 1);
        write(GPIOA, read(GPIOA) & !(0b1111 << 18) | 0b1010 << 18);
        write(GPIOA + 0x24, read(GPIOA + 0x24) & !(0xff << 4) | 0x77 << 4);
        write(RCC_APB2ENR, read(RCC_APB2ENR) | 1 << 4);
        write(RCC_APB1ENR, read(RCC_APB1ENR) | 1);
        write(USART1 + 0x8, 16_000_000 / 115_200);
        write(USART1 + 0xc, 1 << 13 | 1 << 3 | 1 << 2);
        write(TIM2 + 0x2c, u32::MAX);
        write(TIM2, 1);
    }

    /// The count of TIM2.
    #[must_use]
    pub fn counter() -> u32 {
        read(TIM2 + 0x24)
    }

    /// A byte that has come in.
    #[must_use]
    pub fn receive() -> Option<u8> {
        (read(USART1) & 1 << 5 != 0).then(|| read(USART1 + 4) as u8)
    }

    /// Takes a byte to send if the one before has left.
    #[must_use]
    pub fn send(byte: u8) -> bool {
        let free = read(USART1) & 1 << 7 != 0;
        if free {
            write(USART1 + 4, u32::from(byte));
        }
        free
    }
}
