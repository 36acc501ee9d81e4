//! `hrm solve` from outside: formats, exit status, bad input, threads.

mod common;

use std::io::Write as _;

use common::{EASY, EASY_ANSWER, Folder, NO_WAY, TWO_WAYS};

const MODEL: [&str; 2] = ["--model", "guesser.hrm"];

fn solve<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["solve"], args, &MODEL, &["--guesses", "1500"]].concat()
}

#[test]
fn one_puzzle_as_text() {
    let f = Folder::new();
    let ran = f.hrm(&solve(&[EASY]));
    assert_eq!((ran.code, ran.err.as_str()), (0, "solved 1 of 1, declined 0\n"));
    assert!(ran.out.starts_with("1 2 | 3 4\n3 4 | 1 2\n----+----\n2 1 | 4 3\n4 3 | 2 1\nsolved    1234341221434321  "), "{}", ran.out);
}

#[test]
fn csv_rows_have_the_columns_of_the_contract() {
    let f = Folder::new();
    f.write("p.txt", format!("{EASY}\n\n  {}  \r\n{NO_WAY}\n", EASY.replace('.', "0")).as_bytes());
    let ran = f.hrm(&solve(&["p.txt", "--format", "csv"]));
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split(',').collect()).collect();
    assert_eq!(rows[0], ["question", "status", "answer", "segments", "guesses", "ms"]);
    assert_eq!(rows[1][..3], [EASY, "solved", EASY_ANSWER]);
    assert_eq!(rows[2][..3], ["0234341221434321", "solved", EASY_ANSWER]);
    assert_eq!(rows[3][..3], [NO_WAY, "declined", ""]);
    assert_eq!(rows[3][4], "1500");
    for row in &rows[1..] {
        assert!(row.len() == 6 && row[3].parse::<u32>().unwrap() >= 1 && row[5].parse::<f64>().unwrap() > 0.0, "{row:?}");
    }
    assert_eq!(ran.err, "note: line 4: the puzzle has no solution\nsolved 2 of 3, declined 1\n");
}

#[test]
fn jsonl_says_everything() {
    let f = Folder::new();
    let ran = f.hrm_with(&solve(&["-", "--format", "jsonl"]), format!("{TWO_WAYS}\n{EASY}").as_bytes(), &[]);
    let rows: Vec<serde_json::Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&rows[0]["solutions"], &rows[0]["status"], &rows[0]["verified"]), (&"several".into(), &"solved".into(), &true.into()));
    assert_eq!((&rows[1]["solutions"], &rows[1]["answer"], &rows[1]["line"]), (&"one".into(), &EASY_ANSWER.into(), &2.into()));
    assert_eq!(rows[1]["hash"].as_str().unwrap().len(), 16);
}

#[test]
fn several_solutions_and_none_are_said() {
    let f = Folder::new();
    let ran = f.hrm(&solve(&[TWO_WAYS]));
    assert!(ran.out.contains("\nsolved ") && ran.out.contains("two or more solutions; this is one of them"), "{ran:?}");
    let ran = f.hrm(&solve(&[NO_WAY]));
    assert!(ran.out.contains("\ndeclined ") && ran.out.contains("the puzzle has no solution"), "{ran:?}");
    assert_eq!((ran.code, ran.last()), (0, "solved 0 of 1, declined 1"));
    let ran = f.hrm(&solve(&[NO_WAY, "--strict"]));
    assert_eq!(ran.code, 3);
    assert_eq!(f.hrm(&solve(&[EASY, "--strict"])).code, 0);
}

#[test]
fn unverified_answers_are_never_shown_as_solved() {
    let f = Folder::new();
    for select in ["first", "vote", "q", "residual", "verify"] {
        let ran = f.hrm(&["solve", NO_WAY, "--model", "guesser.hrm", "--select", select, "--guesses", "3", "--format", "jsonl"]);
        let row: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((&row["status"], &row["answer"], &row["verified"]), (&"declined".into(), &serde_json::Value::Null, &false.into()));
        assert_eq!(ran.last(), "solved 0 of 1, declined 1");
    }
}

