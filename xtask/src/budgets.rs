//! `firmware/budgets.toml`: what each image takes, and the check that it takes no more than that.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{cargo, devices, figures};

/// Named numbers of one image: bytes or instructions.
pub type Measured = BTreeMap<String, u64>;

/// Compilers differ a little from version to version.
const TOLERANCE: f64 = 0.05;

/// What the checksum of a model is named, before its size: other figures are those of this file, and the checksum must be the same.
pub const CRC: &str = "crc-";

/// The table: image, then name, then number.
pub struct Budgets(BTreeMap<String, Measured>);

impl Budgets {
    /// Reads the committed table.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(file()).unwrap_or_default();
        toml::from_str(&text).map(Self).with_context(|| file().display().to_string())
    }

    /// Replaces what is known of an image.
    pub fn set(&mut self, image: &str, measured: &Measured) {
        self.0.entry(image.to_owned()).or_default().extend(measured.clone());
    }

    /// What is known of an image.
    #[must_use]
    pub fn of(&self, image: &str) -> Option<&Measured> {
        self.0.get(image)
    }

    /// All images.
    pub fn images(&self) -> impl Iterator<Item = (&str, &Measured)> {
        self.0.iter().map(|(name, measured)| (name.as_str(), measured))
    }

    /// What of `measured` is above its budget, or has none.
    #[must_use]
    pub fn compare(&self, image: &str, measured: &Measured) -> Vec<String> {
        let budget = |name: &str| self.of(image).and_then(|b| b.get(name)).copied();
        let judge = |(name, &found): (&String, &u64)| match budget(name) {
            Some(expected) if name.starts_with(CRC) => (found != expected).then(|| {
                format!("{image}: the model of {name} is {found:08x}, its figures are those of {expected:08x} (--bless writes new ones)")
            }),
            None => Some(format!("{image}: {name} is {found}, and there is no budget for it (--bless writes one)")),
            Some(most) if found as f64 > most as f64 * (1.0 + TOLERANCE) => {
                Some(format!("{image}: {name} is {found}, more than {:.0} % above its budget of {most}", 100.0 * TOLERANCE))
            }
            Some(_) => None,
        };
        measured.iter().filter_map(judge).collect()
    }

    /// Writes the table, each image's figures into its README, and all into the `hrm` command.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn write(&self) -> Result<()> {
        let head = "# Bytes, and instructions of the slowest segment, of every image. `cargo xtask size` and `cargo xtask qemu` compare\n\
                    # (5 % more is too much), with --bless they write.\n\n";
        let text = toml::to_string(&self.0).context("budgets")?;
        fs::write(file(), head.to_owned() + &text).with_context(|| format!("cannot write {}", file().display()))?;
        self.images().try_for_each(|(image, measured)| figures::write(image, measured))?;
        devices::write(self)
    }
}

fn file() -> PathBuf {
    cargo::root().join("firmware/budgets.toml")
}
