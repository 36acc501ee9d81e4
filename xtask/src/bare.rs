//! Builds for bare metal: through rustup's targets where they can be installed, else with Debian's Rust, which brings its own source.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::boards::BOARDS;
use crate::cargo;
use crate::qemu::machine::MACHINES;
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
        for package in ["hrm-core", "hrm-embedded"] {
            let Some(mut command) = cargo_for(target, &["build", "--release", "-p", package, "--no-default-features"])? else {
                return Ok(Done::Skipped(format!("no standard library for {target}: `rustup target add {target}` is not possible here")));
            };
            must(&mut command)?;
        }
    }
    Ok(Done::Passed)
}

/// `cargo ARGS` for `target` in the workspace's root, from a toolchain that has or builds its standard library; `None` if there is none
/// to be had. Build products go to [`target_dir`].
///
/// # Errors
/// The installation of a toolchain fails.
pub fn cargo_for(target: &str, args: &[&str]) -> Result<Option<Command>> {
    let (mut command, build_std) = if rustup_has(target) {
        (cargo::plain("cargo"), false)
    } else if debian()? {
        (debian_cargo(target), true)
    } else {
        return Ok(None);
    };
    command.current_dir(cargo::root()).args(args).args(["--target", target]);
    if build_std {
        command.arg("-Zbuild-std=core,alloc");
    }
    command.arg("--target-dir").arg(target_dir());
    Ok(Some(command))
}

/// Clippy on the firmware of every board, and on what all of it shares.
///
/// # Errors
/// It finds something.
pub fn lint() -> Result<Done> {
    let emulated = MACHINES.iter().map(|m| (m.name, m.target, None));
    let real = BOARDS.iter().map(|b| (b.name, b.target, None));
    let checks = [("no-panic", TARGETS[0], None), ("kernels", TARGETS[0], Some("an386"))];
    let mut skipped = Vec::new();
    for (folder, target, feature) in emulated.chain(real).chain(checks) {
        if !rustup_has(target) {
            skipped.push(folder);
            continue;
        }
        let mut command = cargo::plain("cargo");
        command.current_dir(cargo::root().join("firmware").join(folder)).args(["clippy", "--quiet", "--release", "--locked"]);
        if feature.is_none() && folder != "no-panic" {
            command.args(["-p", &format!("hrm-{folder}"), "-p", "hrm-firmware"]);
        }
        command.args(feature.map(|f| format!("--features={f}"))).args(["--target", target, "--target-dir"]).arg(target_dir());
        // The flags of a board are for its linker and for the kernels: without them boards of one target share what they are made of.
        command.env("RUSTFLAGS", "");
        // `&mut *(&raw mut STATIC)` is how memory is taken that belongs to one place of the program.
        must(command.args(["--", "-D", "warnings", "-A", "clippy::deref_addrof"]))?;
    }
    let why = format!("no rustup target for {}", skipped.join(", "));
    Ok(if skipped.is_empty() { Done::Passed } else { Done::Skipped(why) })
}

/// Where all bare metal builds go: one folder, so that a standard library is built once a target and set of flags.
#[must_use]
pub fn target_dir() -> std::path::PathBuf {
    cargo::root().join("target/bare")
}

/// Whether rustup's toolchain has the target, or can get it.
fn rustup_has(target: &str) -> bool {
    let root = cargo::plain("rustc").args(["--print", "sysroot"]).output().ok().and_then(|o| String::from_utf8(o.stdout).ok());
    let installed = || root.as_ref().is_some_and(|r| Path::new(r.trim()).join("lib/rustlib").join(target).join("lib").is_dir());
    let add = |target: &str| {
        let mut command = cargo::plain("rustup");
        command.args(["target", "add", target]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|s| s.success())
    };
    // Where one target cannot be downloaded, the others cannot either.
    static OFFLINE: OnceLock<bool> = OnceLock::new();
    installed() || (!*OFFLINE.get_or_init(|| !add(target)) && add(target) && installed())
}

/// Whether Debian's toolchain is there; it is installed if this user may install packages.
fn debian() -> Result<bool> {
    if Path::new("/usr/bin/rustc").exists() && Path::new("/usr/src").read_dir().is_ok_and(|mut d| d.any(is_rust_source)) {
        return Ok(true);
    }
    if !cargo::may_install_packages() {
        return Ok(false);
    }
    cargo::install_packages(&PACKAGES).context("Debian's Rust for bare metal")?;
    Ok(true)
}

fn debian_cargo(target: &str) -> Command {
    let mut command = Command::new("/usr/bin/cargo");
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc").env_remove("RUSTUP_TOOLCHAIN");
    let linker = if target.starts_with("wasm32") { "wasm-ld-19" } else { "ld.lld-19" };
    command.env(format!("CARGO_TARGET_{}_LINKER", target.replace(['-', '.'], "_").to_uppercase()), linker);
    command
}

fn is_rust_source(entry: std::io::Result<std::fs::DirEntry>) -> bool {
    entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("rustc-"))
}
