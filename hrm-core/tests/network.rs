//! Whole networks of every mixer: all kernels, both schedules and all divisions of memory give the same states, and they are those
//! that this law gave when it was written.
#![cfg(feature = "std")]

use hrm_core::config::{Config, Mixer};
use hrm_core::kernels::reference::view8;
use hrm_core::{InputError, Kernel, ModelView, Network, Plan, Run, Schedule, testing};

const SEGMENTS: usize = if cfg!(miri) { 1 } else { 16 };

fn all_hashes(config: &Config, kernel: Kernel, plan: Plan) -> Vec<u64> {
    let file = testing::random_model(config, 1).unwrap();
    let view = ModelView::new_checked(file.as_slice()).unwrap();
    testing::hashes(view, kernel, plan, &testing::random_tokens(config, 2), 3, SEGMENTS).unwrap()
}

/// Small models of every mixer.
fn models() -> Vec<(&'static str, Config)> {
    let shrink = |config| if cfg!(miri) { testing::tiny(config) } else { config };
    testing::configs().into_iter().map(|(name, config)| (name, shrink(config))).collect()
}

#[test]
fn states_are_the_same_with_every_kernel_and_schedule() {
    for (name, config) in models() {
        let file = testing::random_model(&config, 1).unwrap();
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        let tokens = testing::random_tokens(&config, 2);
        let hashes = |kernel, schedule, residual| {
            testing::hashes(view, kernel, Plan { schedule, residual, ..Plan::DEVICE }, &tokens, 3, SEGMENTS).unwrap()
        };
        let expected = hashes(Kernel::REFERENCE, Schedule::Cached, true);
        assert_eq!(expected.len(), SEGMENTS);
        for kernel in Kernel::available() {
            for schedule in [Schedule::Cached, Schedule::Lean] {
                for &residual in if cfg!(miri) { &[false][..] } else { &[false, true] } {
                    assert_eq!(hashes(kernel, schedule, residual), expected, "{name} {} {schedule:?} {residual}", kernel.name());
                }
            }
        }
    }
}

/// Every division of the memory for products: from one slot a grouping to one a group row, tiles of one row and of many, in one arena
/// and in two whose border falls anywhere.
#[test]
#[cfg_attr(miri, ignore)]
fn states_are_the_same_with_any_memory() {
    for (name, config) in models() {
        let file = testing::random_model(&config, 1).unwrap();
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        let tokens = testing::random_tokens(&config, 2);
        let expected = *testing::hashes(view, Kernel::REFERENCE, Plan::HOST, &tokens, 3, 2).unwrap().last().unwrap();
        let network = Network::reference(view);
        let slot = 8 * usize::from(config.inner);
        for products in [0, 5 * slot, 9 * slot, 14 * slot, 23 * slot, usize::MAX] {
            for tile in [1, 3, 8, 72] {
                let plan = Plan { products, tile, ..Plan::DEVICE };
                let words = network.required_bytes(plan) / 8;
                for cut in [0, words / 3, words / 2, words * 2 / 3] {
                    let (mut first, mut second) =
                        (vec![7; words - cut], vec![7; cut + if cut > 0 { 8 * usize::from(config.channels) } else { 0 }]);
                    let Ok(mut run) = Run::new_in(network, [&mut first, &mut second], plan) else {
                        assert!(cut > 0, "{name}");
                        continue;
                    };
                    run.start(&tokens, 3, 0).unwrap();
                    run.segment().unwrap();
                    run.segment().unwrap();
                    assert_eq!(run.hash(), expected, "{name} {products} {tile} {cut}");
                }
            }
        }
    }
}

/// Products take what an arena has room for, and no more than the plan allows.
#[test]
fn plans_are_fitted_to_the_arena() {
    for (name, config) in models() {
        let file = testing::random_model(&config, 1).unwrap();
        let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
        let [least, most] = [Plan::DEVICE, Plan::ROOMY].map(|plan| network.required_bytes(Plan { tile: 8, ..plan }));
        for bytes in [0, least - 8, least, least + 8, (least + most) / 16 * 8, most - 8, most, most + 800, usize::MAX] {
            let plan = network.fitting(Plan { tile: 8, ..Plan::ROOMY }, bytes);
            let needed = network.required_bytes(plan);
            let found = needed.min(bytes);
            assert!(needed <= bytes.max(least), "{name} {bytes}: {needed}");
            let more = network.required_bytes(Plan { products: plan.products.saturating_add(8), ..plan });
            assert!(needed == most || more > bytes, "{name} {bytes}: {needed} of {more}");
            let mut arena = vec![0; found / 8];
            assert_eq!(Run::new(network, &mut arena, plan).is_ok(), bytes >= least, "{name} {bytes}");
        }
        assert_eq!(network.fitting(Plan::DEVICE, most), Plan::DEVICE);
        assert!(network.fitting(Plan { products: 100, ..Plan::DEVICE }, most).products <= 100);
    }
}

