//! The tables of bytes and instructions in each image's README: written with the budgets, and a test says whether they are the same.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};

use crate::budgets::Measured;
use crate::cargo;

const BEGIN: &str = "<!-- figures: `cargo xtask size --bless` and `cargo xtask qemu --bless` write them -->\n";
const END: &str = "<!-- end of figures -->";
pub const SIZES: [&str; 3] = ["4x4", "6x6", "9x9"];

/// An image's README as it is, and with the figures of `measured`.
///
/// # Errors
/// The README, or a model, cannot be read; or the README has no place for figures.
pub fn readme(image: &str, measured: &Measured) -> Result<(String, String)> {
    let file = file(image);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{file} has no lines {BEGIN:?} and {END:?}"))?;
    let new = format!("{before}{BEGIN}{}{END}{after}", tables(measured)?);
    Ok((text, new))
}

/// Writes the figures into an image's README.
///
/// # Errors
/// As [`readme`], or the file cannot be written.
pub fn write(image: &str, measured: &Measured) -> Result<()> {
    let (_, new) = readme(image, measured)?;
    fs::write(file(image), new).with_context(|| format!("cannot write {}", file(image)))
}

fn file(image: &str) -> String {
    format!("{}/firmware/{image}/README.md", cargo::root().display())
}

fn tables(measured: &Measured) -> Result<String> {
    let figure = |name: &str| measured.get(name).map_or_else(|| "?".to_owned(), |&n| separated(n));
    let mut text = String::from("| program | bytes |\n|---|---:|\n");
    let rows =
        [("flash", "flash"), ("of it code", "code"), ("RAM from the start, without the stack", "ram"), ("stack at its most", "stack")];
    for (row, name) in rows {
        let _ = writeln!(text, "| {row} | {} |", figure(name));
    }
    let _ = writeln!(text, "\n| model | {} |\n|---|---:|---:|---:|", SIZES.join(" | "));
    let mut models = String::new();
    for size in SIZES {
        let file = cargo::root().join(format!("models/sudoku-{size}.hrm"));
        let bytes = fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?.len();
        let _ = write!(models, " {} |", separated(bytes));
    }
    let _ = writeln!(text, "| bytes of flash |{models}");
    for (row, name) in [("bytes of the arena, a part of RAM", "arena"), ("instructions of the slowest segment", "instructions")] {
        let figures: String = SIZES.iter().map(|size| format!(" {} |", figure(&format!("{name}-{size}")))).collect();
        let _ = writeln!(text, "| {row} |{figures}");
    }
    Ok(text)
}

/// `1,234,567`.
fn separated(n: u64) -> String {
    let digits = n.to_string();
    let comma = |i: usize| i > 0 && (digits.len() - i).is_multiple_of(3);
    digits
        .chars()
        .enumerate()
        .fold(String::new(), |text, (i, digit)| text + if comma(i) { "," } else { "" } + digit.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budgets::Budgets;

    #[test]
    fn readmes_show_the_budgets() {
        for (image, measured) in Budgets::read().unwrap().images() {
            let (found, expected) = readme(image, measured).unwrap();
            assert!(found == expected, "{} has other figures than budgets.toml: --bless writes them", file(image));
        }
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1000, 123_456, 1_234_567].map(separated), ["0", "999", "1,000", "123,456", "1,234,567"]);
    }
}
