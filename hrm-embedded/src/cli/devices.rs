//! What images of boards take, and what a segment costs there: the part of `hrm inspect` that is not worked out but measured.
//!
//! `cargo xtask size --bless` and `cargo xtask qemu --bless` write `devices.json` from the budgets that every test run checks. Its figures
//! are those of the model files whose checksums it names; of another model nothing is said.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

const MEASURED: &str = include_str!("devices.json");

/// How to measure another model.
const HOW: &str = "put it into models/ in place of the one of its size and run `cargo xtask qemu --bless`";

/// An image and what was measured of it.
#[derive(Deserialize)]
struct Image {
    board: String,
    core: String,
    /// Bytes of the program in flash, and of it code.
    flash: u64,
    code: u64,
    /// Bytes of RAM from the start, without the stack.
    ram: u64,
    /// Bytes of the stack at its most.
    stack: u64,
    models: Vec<Costs>,
}

/// What one model costs on an image: bytes of the arena, instructions of the slowest segment.
#[derive(Deserialize)]
struct Costs {
    crc32: String,
    arena: u64,
    instructions: u64,
}

/// The boards that one model was measured on.
#[derive(Serialize)]
pub(super) struct Devices {
    measured: bool,
    /// How to measure it, if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    measure: Option<&'static str>,
    boards: Vec<Board>,
}

#[derive(Serialize)]
struct Board {
    board: String,
    core: String,
    /// Of the program; the model comes on top.
    flash: u64,
    code: u64,
    /// What the arena lies in, and all else but the stack.
    static_ram: u64,
    stack: u64,
    arena: u64,
    instructions_per_segment: u64,
}

impl Devices {
    /// What was measured of the model with this checksum.
    ///
    /// # Errors
    /// Never: `devices.json` was read by a test.
    pub(super) fn of(crc32: &str) -> serde_json::Result<Self> {
        Self::read(MEASURED, crc32)
    }

    fn read(measured: &str, crc32: &str) -> serde_json::Result<Self> {
        let images: Vec<Image> = serde_json::from_str(measured)?;
        let board = |image: Image| {
            let Image { board, core, flash, code, ram: static_ram, stack, models } = image;
            let costs = models.into_iter().find(|m| m.crc32 == crc32)?;
            let (arena, instructions_per_segment) = (costs.arena, costs.instructions);
            Some(Board { board, core, flash, code, static_ram, stack, arena, instructions_per_segment })
        };
        let boards: Vec<Board> = images.into_iter().filter_map(board).collect();
        let measured = !boards.is_empty();
        Ok(Self { measured, measure: (!measured).then_some(HOW), boards })
    }

    pub(super) fn text(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some(how) = self.measure {
            return writeln!(out, "devices          not measured with this model: {how}");
        }
        writeln!(
            out,
            "devices          bytes of the program's flash, of it code, of its RAM with the memory of the arena, of the stack at its most,"
        )?;
        writeln!(out, "                 of the arena that this model takes; instructions of the slowest segment")?;
        let [flash, code, ram, stack] = ["flash", "code", "static RAM", "stack"];
        writeln!(out, "  {:13} {:22} {flash:>7} {code:>7} {ram:>10} {stack:>6} {:>7} {:>12}", "board", "core", "arena", "instructions")?;
        for b in &self.boards {
            let Board { board, core, flash, code, static_ram, stack, arena, instructions_per_segment } = b;
            let figures = format!("{flash:>7} {code:>7} {static_ram:>10} {stack:>6} {arena:>7} {instructions_per_segment:>12}");
            writeln!(out, "  {board:13} {core:22} {figures}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hrm_embedded::Model;

    const TWO: &str = r#"[
        {"board": "a", "core": "M4", "flash": 20, "code": 10, "ram": 300, "stack": 40, "models": [
            {"crc32": "00000001", "arena": 5, "instructions": 600}, {"crc32": "00000002", "arena": 7, "instructions": 800}]},
        {"board": "b", "core": "M7", "flash": 21, "code": 11, "ram": 301, "stack": 41, "models": []}]"#;

    fn text(devices: &Devices) -> String {
        let mut out = Vec::new();
        devices.text(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_model_that_was_measured_has_figures() {
        let second = Devices::read(TWO, "00000002").unwrap();
        assert_eq!((second.measured, second.measure, second.boards.len()), (true, None, 1));
        let last = text(&second).lines().last().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(last.as_deref(), Some("a M4 20 10 300 40 7 800"));
        let other = Devices::read(TWO, "00000003").unwrap();
        assert!(!other.measured && other.boards.is_empty());
        assert!(text(&other).starts_with("devices          not measured with this model: "), "{}", text(&other));
    }

    /// Whoever replaces a model has to measure it.
    #[test]
    fn the_embedded_models_are_measured_on_every_board() {
        for size in [4, 6, 9] {
            let Ok(model) = Model::builtin(size) else { continue };
            let devices = Devices::of(&format!("{:08x}", model.view().crc())).unwrap();
            assert_eq!(devices.boards.len(), 12, "{size}x{size}: `cargo xtask qemu --bless` measures it");
        }
    }
}