/// The 9x9 shape on a device with 128 KiB and 64 KiB: both state tensors, and products of one field at a time in the memory of the sums.
#[test]
#[cfg_attr(miri, ignore)]
fn the_9x9_shape_fits_128_and_64_kib() {
    let config = Config { h_cycles: 1, ..testing::sudoku_config() };
    let file = testing::random_model(&config, 1).unwrap();
    let view = ModelView::new_checked(file.as_slice()).unwrap();
    let network = Network::reference(view);
    let needed = network.required_bytes(Plan::DEVICE);
    assert!(needed < 180_000, "{needed}");
    // 12 KiB of the second memory are left for stack and variables.
    let (mut sram, mut ccm) = (vec![0; 128 * 128], vec![0; 52 * 128]);
    let mut run = Run::new_in(network, [&mut sram, &mut ccm], Plan::DEVICE).unwrap();
    // Cells once a field, all others once: the sums of 81 cells are taken 9 times.
    assert_eq!(run.segment_macs() - view.segment_macs(Schedule::Cached), 6 * 8 * 81 * 192 * 48);
    run.start(&testing::random_tokens(&config, 2), 3, 0).unwrap();
    run.segment().unwrap();
    let hash = run.hash();
    let mut arena = vec![0; network.required_bytes(Plan::HOST) / 8];
    let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
    run.start(&testing::random_tokens(&config, 2), 3, 0).unwrap();
    run.segment().unwrap();
    assert_eq!(hash, run.hash());
    let needed = network.required_bytes(Plan::ROOMY);
    let mut arena = vec![0; needed / 8];
    assert_eq!(Run::new(network, &mut arena, Plan::ROOMY).unwrap().segment_macs(), view.segment_macs(Schedule::Cached));
}

#[test]
#[cfg_attr(miri, ignore)]
fn states_of_the_9x9_shape_are_the_same_with_every_kernel() {
    let config = Config { h_cycles: 1, ..testing::sudoku_config() };
    let expected = all_hashes(&config, Kernel::REFERENCE, Plan::HOST);
    for kernel in Kernel::available() {
        assert_eq!(all_hashes(&config, kernel, Plan::HOST), expected, "{}", kernel.name());
    }
}

/// The law of `docs/numerics.md` cannot drift unseen: whoever changes these numbers changes every model's answers.
#[test]
#[cfg_attr(miri, ignore)]
fn states_are_those_of_the_first_version() {
    let golden = GOLDEN.map(|(name, hash)| (name.to_owned(), format!("{hash:#018x}")));
    let found: Vec<(String, String)> = models()
        .iter()
        .map(|(name, config)| ((*name).to_owned(), format!("{:#018x}", all_hashes(config, Kernel::REFERENCE, Plan::DEVICE)[SEGMENTS - 1])))
        .collect();
    assert_eq!(found, golden);
}

const GOLDEN: [(&str, u64); 6] = [
    ("attention", 0xf6ba_d14a_aa63_165c),
    ("token-mlp", 0xfe5e_1b4d_4bc7_5b08),
    ("group-sum", 0xfd03_43ea_ee15_d6c2),
    ("group-sum-tokens", 0xf2cd_37ba_acf8_c0b0),
    ("group-sum-folded", 0xc1f6_8923_77c6_274a),
    ("group-attention", 0xb03d_ba60_0df3_a61c),
];

