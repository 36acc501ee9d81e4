use super::*;

const MINIMAL: &str = "[data]\ngenerate = { n = 10 }\n";

fn refused(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    format!("{:#}", RunConfig::parse(text, &overrides).expect_err("must be refused"))
}

#[test]
fn the_documented_text_reads_back_and_documents_every_field() {
    let overrides = ["train.lr=1.5e-3", "data.train=a.csv", "task.size=6", "train.betas=[0.5, 0.75]"].map(str::to_owned);
    let config = RunConfig::parse(MINIMAL, &overrides).unwrap();
    let text = config.to_toml().unwrap();
    assert_eq!(RunConfig::parse(&text, &[]).unwrap(), config);
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(lines[i - 1].starts_with("# "), "{line} has no documentation");
        }
    }
    assert_eq!(config.data.train.0, ["a.csv"]);
    assert_eq!(config.data.generate, Generate { n: 10, ..Generate::default() });
}

#[test]
fn mistakes_are_named() {
    let cases: [(&str, &[&str], &[&str]); 26] = [
        ("[data]\ngenerate = { n = 10 }\n[train]\nlearning_rate = 1", &[], &["learning_rate", "line 4"]),
        ("[trian]\nlr = 1", &[], &["trian", "line 1"]),
        ("[train]\nlr = \"x\"", &[], &["line 2"]),
        (MINIMAL, &["task.size=5"], &["task.size is 5", "4, 6 or 9"]),
        (MINIMAL, &["train.lrr=1"], &["train.lrr"]),
        (MINIMAL, &["lr"], &["section.key=value"]),
        (MINIMAL, &["model.channels=2"], &["channels", "is 2", "4 to 1024"]),
        (MINIMAL, &["model.heads=3"], &["heads", "is 3", "0 without attention"]),
        (MINIMAL, &["train.ema=1.0"], &["train.ema is 1"]),
        (MINIMAL, &["train.batch=0"], &["train.batch is 0"]),
        (MINIMAL, &["train.lr=nan"], &["train.lr is NaN"]),
        (MINIMAL, &["train.quantize=true"], &["train.quantize needs", "train.init"]),
        (MINIMAL, &["train.depth=[{until=0.5,h_cycles=1,l_cycles=3}]"], &["train.depth[0].l_cycles is 3", "1 to 2"]),
        (MINIMAL, &["train.depth=[{until=0.5,h_cycles=1,l_cycles=1},{until=0.5,h_cycles=1,l_cycles=2}]"], &["depth[1].until", "above 0.5"]),
        (MINIMAL, &["train.depth=[{until=0.5,h_cycles=1,cycles=1}]"], &["cycles"]),
        (MINIMAL, &["train.device=cuda:0"], &["train.dtype must be `bf16` on a GPU"]),
        (MINIMAL, &["train.dtype=bf16"], &["train.dtype must be `f32` on the CPU"]),
        (MINIMAL, &["train.device=cuda:0", "train.dtype=bf16", "train.teacher=t"], &["train.teacher needs train.device = \"cpu\""]),
        (MINIMAL, &["train.depth=3"], &["train", "sequence"]),
        (MINIMAL, &["train.supervision_decay=0.0"], &["train.supervision_decay is 0"]),
        (MINIMAL, &["train.teacher_share=1.5"], &["train.teacher_share is 1.5"]),
        (MINIMAL, &["train.teacher_segments=0"], &["train.teacher_segments is 0"]),
        (MINIMAL, &["data.easier_first=-1"], &["-1"]),
        (MINIMAL, &["data.easier_most=81"], &["data.easier_most is 81"]),
        (MINIMAL, &["data.generate={n=10,times=0}"], &["data.generate.times is 0"]),
        ("", &[], &["no training data"]),
    ];
    for (text, overrides, expected) in cases {
        let message = refused(text, overrides);
        for word in expected {
            assert!(message.contains(word), "{overrides:?}: {message:?} does not name {word:?}");
        }
    }
}

#[test]
fn groupings_follow_the_task() {
    let config = RunConfig::parse(MINIMAL, &["task.size=6".to_owned()]).unwrap();
    let spec = config.spec().unwrap();
    assert_eq!((spec.config.tokens, spec.config.vocab, spec.config.fields, spec.config.groupings), (36, 8, 6, 4));
    assert_eq!(spec.groupings.iter().map(|g| g.largest(6)).collect::<Vec<_>>(), [6, 6, 6, 6]);
    let plain = RunConfig::parse(MINIMAL, &["model.fields=false".to_owned()]).unwrap().spec().unwrap();
    assert_eq!((plain.config.fields, plain.config.groupings), (1, 3));
    let with = |fields: &str| {
        let set = ["task.size=6".to_owned(), "model.intersections=true".to_owned(), format!("model.fields={fields}")];
        RunConfig::parse(MINIMAL, &set).unwrap().spec().unwrap()
    };
    let (more, few) = (with("true"), with("false"));
    assert_eq!(more.groupings[..4], spec.groupings);
    assert_eq!(more.groupings.iter().map(|g| g.largest(6)).collect::<Vec<_>>(), [6, 6, 6, 6, 3, 2]);
    assert_eq!(few.groupings.iter().map(|g| g.largest(1)).collect::<Vec<_>>(), [6, 6, 6, 3, 2]);
    let attention = ["model.intersections=true", "model.mixer=attention", "model.fields=false", "model.heads=2"];
    let (text, set) = (MINIMAL, attention.map(str::to_owned));
    let message = format!("{:#}", RunConfig::parse(text, &set).and_then(|c| c.spec()).unwrap_err());
    assert!(message.contains("model.intersections is true, expected false"), "{message}");
}

