//! The images of boards that people own: built here, run there.

use std::path::PathBuf;

use anyhow::Result;

use crate::memories::{self, Memory};
use crate::test::{Done, must};
use crate::{bare, cargo};

/// A board: its folder in `firmware/` and Rust's target.
pub struct Board {
    /// Folder, and name in reports.
    pub name: &'static str,
    /// Rust's target.
    pub target: &'static str,
    /// The emulated board with such a processor.
    pub like: &'static str,
    /// What the network gets.
    pub memory: Memory,
}

/// All of them.
pub const BOARDS: [Board; 4] = [
    Board { name: "pico2", target: "thumbv8m.main-none-eabihf", like: "mps2-an505", memory: memories::RP2350 },
    Board { name: "nucleo-h743", target: "thumbv7em-none-eabihf", like: "mps2-an500", memory: memories::STM32H743 },
    Board { name: "nrf52840-dk", target: "thumbv7em-none-eabihf", like: "mps2-an386", memory: memories::NRF52840 },
    Board { name: "esp32-c3", target: "riscv32imc-unknown-none-elf", like: "virt-rv32imc", memory: memories::ESP32_C3 },
];

impl Board {
    /// Builds the image; the reason if no toolchain can.
    ///
    /// # Errors
    /// The build fails, or is not the one that the lock file says.
    pub fn build(&self) -> Result<Option<String>> {
        let Some(mut command) = bare::cargo_for(self.target, &["build", "--quiet", "--release", "--locked"])? else {
            return Ok(Some(format!("no standard library for {}", self.target)));
        };
        must(command.current_dir(cargo::root().join("firmware").join(self.name)))?;
        Ok(None)
    }

    /// The ELF file of its image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        bare::target_dir().join(self.target).join("release").join(format!("hrm-{}", self.name))
    }
}

/// Builds every image and compares its sizes with the budgets.
///
/// # Errors
/// A build fails, or an image has outgrown its budget.
pub fn run() -> Result<Done> {
    crate::size::run(&crate::size::Options { boards: true, bless: false })
}