#[test]
fn answers_given_are_compared() {
    let f = Folder::new();
    let other = "4321341221431234";
    let csv = format!("source,question,answer,rating\na,{EASY},{EASY_ANSWER},0\nb,{EASY},{other},3\nc,{NO_WAY},{EASY_ANSWER},0\n");
    f.write("p.csv", csv.as_bytes());
    let ran = f.hrm(&solve(&["p.csv"]));
    assert_eq!((ran.code, ran.last()), (0, "solved 2 of 3, declined 1, wrong 1"));
    assert!(ran.out.lines().nth(1).unwrap().contains("not the answer given"));
    // Compressed, under any name, or from standard input; columns in any order.
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(csv.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    f.write("p.csv.gz", &gz);
    assert_eq!(f.hrm(&solve(&["p.csv.gz"])).last(), ran.last());
    assert_eq!(f.hrm_with(&solve(&["-"]), &gz, &[]).last(), ran.last());
    let turned = format!("rating,answer,question,source\n0,{EASY_ANSWER},{EASY},a\n");
    assert_eq!(f.hrm_with(&solve(&[]), turned.as_bytes(), &[]).last(), "solved 1 of 1, declined 0, wrong 0");
}

#[test]
fn output_does_not_depend_on_threads_or_kernel() {
    let f = Folder::new();
    let mut list = String::new();
    for i in 0..60 {
        let mut puzzle = EASY_ANSWER.to_owned();
        for blank in [i % 16, (i * 7 + 3) % 16] {
            puzzle.replace_range(blank..=blank, ".");
        }
        list += &format!("{puzzle}\n");
    }
    f.write("p.txt", list.as_bytes());
    let run = |threads: &str, kernel: &str, seed: &str| {
        let args = solve(&["p.txt", "--format", "jsonl", "--threads", threads, "--seed", seed]);
        let ran = f.hrm_with(&args, b"", &[("HRM_KERNEL", kernel)]);
        assert_eq!(ran.last(), "solved 60 of 60, declined 0");
        let without_time = |l: &str| l[..l.rfind(",\"ms\"").unwrap()].to_owned();
        ran.out.lines().map(without_time).collect::<Vec<_>>()
    };
    let one = run("1", "reference", "0");
    assert_eq!(one, run("2", "reference", "0"));
    assert_eq!(one, run("5", "", "0"));
    assert_ne!(one, run("1", "reference", "1"));
}

#[test]
fn rows_before_a_fault_are_printed() {
    let f = Folder::new();
    f.write("p.txt", format!("{EASY}\n{EASY}\n123\n{EASY}\n").as_bytes());
    for threads in ["1", "2"] {
        let ran = f.hrm(&solve(&["p.txt", "--format", "csv", "--threads", threads]));
        ran.refused(&["p.txt: line 3, column 4: the puzzle has 3 characters, expected 16"]);
        assert_eq!(ran.out.lines().count(), 3);
    }
}

#[test]
fn bad_puzzles() {
    let f = Folder::new();
    let refuse = |text: &str, parts: &[&str]| {
        f.write("p.txt", text.as_bytes());
        f.hrm(&solve(&["p.txt"])).refused(parts);
    };
    refuse("123\n", &["p.txt: line 1, column 4", "3 characters", "16"]);
    refuse("\n12343412214343211\n", &["line 2, column 17", "17 characters"]);
    refuse(".2343412214343x1", &["line 1, column 15", "'x'", "digit 1 to 4"]);
    refuse(" .23434122143435.", &["line 1, column 16", "'5'"]);
    refuse("1......1........\n1.......1.......", &["line 2, column 9", "digit 1 stands twice in a column", "row 3 column 1"]);
    f.write("p.txt", b"1234\xff");
    f.hrm(&solve(&["p.txt"])).refused(&["line 1, column 5", "UTF-8"]);
    // On the command line.
    f.hrm(&solve(&[".2343412214343x1"])).refused(&["column 15", "'x'"]);
    f.hrm(&solve(&["12.4"])).refused(&["12.4", "no such file"]);
    f.hrm(&solve(&["....12....3"])).refused(&["column 12", "11 characters"]);
    f.hrm(&solve(&["missing.txt"])).refused(&["missing.txt", "no such file"]);
    // Without a model file, the size of a puzzle is told by its length.
    f.hrm(&["solve", "123456"]).refused(&["16 (4x4), 36 (6x6) or 81 (9x9)"]);
}

#[test]
fn bad_tables() {
    let f = Folder::new();
    let refuse = |text: &str, parts: &[&str]| {
        f.write("p.csv", text.as_bytes());
        f.hrm(&solve(&["p.csv"])).refused(parts);
    };
    for missing in ["source", "question", "answer", "rating"] {
        let left: Vec<&str> = ["source", "question", "answer", "rating"].into_iter().filter(|c| *c != missing).collect();
        refuse(&format!("{}\n", left.join(",")), &["p.csv: line 1", &format!("no column `{missing}`")]);
    }
    refuse("", &["no column `source`"]);
    let head = "source,question,answer,rating\n";
    refuse(&format!("{head}a,{EASY},{EASY_ANSWER},0\nb,{EASY}\n"), &["line 3", "found 2 fields", "has 4"]);
    refuse(&format!("{head}a,{EASY},12,0\n"), &["line 2, field `answer`, column 3"]);
    refuse(&format!("{head}a,{EASY},1234341221434x21,0\n"), &["line 2, field `answer`, column 14", "'x'"]);
    refuse(
        &format!("{head}a,11..............,{EASY_ANSWER},0\n"),
        &["line 2, field `question`, column 2", "digit 1 stands twice in a row"],
    );
    f.write("p.csv.gz", &[0x1f, 0x8b, 8, 0, 1, 2, 3]);
    f.hrm(&solve(&["p.csv.gz"])).refused(&["cannot read p.csv.gz"]);
}

#[test]
fn nothing_is_nothing() {
    let f = Folder::new();
    let ran = f.hrm(&solve(&["-"]));
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", "solved 0 of 0, declined 0\n"));
}

#[test]
fn wrong_usage() {
    let f = Folder::new();
    let usage: [&[&str]; 7] = [
        &["solve", "--frobnicate"],
        &["solve", EASY, "--segments", "0"],
        &["solve", EASY, "--guesses", "70000"],
        &["solve", EASY, "--threads", "0"],
        &["solve", EASY, "--select", "best"],
        &["solve", EASY, "--format", "xml"],
        &["frobnicate"],
    ];
    for args in usage {
        let ran = f.hrm(args);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}");
        assert!(ran.err.starts_with("error: "), "{ran:?}");
    }
    let env = [("HRM_KERNEL", "abacus")];
    f.hrm_with(&solve(&[EASY]), b"", &env).refused(&["HRM_KERNEL=abacus", "it has reference"]);
}
