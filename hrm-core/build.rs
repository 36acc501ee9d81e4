//! Says which instruction set a bare-metal build may use: stable compilers do not show `dsp`, `mve` and `v` to `cfg(target_feature)`.
//!
//! `hrm_isa` is `armv7m` (Cortex-M3), `dsp` (Cortex-M4 and M7; M33 with `-C target-cpu`), `mve` (M55, M85, with `-C target-cpu`), `rv32im`, `rv32v`
//! (`-C target-feature=+v`).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(hrm_isa, values(\"armv7m\", \"dsp\", \"mve\", \"rv32im\", \"rv32v\"))");
    let target = env::var("TARGET").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if let Some(isa) = isa(&target, &flags) {
        println!("cargo::rustc-cfg=hrm_isa=\"{isa}\"");
    }
    // Assembly of whole functions does not see `target-cpu` before Rust 1.96: it says it itself.
    let cpu = option(&flags, "target-cpu=").filter(|_| target.starts_with("thumbv8m"));
    println!("cargo::rustc-env=HRM_CPU={}", cpu.map_or(String::new(), |cpu| format!(".cpu {cpu}")));
}

/// Flags come one after the other, separated by 0x1f: `-C`, `target-cpu=cortex-m55`, or both in one.
fn option<'f>(flags: &'f str, name: &str) -> Option<&'f str> {
    flags.split('\u{1f}').filter_map(|f| f.trim_start_matches("-C").trim().strip_prefix(name)).next_back()
}

fn isa(target: &str, flags: &str) -> Option<&'static str> {
    let features = option(flags, "target-feature=").unwrap_or_default();
    let has = |feature: &str| features.split(',').any(|f| f == feature);
    if target.starts_with("thumbv7m") {
        return Some("armv7m");
    }
    if target.starts_with("thumbv7em") && !has("-dsp") {
        return Some("dsp");
    }
    if target.starts_with("thumbv8m.main") {
        return match option(flags, "target-cpu=")? {
            "cortex-m33" | "cortex-m35p" if !has("-dsp") => Some("dsp"),
            "cortex-m55" | "cortex-m85" if !has("-mve") => Some("mve"),
            _ => None,
        };
    }
    // `riscv32i` and `riscv32ia..` have no multiplier.
    target.starts_with("riscv32im").then_some(if has("+v") { "rv32v" } else { "rv32im" })
}