/// A test whose states saturate, die or stop would see nothing.
#[test]
#[cfg_attr(miri, ignore)]
fn random_models_stay_alive_and_inside_the_range() {
    for (name, config) in models() {
        let file = testing::random_model(&config, 1).unwrap();
        let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
        let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
        let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
        run.start(&testing::random_tokens(&config, 2), 3, 0).unwrap();
        for _ in 0..SEGMENTS {
            run.segment().unwrap();
        }
        let (z_h, z_l) = run.carry();
        for z in [z_h, z_l] {
            let squares: f64 = z.iter().map(|&x| (f64::from(x) / 1024.0).powi(2)).sum();
            let rms = (squares / z.len() as f64).sqrt();
            assert!((rms - 1.0).abs() < 0.05, "{name}: rms {rms}");
            assert!(z.iter().all(|x| x.unsigned_abs() < 12 * 1024), "{name}: {:?}", z.iter().max());
        }
        assert!(run.residual().unwrap().change > 0, "{name}");
        let mut seen = [false; 256];
        run.answer().iter().for_each(|&t| seen[usize::from(t)] = true);
        assert!(seen.iter().filter(|&&s| s).count() > 1, "{name}: one answer for all cells");
    }
}

/// Answers and Q outputs from the carry, by the formulas.
#[test]
#[cfg_attr(miri, ignore)]
fn heads_are_read_as_the_law_says() {
    for (name, config) in models().into_iter().chain([("9x9", testing::sudoku_config())]) {
        let file = testing::random_model(&config, 1).unwrap();
        let view = ModelView::new_checked(file.as_slice()).unwrap();
        for kernel in Kernel::available() {
            let mut packed = vec![0; Network::packed_words(&view, kernel)];
            let network = Network::new(view, kernel, &mut packed).unwrap();
            let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
            let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
            run.start(&testing::random_tokens(&config, 2), 3, 0).unwrap();
            run.segment().unwrap();
            let (heads, width) = (view.heads(), usize::from(config.channels));
            let rows: Vec<&[i16]> = run.carry().0.chunks(width).collect();
            let logits = |r: usize| -> Vec<i32> {
                let row: Vec<i32> = rows[r].iter().map(|&x| i32::from(view8(x, heads.m_head))).collect();
                let dot = |w: &[i8]| w.iter().zip(&row).map(|(&w, &x)| i32::from(w) * x).sum::<i32>();
                heads.weights.chunks(width).zip(heads.bias).map(|(w, b)| dot(w) + b).collect()
            };
            let fields = usize::from(config.fields);
            for (t, &answer) in run.answer().iter().enumerate() {
                let first = (usize::from(config.prefix) + t) * fields;
                let all: Vec<i32> = (first..first + fields).flat_map(logits).collect();
                let best = all.iter().position(|l| l == all.iter().max().unwrap()).unwrap();
                assert_eq!(usize::from(answer), best + if fields > 1 { 2 } else { 0 }, "{name} {} token {t}", kernel.name());
            }
            let used = if config.prefix > 0 { &rows[..1] } else { &rows[..] };
            let q = |n: usize| -> i32 {
                let Some(&bias) = heads.q_bias.get(n) else { return 0 };
                let sum = |c: usize| used.iter().map(|row| i64::from(row[c])).sum::<i64>();
                let acc = bias + (0..width).map(|c| i64::from(heads.q_weights[n * width + c]) * sum(c)).sum::<i64>();
                (acc >> heads.q_shift) as i32
            };
            assert_eq!(run.q(), (q(0), q(1)), "{name} {}", kernel.name());
            assert_ne!(run.q().0, 0, "{name}");
        }
    }
}

