//! Builds for bare metal: through rustup's targets where they can be installed, else with Debian's Rust, which brings its own source.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cargo;
use crate::test::{Done, must};

/// Targets that hrm-core and hrm-embedded must build for without `std`: Cortex-M4F and a RISC-V without atomics or FPU.
const TARGETS: [&str; 2] = ["thumbv7em-none-eabihf", "riscv32imc-unknown-none-elf"];
/// Debian's toolchain: compiler, cargo, source and linker.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld-19"];

/// Builds the `no_std` crates for every target.
///
/// # Errors
/// A build fails, or no toolchain can be had although this machine should be able to.
pub fn build() -> Result<Done> {
    for target in TARGETS {
        let command = if rustup_has(target) {
            cargo::command()
        } else if let Some(command) = debian()? {
            command
        } else {
            return Ok(Done::Skipped(format!("no standard library for {target}: `rustup target add {target}` is not possible here")));
        };
        for package in ["hrm-core", "hrm-embedded"] {
            let mut command = clone(&command);
            command.args(["build", "--release", "-p", package, "--no-default-features", "--target", target]);
            if !rustup_has(target) {
                command.arg("-Zbuild-std=core,alloc").arg("--target-dir").arg(cargo::root().join("target/bare"));
            }
            must(&mut command)?;
        }
    }
    Ok(Done::Passed)
}

fn clone(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(key, value),
            None => copy.env_remove(key),
        };
    }
    copy.current_dir(cargo::root());
    copy
}

fn rustup_has(target: &str) -> bool {
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    let installed = || {
        let output = cargo::plain("rustc").args(["--print", "sysroot"]).output().ok()?;
        let root = String::from_utf8(output.stdout).ok()?;
        Path::new(root.trim()).join("lib/rustlib").join(target).join("lib").is_dir().then_some(())
    };
    installed().is_some() || (quiet(cargo::plain("rustup").args(["target", "add", target])) && installed().is_some())
}

/// `cargo` of Debian's toolchain, installed if this user may install packages.
fn debian() -> Result<Option<Command>> {
    let have = || Path::new("/usr/bin/rustc").exists() && Path::new("/usr/src").read_dir().is_ok_and(|mut d| d.any(is_rust_source));
    if !have() {
        let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"));
        if !root || !Path::new("/usr/bin/apt-get").exists() {
            return Ok(None);
        }
        must(Command::new("apt-get").args(["update", "-q"]))?;
        must(Command::new("apt-get").args(["install", "-y", "-q", "--no-install-recommends"]).args(PACKAGES))
            .context("Debian's Rust for bare metal")?;
    }
    let mut command = Command::new("/usr/bin/cargo");
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc").env_remove("RUSTUP_TOOLCHAIN");
    for target in TARGETS {
        command.env(format!("CARGO_TARGET_{}_LINKER", target.replace('-', "_").to_uppercase()), "ld.lld-19");
    }
    Ok(Some(command))
}

fn is_rust_source(entry: std::io::Result<std::fs::DirEntry>) -> bool {
    entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("rustc-"))
}
