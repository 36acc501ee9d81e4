//! Model files from outside: `hrm inspect`, `hrm trace`, `hrm bench`, and files that must be refused.

mod common;

use common::{EASY, EASY_ANSWER, Folder, guesser};
use hrm_core::testing;

const REFERENCE: [(&str, &str); 1] = [("HRM_KERNEL", "reference")];

#[test]
fn damaged_files_are_refused() {
    let f = Folder::new();
    let good = guesser();
    let refuse = |bytes: &[u8], parts: &[&str]| {
        f.write("bad.hrm", bytes);
        for args in [&["inspect", "bad.hrm"][..], &["solve", EASY, "--model", "bad.hrm"], &["trace", EASY, "--model", "bad.hrm"]] {
            let ran = f.hrm(args);
            ran.refused(&[&["bad.hrm"], parts].concat());
            assert_eq!(ran.out, "");
        }
    };
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        bytes
    };
    refuse(&[], &["0 bytes", "112 are needed"]);
    refuse(&good[..50], &["50 bytes", "cut off"]);
    refuse(&good[..good.len() - 16], &["cut off"]);
    refuse(&[&good[..], &[0; 16]].concat(), &["its header announces"]);
    refuse(&changed(0, 1), &["not a .hrm file"]);
    refuse(&changed(8, 3), &["version", "is 2, expected 1"]);
    refuse(&changed(good.len() - 100, 0x10), &["checksum", "damaged"]);
    f.hrm(&["inspect", "missing.hrm"]).refused(&["missing.hrm"]);
    f.hrm(&["inspect", "."]).refused(&["cannot read the model"]);
    // Larger than any model: refused before it is read.
    std::fs::File::create(f.path().join("huge.hrm")).unwrap().set_len(1 << 33).unwrap();
    f.hrm(&["inspect", "huge.hrm"]).refused(&["huge.hrm: 8589934592 bytes are too many"]);
}

#[test]
fn a_failed_self_test_is_an_error() {
    let f = Folder::new();
    let view = hrm_core::format::AlignedBytes::new(&guesser());
    let view = hrm_core::ModelView::new_checked(view.as_slice()).unwrap();
    let mut writer = testing::random_writer(view.config(), 5).unwrap();
    let wrong = hrm_core::format::SelfTest { hash: 1, ..view.self_test().unwrap() };
    writer.set_self_test(&wrong);
    f.write("wrong.hrm", writer.finish().unwrap().as_slice());
    let ran = f.hrm(&["inspect", "wrong.hrm"]);
    ran.refused(&["wrong.hrm", "self-test failed: expected 0000000000000001"]);
    assert!(ran.out.contains("self-test        failed"));
}

#[test]
fn inspect_as_text() {
    let f = Folder::new();
    let ran = f.hrm_with(&["inspect", "guesser.hrm"], b"", &REFERENCE);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(ran.out, include_str!("inspect.txt"));
}

#[test]
fn inspect_as_json_adds_up() {
    let f = Folder::new();
    let ran = f.hrm(&["inspect", "guesser.hrm", "--format", "json", "--segments", "3"]);
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let flash: u64 = report["flash"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(report["flash_bytes"], flash);
    assert_eq!(flash, guesser().len() as u64);
    assert_eq!(report["self_test"]["result"], "passed");
    assert_eq!(report["record"]["about"], "made by hand");
    // Nobody has measured this model on a board, and figures of another are not shown.
    assert_eq!((&report["devices"]["measured"], &report["devices"]["boards"]), (&false.into(), &serde_json::json!([])));
    assert!(report["devices"]["measure"].as_str().is_some_and(|how| how.contains("cargo xtask qemu --bless")));
    // 64 rows and 16 group rows (4 rows of cells for each field), C = I = 4: two calls, then the head (64 rows) and one Q output.
    let cached = 2 * ((64 + 16) * 8 * 4 + 64 * 4 * 4) + 64 * 4 + 4;
    assert_eq!(report["macs_per_segment"]["cached"], cached);
    assert_eq!(report["macs_per_puzzle"]["cached"], 3 * cached);
    for (name, config) in testing::configs() {
        f.write("any.hrm", testing::random_model(&config, 2).unwrap().as_slice());
        let ran = f.hrm(&["inspect", "any.hrm"]);
        assert!(ran.code == 0 && ran.out.contains("self-test        none in the file"), "{name}: {ran:?}");
    }
}

#[test]
fn trace_ends_where_solve_does() {
    let f = Folder::new();
    let solved = f.hrm(&["solve", EASY, "--model", "guesser.hrm", "--format", "jsonl", "--guesses", "100"]);
    let solved: serde_json::Value = serde_json::from_str(&solved.out).unwrap();
    let guess = solved["guess"].to_string();
    let ran = f.hrm(&["trace", EASY, "--model", "guesser.hrm", "--format", "jsonl", "--guess", &guess]);
    let lines: Vec<serde_json::Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["hash"], &last["verified"], &last["halt"]), (&solved["hash"], &true.into(), &"verified".into()));
    assert_eq!((&last["answer"], &last["conflicts"]), (&EASY_ANSWER.into(), &0.into()));
    assert!(lines.iter().enumerate().all(|(i, l)| l["segment"] == i + 1 && l["guess"] == solved["guess"]));
    let text = f.hrm(&["trace", EASY, "--model", "guesser.hrm", "--guess", &guess]);
    assert!(text.out.starts_with(". 2 | 3 4\n3 4 | 1 2\n") && text.out.contains("conflicts 0, state ") && text.out.contains("1*2 | 3 4"));
    assert!(text.out.ends_with(&format!("guess {guess} ended after {} segments: verified\n", lines.len())));
    assert!(!text.out.contains('\x1b'), "no colours into a pipe");
    f.hrm(&["trace", "12", "--model", "guesser.hrm"]).refused(&["line 1, column 3"]);
}

