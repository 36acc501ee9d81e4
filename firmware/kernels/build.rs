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

fn main() {
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
