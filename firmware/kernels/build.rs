//! What depends on the emulated machine that a feature names: its memory, and how CMSIS-NN is compiled for it.

use std::path::PathBuf;
use std::{env, fs};

/// An emulated machine with a Cortex-M.
struct Machine {
    /// Its feature, as Cargo spells it.
    feature: &'static str,
    /// Origin and length of flash and of RAM.
    memory: [u32; 4],
    /// What `arm-none-eabi-gcc` is told of the processor.
    #[cfg_attr(not(feature = "cmsis-nn"), allow(dead_code))]
    processor: &'static [&'static str],
}

const MACHINES: [Machine; 5] = [
    Machine { feature: "AN385", memory: [0x0, 4 << 20, 0x2100_0000, 16 << 20], processor: &["-mcpu=cortex-m3", "-mfloat-abi=soft"] },
    Machine {
        feature: "AN386",
        memory: [0x0, 4 << 20, 0x2100_0000, 16 << 20],
        processor: &["-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"],
    },
    Machine {
        feature: "AN500",
        memory: [0x0, 4 << 20, 0x6000_0000, 16 << 20],
        processor: &["-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"],
    },
    Machine {
        feature: "AN505",
        memory: [0x1000_0000, 4 << 20, 0x8000_0000, 16 << 20],
        processor: &["-mcpu=cortex-m33", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"],
    },
    Machine { feature: "AN547", memory: [0x0, 512 << 10, 0x2100_0000, 4 << 20], processor: &["-mcpu=cortex-m55", "-mfloat-abi=hard"] },
];

/// RISC-V `virt`: everything in RAM.
const VIRT: &str = "
OUTPUT_ARCH(riscv)
ENTRY(_start)
MEMORY { RAM (rwx) : ORIGIN = 0x80000000, LENGTH = 64M }
SECTIONS {
    .text : { KEEP(*(.start)) *(.text .text.*) } > RAM
    .rodata : { *(.srodata .srodata.* .rodata .rodata.*) } > RAM
    .data : { *(.sdata .sdata.* .data .data.*) } > RAM
    .bss (NOLOAD) : ALIGN(16) { __bss_start = .; *(.sbss .sbss.* .bss .bss.*) . = ALIGN(16); __bss_end = .; } > RAM
    __stack_top = ORIGIN(RAM) + LENGTH(RAM);
}
";

/// CMSIS-NN's matrix product as its documentation says to build it.
#[cfg(feature = "cmsis-nn")]
fn cmsis_nn(machine: &Machine) {
    println!("cargo::rerun-if-env-changed=CMSIS_NN_DIR");
    let checkout = PathBuf::from(env::var_os("CMSIS_NN_DIR").expect("CMSIS_NN_DIR names a checkout of CMSIS-NN"));
    let source = checkout.join("Source/NNSupportFunctions/arm_nn_mat_mult_nt_t_s8.c");
    assert!(source.is_file(), "CMSIS_NN_DIR: found no {}", source.display());
    let mut build = cc::Build::new();
    build.compiler("arm-none-eabi-gcc").no_default_flags(true).warnings(false);
    for flag in ["-mthumb", "-Ofast", "-ffunction-sections"].iter().chain(machine.processor) {
        build.flag(flag);
    }
    build.include(checkout.join("Include")).file(source).compile("cmsis-nn");
}

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    let script = if target.starts_with("riscv32") {
        println!("cargo::rustc-link-arg-bins=-Tmemory.x");
        VIRT.to_owned()
    } else if target.starts_with("thumb") {
        let machine = MACHINES.iter().find(|m| env::var_os(format!("CARGO_FEATURE_{}", m.feature)).is_some());
        let machine = machine.expect("a feature names the machine: an385, an386, an500, an505 or an547");
        #[cfg(feature = "cmsis-nn")]
        cmsis_nn(machine);
        let [flash, flash_length, ram, ram_length] = machine.memory;
        println!("cargo::rustc-link-arg-bins=-Tlink.x");
        println!("cargo::rustc-link-arg-bins=--nmagic");
        format!(
            "MEMORY {{\n  FLASH : ORIGIN = {flash:#x}, LENGTH = {flash_length:#x}\n  RAM : ORIGIN = {ram:#x}, LENGTH = {ram_length:#x}\n}}\n"
        )
    } else {
        if target.starts_with("wasm32") {
            println!("cargo::rustc-link-arg-bins=--no-entry");
            println!("cargo::rustc-link-arg-bins=--export=check");
        }
        return;
    };
    fs::write(out.join("memory.x"), script).expect("the output folder can be written");
}
