//! The image: see `bare` for processors without an operating system, `linux` for user-mode emulation of AArch64, `wasm` for WebAssembly.
#![no_std]
#![no_main]

#[cfg(target_os = "none")]
mod bare;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_arch = "wasm32")]
mod wasm;