#[test]
fn token_grids_have_no_verifier() {
    let f = Folder::new();
    let config = testing::configs().into_iter().find(|(name, _)| *name == "attention").unwrap().1;
    f.write("grid.hrm", testing::random_model(&config, 2).unwrap().as_slice());
    let puzzle = "1 2 3 4 5 1 2 3 4 5 1 2 3 4 5";
    let ran = f.hrm(&["solve", puzzle, "--model", "grid.hrm", "--format", "jsonl"]);
    let row: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&row["status"], &row["verified"], &row["guesses"]), (&"solved".into(), &false.into(), &1.into()));
    assert_eq!(row["answer"].as_str().unwrap().split(' ').count(), 15);
    f.hrm(&["solve", puzzle, "--model", "grid.hrm", "--select", "verify"]).refused(&["no verifier"]);
    f.hrm(&["solve", "1 2 3", "--model", "grid.hrm"]).refused(&["3 tokens, expected 15"]);
    f.hrm(&["solve", &puzzle.replace('5', "9"), "--model", "grid.hrm"]).refused(&["column 9: found 9, expected a token from 0 to 5"]);
    assert_eq!(f.hrm(&["trace", puzzle, "--model", "grid.hrm", "--segments", "2"]).code, 0);
}

#[test]
fn bench_reports_kernels_and_models() {
    let f = Folder::new();
    let args = ["bench", "--json", "--time", "1", "--model", "guesser.hrm"];
    let ran = f.hrm_with(&args, b"", &REFERENCE);
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&report["chosen"]["kernel"], &report["chosen"]["why"]), (&"reference".into(), &"HRM_KERNEL names it".into()));
    assert!(report["kernels"].as_array().unwrap().iter().all(|k| k["name"] == "reference" && k["gmacs"].as_f64().unwrap() > 0.0));
    let model = &report["models"][0];
    assert!(model["ms_p50"].as_f64().unwrap() <= model["ms_p99"].as_f64().unwrap() && model["puzzles_per_second"].as_f64().unwrap() > 0.0);
    // What scripts read, of every kernel of this machine.
    let report: serde_json::Value = serde_json::from_str(&f.hrm(&args).out).unwrap();
    assert!(report["machine"]["cpu"].is_string() && report["machine"]["ghz"].as_f64().unwrap() > 0.1);
    let (kernels, models) = (report["kernels"].as_array().unwrap(), report["models"].as_array().unwrap());
    let number = |row: &serde_json::Value, key: &str| assert!(row[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {row}");
    for row in kernels {
        assert!(row["name"].is_string() && (row["percent_of_peak"].is_null() || row["percent_of_peak"].is_f64()), "{row}");
        ["m", "k", "n", "gmacs", "macs_per_cycle", "vs_reference"].iter().for_each(|key| number(row, key));
    }
    for row in models {
        assert!(row["name"].is_string() && row["kernel"].is_string(), "{row}");
        ["puzzles_per_second", "ms_p50", "ms_p99", "gmacs", "percent_of_mac_time"].iter().for_each(|key| number(row, key));
        // Of the kernel in use, the parts make the whole.
        let parts = row["parts"].as_array().unwrap();
        let sum: f64 = parts.iter().map(|part| part["percent"].as_f64().unwrap()).sum();
        let expected = if row["kernel"] == report["chosen"]["kernel"] { 100.0 } else { 0.0 };
        assert!((sum - expected).abs() < 1e-6 && parts.iter().all(|part| part["us"].as_f64().unwrap() >= 0.0), "{row}");
    }
    for kernel in hrm_core::Kernel::available() {
        assert!(kernels.iter().any(|k| k["name"] == kernel.name()) && models.iter().any(|m| m["kernel"] == kernel.name()));
    }
    f.hrm_with(&args, b"", &[("HRM_KERNEL", "abacus")]).refused(&["HRM_KERNEL=abacus"]);
}

#[test]
fn without_a_command_it_shows_how_to_go_on() {
    let ran = Folder::new().hrm(&[]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("hrm solve puzzles.txt") && ran.out.contains("hrm --help"), "{ran:?}");
}