#[test]
fn grids_have_rows_columns_and_neighbours() {
    let text = "[task]\nkind = \"maze\"\nsize = 5\n[data]\ngenerate = { n = 10 }\neasier = 0.0\n[model]\nfields = false\n";
    let spec = RunConfig::parse(text, &[]).unwrap().spec().unwrap();
    assert_eq!((spec.config.tokens, spec.config.vocab, spec.config.fields, spec.config.groupings), (25, 6, 1, 6));
    assert_eq!(spec.groupings.iter().map(|g| g.largest(1)).collect::<Vec<_>>(), [5, 5, 2, 2, 2, 2]);
    // Each pair of neighbours shares one grouping of pairs, and no others do.
    for (a, b) in (0..25).flat_map(|a| (0..25).map(move |b| (a, b))).filter(|(a, b)| a != b) {
        let near = (a / 5usize).abs_diff(b / 5) + (a % 5usize).abs_diff(b % 5) == 1;
        let shared = spec.groupings[2..].iter().filter(|g| g.ids[a] == g.ids[b]).count();
        assert_eq!(shared, usize::from(near), "{a} {b}");
    }
    let refusals: [(&[&str], &str); 8] = [
        (&["task.size=65"], "task.size is 65, expected 3 to 64"),
        (&["model.fields=true"], "model.fields is true, expected false"),
        (&["data.generate={n=10,times=2}"], "data.generate.times is 2, expected 1"),
        (&["data.easier=0.5"], "data.easier is 0.5, expected 0"),
        (&["task.kind=arc"], "data.symmetries is true, expected false with ARC"),
        (&["task.kind=arc", "data.symmetries=false"], "data.generate.n is 10, expected 0"),
        (&["model.identifiers=3"], "model.identifiers is 3, but without model.prefix"),
        (&["task.kind=labyrinth"], "labyrinth"),
    ];
    for (overrides, expected) in refusals {
        assert!(refused(text, overrides).contains(expected), "{}", refused(text, overrides));
    }
}

#[test]
fn the_learning_rate_warms_up_and_anneals() {
    let set = ["train.steps=1000", "train.warmup=100", "train.lr=1.0", "train.min_ratio=0.1"].map(str::to_owned);
    let config = RunConfig::parse(MINIMAL, &set).unwrap();
    assert!((config.learning_rate(0) - 0.01).abs() < 1e-12);
    assert!((config.learning_rate(99) - 1.0).abs() < 1e-12);
    assert!((config.learning_rate(999) - 0.1).abs() < 1e-12);
    let rates: Vec<f64> = (100..1000).map(|s| config.learning_rate(s)).collect();
    assert!(rates.windows(2).all(|w| w[1] < w[0]));
}

#[test]
fn depth_and_supervision_follow_the_config() {
    let stages = "train.depth=[{until=0.3,h_cycles=1,l_cycles=2},{until=0.6,h_cycles=2,l_cycles=4}]";
    let sets =
        [stages, "model.h_cycles=3", "model.l_cycles=6", "train.steps=1000", "train.supervision_decay=0.5", "train.halt_max_steps=3"];
    let config = RunConfig::parse(MINIMAL, &sets.map(str::to_owned)).unwrap();
    let depth = |step| config.depth(step).map(|d| (d.h_cycles, d.l_cycles));
    assert_eq!([0, 299, 300, 599, 600, 999].map(depth), [Some((1, 2)), Some((1, 2)), Some((2, 4)), Some((2, 4)), None, None]);
    assert_eq!(config.supervision(), [12.0 / 7.0, 6.0 / 7.0, 3.0 / 7.0].map(|w: f64| w as f32));
    assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let plain = RunConfig::parse(MINIMAL, &[]).unwrap();
    assert_eq!((plain.depth(0), plain.supervision()), (None, Vec::new()));
    // Unrolled, each depth is one of more H cycles.
    let unrolled = [&sets[..], &["train.unroll=3", "train.gradient=segment"]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let config = RunConfig::parse(MINIMAL, &unrolled).unwrap();
    let depth = |step| config.depth(step).map(|d| (d.h_cycles, d.l_cycles));
    assert_eq!([0, 300, 600].map(depth), [Some((3, 2)), Some((6, 4)), Some((9, 6))]);
    let text = refused(MINIMAL, &["train.unroll=2"]);
    assert!(text.contains("train.unroll is 2, expected 1 unless train.gradient is \"segment\""), "{text}");
}

#[test]
fn only_what_decides_the_weights_counts_as_a_difference() {
    let a = RunConfig::parse(MINIMAL, &[]).unwrap();
    let b = RunConfig::parse(MINIMAL, &["train.threads=7".to_owned(), "checkpoint.seconds=1".to_owned()]).unwrap();
    assert!(a.differences(&b).unwrap().is_empty());
    let at = |folder: &str| RunConfig::parse(MINIMAL, &[format!("data.train={folder}/a.csv")]).unwrap();
    assert!(at("/here").differences(&at("there")).unwrap().is_empty());
    assert_eq!(a.differences(&at("here")).unwrap().len(), 1);
    let c = RunConfig::parse(MINIMAL, &["train.steps=7".to_owned(), "train.warmup=1".to_owned()]).unwrap();
    assert_eq!(c.differences(&a).unwrap()[0], "train.steps is 7, the run was started with 10000");
}
