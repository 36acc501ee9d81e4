//! The image: see `bare` for processors without an operating system, `linux` for user-mode emulation of AArch64, `wasm` for WebAssembly.
#![no_std]
#![no_main]

#[cfg(any(target_arch = "arm", target_arch = "riscv32"))]
mod bare;
#[cfg(feature = "cmsis-nn")]
mod cmsis;
#[cfg(target_arch = "aarch64")]
mod linux;
#[cfg(any(target_arch = "arm", target_arch = "riscv32"))]
mod machine;
#[cfg(target_arch = "wasm32")]
mod wasm;
