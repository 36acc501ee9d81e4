//! Starting cargo with what a task needs around it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::libtorch;
use crate::test::must;

/// Features of `hrm-train` where libtorch is there; CUDA and NCCL are looked for when they are used.
pub const EVERYTHING: &str = "nccl,cuda";

/// The workspace's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// `cargo` in the workspace's root: the one that started this task.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program of the toolchain in the workspace's root, chosen anew (`+nightly`, rustup) and not by the cargo that started this task.
#[must_use]
pub fn plain(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(variable);
    }
    command
}

/// Whether this is a Debian-like machine and this user may install its packages.
#[must_use]
pub fn may_install_packages() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"));
    root && Path::new("/usr/bin/apt-get").exists()
}

/// Installs packages of this machine's own release; to be asked for only if [`may_install_packages`].
///
/// # Errors
/// One cannot be installed.
pub fn install_packages(packages: &[&str]) -> Result<()> {
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // Steps run beside each other; apt would not wait.
    fs::create_dir_all(root().join("target"))?;
    let lock = fs::File::create(root().join("target/packages.lock")).context("target/packages.lock cannot be written")?;
    lock.lock().context("target/packages.lock cannot be locked")?;
    must(apt().args(["update", "-q"]))?;
    must(apt().args(["install", "-y", "-q", "--no-install-recommends"]).args(packages))
}

/// A program of a release build of the workspace.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release").join(name)
}

/// `cargo` that builds and runs programs with libtorch: fetches it where it is missing.
///
/// # Errors
/// As [`libtorch::ensure`].
pub fn with_libtorch() -> Result<Command> {
    let dir = libtorch::ensure()?;
    let mut command = command();
    libtorch::environment(&mut command, &dir)?;
    Ok(command)
}

/// `cargo test` of `hrm-train` with [`EVERYTHING`], so that all its tests come from one build.
///
/// # Errors
/// As [`with_libtorch`].
pub fn test_trainer(args: &[&str]) -> Result<Command> {
    let mut command = with_libtorch()?;
    command.args(["test", "--release", "-p", "hrm-train", "--features", EVERYTHING]).args(args);
    Ok(command)
}

/// Runs `hrm-train ARGS` from a release build with libtorch, in the caller's folder.
///
/// # Errors
/// libtorch cannot be fetched, the build fails, or hrm-train ends with an error: then this process ends with its exit code.
pub fn train(args: &[String]) -> Result<()> {
    let here = std::env::current_dir().context("the current folder cannot be read")?;
    let mut command = with_libtorch()?;
    command.current_dir(here).args(["run", "--quiet", "--release", "--features", EVERYTHING, "--manifest-path"]);
    command.arg(root().join("hrm-train/Cargo.toml")).args(["--bin", "hrm-train", "--"]).args(args);
    let status = command.status().context("cargo could not be started")?;
    if !status.success() {
        match status.code() {
            Some(code) => std::process::exit(code),
            None => bail!("hrm-train was ended by a signal ({status})"),
        }
    }
    Ok(())
}