/// One bit of the input reaches the whole state: the mixers mix.
#[test]
#[cfg_attr(miri, ignore)]
fn one_token_changes_every_row() {
    for (name, config) in models() {
        let file = testing::random_model(&config, 1).unwrap();
        let states = [0u8, 1].map(|flip| {
            let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
            let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
            let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
            let mut tokens = testing::random_tokens(&config, 2);
            tokens[0] = 2 + flip;
            run.start(&tokens, 3, 0).unwrap();
            run.segment().unwrap();
            run.segment().unwrap();
            run.carry().0.to_vec()
        });
        let width = usize::from(config.channels);
        let same = states[0].chunks(width).zip(states[1].chunks(width)).filter(|(a, b)| a == b).count();
        assert!(same * 20 < config.rows(), "{name}: {same} rows of {} are untouched", config.rows());
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn symbols_relabelled_are_fields_permuted() {
    let (_, config) = models().into_iter().find(|(n, _)| *n == "group-sum").unwrap();
    let file = testing::random_model(&config, 1).unwrap();
    let (fields, width) = (usize::from(config.fields), usize::from(config.channels));
    // Symbols 0..4 become 2, 0, 3, 1; tokens are symbol + 2, blanks stay.
    let relabel = [2usize, 0, 3, 1];
    let tokens: Vec<u8> = testing::random_tokens(&config, 5);
    let relabelled: Vec<u8> = tokens.iter().map(|&t| if t < 2 { t } else { 2 + relabel[usize::from(t) - 2] as u8 }).collect();
    let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
    let run_on = |tokens: &[u8], start: Option<&[i16]>| {
        let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
        let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
        run.start(tokens, 3, 0).unwrap();
        if let Some(z) = start {
            let (z_h, z_l) = run.carry_mut();
            z_h.copy_from_slice(z);
            z_l.copy_from_slice(z);
        }
        for _ in 0..4 {
            run.segment().unwrap();
        }
        (run.carry().0.to_vec(), run.answer().to_vec(), run.q())
    };
    let start = run_on(&tokens, None).0;
    let permuted = |z: &[i16]| {
        let mut out = vec![0; z.len()];
        for (r, row) in z.chunks(width).enumerate() {
            let to = (r / fields * fields + relabel[r % fields]) * width;
            out[to..to + width].copy_from_slice(row);
        }
        out
    };
    let (z, answer, q) = run_on(&tokens, Some(&start));
    let (z_2, answer_2, q_2) = run_on(&relabelled, Some(&permuted(&start)));
    assert_eq!(permuted(&z), z_2);
    assert_eq!(q, q_2);
    let relabelled_answer: Vec<u8> = answer.iter().map(|&t| 2 + relabel[usize::from(t) - 2] as u8).collect();
    // Equal logits would be decided by the lower index, which relabelling moves: none in this fixed case.
    assert_eq!(relabelled_answer, answer_2);
}

#[test]
#[cfg_attr(miri, ignore)]
fn too_little_memory_and_wrong_tokens_are_refused() {
    let (_, config) = testing::configs().swap_remove(2);
    assert_eq!(config.mixer, Mixer::GroupSum);
    let file = testing::random_model(&config, 1).unwrap();
    let view = ModelView::new_checked(file.as_slice()).unwrap();
    let network = Network::reference(view);
    for plan in [Plan::HOST, Plan::DEVICE] {
        let needed = network.required_bytes(plan);
        assert_eq!(needed, hrm_core::required_bytes(&config, view.group_rows(), plan));
        let mut arena = vec![0; needed / 8 - 1];
        let error = Run::new(network, &mut arena, plan).unwrap_err();
        assert_eq!((error.what, error.needed, error.found), ("arena", needed, needed - 8));
        let mut arena = vec![u64::MAX; needed / 8];
        let mut run = Run::new(network, &mut arena, plan).unwrap();
        let mut tokens = testing::random_tokens(&config, 1);
        let error = run.start(&tokens[1..], 0, 0).unwrap_err();
        assert_eq!(error, InputError::Length { found: 15, expected: 16 });
        tokens[7] = 6;
        let error = run.start(&tokens, 0, 0).unwrap_err();
        assert_eq!(error, InputError::Token { position: 7, found: 6, vocab: 6 });
        assert_eq!(error.to_string(), "token 6 at position 7, expected 0 to 5");
    }
    for kernel in Kernel::available().filter(|k| *k != Kernel::REFERENCE) {
        let words = Network::packed_words(&view, kernel);
        if words == 0 {
            continue;
        }
        let error = Network::new(view, kernel, &mut vec![0; words - 1]).unwrap_err();
        assert_eq!((error.what, error.needed, error.found), ("packed weights", 4 * words, 4 * words - 4));
    }
}

/// A used arena is as good as a fresh one.
#[test]
#[cfg_attr(miri, ignore)]
fn runs_do_not_depend_on_what_was_in_the_arena() {
    for (name, config) in models() {
        let file = testing::random_model(&config, 1).unwrap();
        let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
        let mut arena = vec![0; network.required_bytes(Plan::HOST).div_ceil(8)];
        let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
        let mut hashes = Vec::new();
        for guess in [0, 1, 0] {
            run.start(&testing::random_tokens(&config, 2), 3, guess).unwrap();
            for _ in 0..3 {
                run.segment().unwrap();
            }
            hashes.push(run.hash());
        }
        assert_eq!(hashes[0], hashes[2], "{name}");
        arena.fill(u64::MAX);
        let mut run = Run::new(network, &mut arena, Plan::HOST).unwrap();
        run.start(&testing::random_tokens(&config, 2), 3, 0).unwrap();
        for _ in 0..3 {
            run.segment().unwrap();
        }
        assert_eq!(hashes[0], run.hash(), "{name}");
    }
}
