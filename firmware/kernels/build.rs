//! Memory of the emulated machine that a feature names.

use std::path::PathBuf;
use std::{env, fs};

/// Machine, flash (origin, length), RAM (origin, length).
const MACHINES: [(&str, [u32; 4]); 5] = [
    ("AN385", [0x0, 4 << 20, 0x2100_0000, 16 << 20]),
    ("AN386", [0x0, 4 << 20, 0x2100_0000, 16 << 20]),
    ("AN500", [0x0, 4 << 20, 0x6000_0000, 16 << 20]),
    ("AN505", [0x1000_0000, 4 << 20, 0x8000_0000, 16 << 20]),
    ("AN547", [0x0, 512 << 10, 0x2100_0000, 4 << 20]),
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

/// CMSIS-NN's matrix product as its documentation says to build it, for the processor of the machine.
#[cfg(feature = "cmsis-nn")]
fn cmsis_nn() {
    const PROCESSORS: [(&str, &[&str]); 5] = [
        ("AN385", &["-mcpu=cortex-m3", "-mfloat-abi=soft"]),
        ("AN386", &["-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"]),
        ("AN500", &["-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"]),
        ("AN505", &["-mcpu=cortex-m33", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"]),
        ("AN547", &["-mcpu=cortex-m55", "-mfloat-abi=hard"]),
    ];
    println!("cargo::rerun-if-env-changed=CMSIS_NN_DIR");
    let checkout = PathBuf::from(env::var_os("CMSIS_NN_DIR").expect("CMSIS_NN_DIR names a checkout of CMSIS-NN"));
    let source = checkout.join("Source/NNSupportFunctions/arm_nn_mat_mult_nt_t_s8.c");
    assert!(source.is_file(), "CMSIS_NN_DIR: found no {}", source.display());
    let (_, flags) = PROCESSORS
        .iter()
        .find(|(name, _)| env::var_os(format!("CARGO_FEATURE_{name}")).is_some())
        .expect("a feature names the machine: an385, an386, an500, an505 or an547");
    let mut build = cc::Build::new();
    build.compiler("arm-none-eabi-gcc").no_default_flags(true).warnings(false);
    build.flag("-mthumb").flag("-Ofast").flag("-ffunction-sections");
    for flag in *flags {
        build.flag(flag);
    }
    build.include(checkout.join("Include")).file(source).compile("cmsis-nn");
}

fn main() {
    #[cfg(feature = "cmsis-nn")]
    cmsis_nn();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    let script = if target.starts_with("riscv32") {
        println!("cargo::rustc-link-arg-bins=-Tmemory.x");
        VIRT.to_owned()
    } else if target.starts_with("thumb") {
        let machine = MACHINES.iter().find(|(name, _)| env::var_os(format!("CARGO_FEATURE_{name}")).is_some());
        let (_, [flash, flash_length, ram, ram_length]) =
            machine.expect("a feature names the machine: an385, an386, an500, an505 or an547");
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
