//! The emulated boards and their images.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::test::must;
use crate::{bare, cargo};

/// An emulated board: the folder of its image, and how QEMU is started for it.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Folder in `firmware/`, and name of the board in reports.
    pub name: &'static str,
    /// The processor.
    pub core: &'static str,
    /// Rust's target.
    pub target: &'static str,
    /// QEMU's program and its machine.
    pub qemu: (&'static str, &'static [&'static str]),
    /// Where the region of the model begins.
    pub model: u64,
}

const ARM: &str = "qemu-system-arm";
const RISCV: &str = "qemu-system-riscv32";
const M4: &str = "thumbv7em-none-eabihf";
const M33: &str = "thumbv8m.main-none-eabihf";
const RV32: &str = "riscv32imc-unknown-none-elf";

/// All of them.
pub const MACHINES: [Machine; 8] = [
    machine("mps2-an385", "Cortex-M3", "thumbv7m-none-eabi", (ARM, &["mps2-an385"]), 0x20_0000),
    machine("mps2-an386", "Cortex-M4F", M4, (ARM, &["mps2-an386"]), 0x20_0000),
    machine("stm32f405", "Cortex-M4F, true sizes", M4, (ARM, &["netduinoplus2"]), 0x080c_0000),
    machine("mps2-an500", "Cortex-M7", M4, (ARM, &["mps2-an500"]), 0x20_0000),
    machine("mps2-an505", "Cortex-M33", M33, (ARM, &["mps2-an505"]), 0x1020_0000),
    machine("mps3-an547", "Cortex-M55, Helium", M33, (ARM, &["mps3-an547"]), 0x0100_0000),
    machine(
        "virt-rv32imc",
        "RV32IMC",
        RV32,
        (RISCV, &["virt", "-cpu", "rv32,a=false,f=false,d=false,zawrs=false,zfa=false", "-bios", "none"]),
        0x8020_0000,
    ),
    machine("virt-rv32v", "RV32 with V", RV32, (RISCV, &["virt", "-cpu", "rv32,v=true,vlen=128", "-bios", "none"]), 0x8020_0000),
];

const fn machine(
    name: &'static str,
    core: &'static str,
    target: &'static str,
    qemu: (&'static str, &'static [&'static str]),
    model: u64,
) -> Machine {
    Machine { name, core, target, qemu, model }
}

/// What an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The wire protocol.
    Serve,
    /// Hashes for the comparison with the host.
    Verify,
}

impl Machine {
    /// The machine of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn by_name(name: &str) -> Result<Self> {
        let found = MACHINES.into_iter().find(|m| m.name == name);
        let names: Vec<_> = MACHINES.iter().map(|m| m.name).collect();
        ensure!(found.is_some(), "no emulated board {name:?}: there are {}", names.join(", "));
        Ok(found.unwrap_or(MACHINES[0]))
    }

    /// Folder of the board.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        cargo::root().join("firmware").join(self.name)
    }

    /// Builds both images; the reason if no toolchain can.
    ///
    /// # Errors
    /// A build fails.
    pub fn build(&self) -> Result<Option<String>> {
        let Some(mut command) = bare::cargo_for(self.target, &["build", "--quiet", "--release"])? else {
            return Ok(Some(format!("no standard library for {}", self.target)));
        };
        must(command.current_dir(self.folder()))?;
        for image in [Image::Serve, Image::Verify] {
            let built = bare::target_dir().join(self.target).join("release").join(image.file());
            std::fs::create_dir_all(self.folder().join("target"))?;
            std::fs::copy(&built, self.image(image))?;
        }
        Ok(None)
    }

    /// The ELF file of an image. The build folder is shared, so each board keeps its own.
    #[must_use]
    pub fn image(&self, image: Image) -> PathBuf {
        self.folder().join("target").join(image.file())
    }
}

impl Image {
    const fn file(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Verify => "verify",
        }
    }
}
