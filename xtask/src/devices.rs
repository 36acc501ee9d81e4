//! What `hrm inspect` says of boards: the budgets, as a file of the crate that the command is in.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::boards::BOARDS;
use crate::budgets::{Budgets, CRC, Measured};
use crate::cargo;
use crate::figures::SIZES;
use crate::qemu::machine::{MACHINES, Machine};

fn file() -> PathBuf {
    cargo::root().join("hrm-embedded/src/cli/devices.json")
}

/// Writes the file.
///
/// # Errors
/// It cannot be written.
pub fn write(budgets: &Budgets) -> Result<()> {
    fs::write(file(), text(budgets)).with_context(|| format!("cannot write {}", file().display()))
}

/// One image a line, emulated boards first.
fn text(budgets: &Budgets) -> String {
    let emulated = MACHINES.iter().map(|m| (m.name, m.core.to_owned()));
    let real = BOARDS.iter().map(|b| (b.name, Machine::by_name(b.like).map_or_else(|_| b.like.to_owned(), |m| m.core.to_owned())));
    let lines: Vec<String> = emulated.chain(real).filter_map(|(name, core)| image(name, &core, budgets.of(name)?)).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// None if not everything has been measured.
fn image(board: &str, core: &str, m: &Measured) -> Option<String> {
    let model = |size: &str| -> Option<Value> {
        let figure = |name: &str| m.get(&format!("{name}{size}"));
        Some(json!({ "crc32": format!("{:08x}", figure(CRC)?), "arena": figure("arena-")?, "instructions": figure("instructions-")? }))
    };
    let models: Vec<Value> = SIZES.into_iter().filter_map(model).collect();
    let (flash, code, ram, stack) = (m.get("flash")?, m.get("code")?, m.get("ram")?, m.get("stack")?);
    let image = json!({ "board": board, "core": core, "flash": flash, "code": code, "ram": ram, "stack": stack, "models": models });
    Some(format!("  {image}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inspect_shows_the_budgets() {
        let budgets = Budgets::read().unwrap();
        let found = fs::read_to_string(file()).unwrap();
        assert!(found == text(&budgets), "{} has other figures than budgets.toml: --bless writes them", file().display());
        let images: Vec<Value> = serde_json::from_str(&found).unwrap();
        assert_eq!(images.len(), budgets.images().count());
        assert!(images.iter().all(|image| image["models"].as_array().is_some_and(|m| m.len() == SIZES.len())));
    }
}
