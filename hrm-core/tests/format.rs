//! Reading and refusing `.hrm` files: what a writer wrote is read, everything else gives the documented error.
#![cfg(feature = "std")]

use hrm_core::config::{Config, ConfigError, Mixer};
use hrm_core::format::layout::{ENTRY_LEN, HEADER_LEN, params, payload_start};
use hrm_core::format::{AlignedBytes, FormatError, Kind, SelfTest, TaskKind};
use hrm_core::{ModelView, testing};

fn small() -> Config {
    let config = testing::configs().swap_remove(2).1;
    Config { h_layers: 1, l_layers: 1, ..testing::tiny(config) }
}

fn file(config: &Config) -> Vec<u8> {
    testing::random_model(config, 1).unwrap().as_slice().to_vec()
}

fn error(bytes: &[u8]) -> FormatError {
    ModelView::new_checked(AlignedBytes::new(bytes).as_slice()).expect_err("the file must be refused")
}

/// CRC-32 of zip, bit by bit: a second implementation beside the crate's.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 }))
}

/// The file with `change` made and the checksum put right, so that the checks behind the checksum are reached.
fn forged(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    bytes[16..20].fill(0);
    let sum = crc(&bytes);
    bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Offset of the payload of the first tensor of this kind.
fn payload(bytes: &[u8], kind: Kind) -> usize {
    let entry = (0..).map(|i| HEADER_LEN + i * ENTRY_LEN).find(|&at| bytes[at] == kind as u8).unwrap();
    u32::from_le_bytes(bytes[entry + 12..entry + 16].try_into().unwrap()) as usize
}

#[test]
fn every_kind_of_model_is_written_and_read() {
    for (name, config) in testing::configs() {
        let config = if cfg!(miri) { testing::tiny(config) } else { config };
        let mut writer = testing::random_writer(&config, 1).unwrap();
        let tokens = testing::random_tokens(&config, 1);
        writer.set_record("{\"seed\": 1}");
        writer.set_self_test(&SelfTest { seed: 5, segments: 3, hash: 0x0123_4567_89ab_cdef, tokens: &tokens });
        let bytes = writer.finish().unwrap();
        let view = ModelView::new_checked(bytes.as_slice()).unwrap();
        assert_eq!(*view.config(), config, "{name}");
        assert_eq!(view.header().name(), "random");
        assert_eq!(view.record(), Some("{\"seed\": 1}"));
        assert_eq!(view.self_test(), Some(SelfTest { seed: 5, segments: 3, hash: 0x0123_4567_89ab_cdef, tokens: &tokens }));
        assert_eq!(
            view.crc(),
            crc(&forged(bytes.as_slice(), |b| b[16..20].fill(0))[..16]
                .iter()
                .copied()
                .chain([0; 4])
                .chain(bytes.as_slice()[20..].iter().copied())
                .collect::<Vec<u8>>())
        );
        assert_eq!(view.embed().len(), config.input_classes() * usize::from(config.channels));
        assert_eq!(view.prefix().len(), usize::from(config.prefix * config.channels));
        let block = view.block(config.modules() - 1, config.layers(config.modules() - 1) - 1);
        assert_eq!(block.attention.is_some(), config.has_attention());
        assert_eq!(block.token_mlp.is_some(), config.mixer == Mixer::TokenMlp);
        assert_eq!((block.mlp.up.n, block.mlp.up.k), (2 * usize::from(config.inner), config.mix_width()));
        assert_eq!((block.mlp.down.n, block.mlp.down.k), (usize::from(config.channels), usize::from(config.inner)));
        assert_eq!(view.rope().0.is_empty(), !config.rope);
        let expected = match config.tokens {
            16 => TaskKind::Sudoku(4),
            36 => TaskKind::Sudoku(6),
            81 => TaskKind::Sudoku(9),
            _ => TaskKind::Grid,
        };
        assert_eq!(view.header().task, expected);
    }
}

#[test]
fn every_single_flipped_bit_is_detected() {
    let mut bytes = AlignedBytes::new(&file(&small())).as_slice().to_vec();
    let aligned = AlignedBytes::new(&bytes);
    ModelView::new_checked(aligned.as_slice()).unwrap();
    let step = if cfg!(miri) { 1777 } else { 1 };
    for bit in (0..8 * bytes.len()).step_by(step) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let refused = error(&bytes);
        // Which error it is depends on the field; in the payload it is always the checksum.
        if bit / 8 >= HEADER_LEN {
            assert!(matches!(refused, FormatError::Checksum { .. }), "bit {bit}: {refused}");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_truncation_and_extension_is_detected() {
    let bytes = file(&small());
    for len in (0..bytes.len()).step_by(if cfg!(miri) { 97 } else { 1 }) {
        let needed = if len < HEADER_LEN { HEADER_LEN } else { bytes.len() };
        assert_eq!(error(&bytes[..len]), FormatError::Truncated { found: len, needed });
    }
    for extra in [1, 15, 16, 1000] {
        let mut longer = bytes.clone();
        longer.resize(bytes.len() + extra, 0);
        assert_eq!(error(&longer), FormatError::Trailing { found: longer.len(), needed: bytes.len() });
        // Announced, but more than the tensors need.
        let announced = forged(&longer, |b| {
            let len = b.len() as u32;
            b[12..16].copy_from_slice(&len.to_le_bytes());
        });
        assert_eq!(error(&announced), FormatError::Trailing { found: longer.len(), needed: bytes.len() });
    }
}

#[test]
fn misaligned_bytes_are_refused() {
    let bytes = file(&small());
    let mut room = vec![0u8; 32];
    room.extend_from_slice(&bytes);
    let aligned = AlignedBytes::new(&room);
    for remainder in 1..16 {
        // The same file at an address that is not a multiple of 16.
        let mut moved = aligned.as_slice().to_vec();
        moved.clear();
        moved.resize(remainder, 0);
        moved.extend_from_slice(&bytes);
        let moved = AlignedBytes::new(&moved);
        assert_eq!(ModelView::new_checked(&moved.as_slice()[remainder..]).unwrap_err(), FormatError::Misaligned { remainder });
    }
}

#[test]
fn wrong_headers_are_named() {
    let bytes = file(&small());
    let field = |field, offset, found, expected| FormatError::Field { field, offset, found, expected };
    let with = |at: usize, value: u8| error(&forged(&bytes, |b| b[at] = value));
    assert_eq!(error(&[]), FormatError::Truncated { found: 0, needed: HEADER_LEN });
    assert_eq!(with(0, 0x09), FormatError::Magic);
    assert_eq!(error(&[0; 200]), FormatError::Magic);
    assert_eq!(with(8, 2), field("version", 8, 2, 1));
    assert_eq!(with(10, 1), field("layout", 10, 1, 0));
    assert_eq!(with(20, 113), field("header length", 20, 113, 112));
    assert_eq!(with(24, 2), field("shared", 24, 2, 1));
    assert_eq!(with(25, 4), field("mixer", 25, 4, 3));
    assert_eq!(with(26, 255), field("start", 26, 255, 1));
    assert_eq!(with(27, 3), field("rope", 27, 3, 1));
    assert_eq!(with(49, 0), field("Q outputs", 49, 0, 1));
    assert_eq!(with(50, 4), field("merge_fields", 50, 1, 0));
    assert_eq!(with(51, 7), field("task", 51, 0x700, 0x109));
    assert_eq!(with(53, 1), field("reserved", 53, 1, 0));
    assert_eq!(with(111, 9), field("reserved", 111, 9, 0));
    assert_eq!(with(56, 0xff), field("name", 56, 0xff, 0));
    assert_eq!(with(36, 3), FormatError::Config(ConfigError::Range { field: "channels", found: 3, min: 4, max: 1024 }));
    assert!(matches!(with(34, 3), FormatError::Config(ConfigError::Conflict { field: "fields", found: 3, .. })));
    // A Sudoku of 9x9 with four tokens.
    let sudoku = error(&forged(&bytes, |b| b[51..53].copy_from_slice(&[1, 9])));
    assert_eq!(sudoku, field("tokens", 28, 4, 81));
    // Another shape than the table's.
    assert!(matches!(with(38, 5), FormatError::Field { field: "tensor rows" | "tensor columns" | "tensor bytes", .. }));
    assert!(matches!(with(22, 3), FormatError::Field { field: "tensors", offset: 22, found: 3, .. }));
}

#[test]
fn wrong_tables_are_named() {
    let bytes = file(&small());
    let entry = HEADER_LEN + 2 * ENTRY_LEN;
    for (offset, name) in [
        (0, "tensor kind"),
        (1, "tensor module"),
        (2, "tensor layer"),
        (3, "tensor dtype"),
        (4, "tensor rows"),
        (8, "tensor columns"),
        (12, "tensor offset"),
        (16, "tensor bytes"),
    ] {
        let found = error(&forged(&bytes, |b| b[entry + offset] ^= 0x40));
        assert!(matches!(found, FormatError::Field { field, offset: at, .. } if field == name && at == entry + offset), "{name}: {found}");
        // Huge numbers must not overflow on the way.
        let found = error(&forged(&bytes, |b| b[entry + offset..entry + offset + 1].fill(0xff)));
        assert!(matches!(found, FormatError::Field { .. }), "{name}: {found}");
    }
    let huge = error(&forged(&bytes, |b| b[entry + 4..entry + 20].fill(0xff)));
    assert!(matches!(huge, FormatError::Field { .. }), "{huge}");
}

#[test]
fn values_out_of_range_are_named() {
    let config = small();
    let bytes = file(&config);
    let i32_at = |at: usize, value: i32| error(&forged(&bytes, |b| b[at..at + 4].copy_from_slice(&value.to_le_bytes())));
    let mlp = payload(&bytes, Kind::MlpParams);
    let value = |tensor, offset, found, min, max| FormatError::Value { tensor, offset, found, min, max };
    assert_eq!(i32_at(mlp, 0), value("mlp params", mlp, 0, 1, 32767));
    assert_eq!(i32_at(mlp, 40_000), value("mlp params", mlp, 40_000, 1, 32767));
    let shift = mlp + 4 * params::FIRST_SHIFT;
    assert_eq!(i32_at(shift, 25), value("mlp params", shift, 25, 0, 24));
    assert_eq!(i32_at(shift, -1), value("mlp params", shift, -1, 0, 24));
    let group = mlp + 4 * (params::M_GROUP + 1);
    assert_eq!(i32_at(group, -7), value("mlp params", group, -7, 1, 32767));
    let global = payload(&bytes, Kind::Global);
    assert_eq!(i32_at(global, 0), value("global", global, 0, 1, 32767));
    assert_eq!(i32_at(global + 4, 64), value("global", global + 4, 64, 0, 48));
    let mult = payload(&bytes, Kind::UpMult);
    assert!(matches!(i32_at(mult, -5), FormatError::Value { tensor: "up", found: -5, min: 0, .. }));
    for kind in [Kind::UpWeight, Kind::DownWeight, Kind::HeadWeight, Kind::QWeight] {
        let at = payload(&bytes, kind) + 1;
        let refused = error(&forged(&bytes, |b| b[at] = 0x80));
        assert!(matches!(refused, FormatError::Value { offset, found: -128, min: -127, max: 127, .. } if offset == at), "{refused}");
    }
    let groups = payload(&bytes, Kind::Groups);
    assert_eq!(error(&forged(&bytes, |b| b[groups + 2] = 4)), value("groups", groups + 2, 4, 0, 3));
}

#[test]
fn accumulators_that_could_overflow_are_refused() {
    let bytes = file(&small());
    let bias = payload(&bytes, Kind::DownBias) + 4;
    let refused = error(&forged(&bytes, |b| b[bias..bias + 4].copy_from_slice(&i32::MIN.to_le_bytes())));
    assert!(matches!(refused, FormatError::Overflow { tensor: "down", channel: 1, .. }), "{refused}");
    let bias = payload(&bytes, Kind::HeadBias);
    let refused = error(&forged(&bytes, |b| b[bias..bias + 4].copy_from_slice(&i32::MAX.to_le_bytes())));
    assert!(matches!(refused, FormatError::Overflow { tensor: "head", channel: 0, .. }), "{refused}");
    // Exactly at the bound: 128 * sum|w| + |bias| = 2^(31 - l) is one too many.
    let view = AlignedBytes::new(&bytes);
    let down = ModelView::new_checked(view.as_slice()).unwrap().block(0, 0).mlp.down;
    let sum: i64 = down.weights[..down.k].iter().map(|&w| i64::from(w).abs()).sum();
    let most = (1i64 << (31 - down.shift)) - 128 * sum;
    let at = payload(&bytes, Kind::DownBias);
    let with = |b: i64| forged(&bytes, |bytes| bytes[at..at + 4].copy_from_slice(&(b as i32).to_le_bytes()));
    assert!(matches!(error(&with(most)), FormatError::Overflow { tensor: "down", channel: 0, .. }));
    let fits = AlignedBytes::new(&with(most - 1));
    ModelView::new_checked(fits.as_slice()).unwrap();
}

/// Groups of more than 256 rows could overflow their 16-bit sums.
#[test]
#[cfg_attr(miri, ignore)]
fn groups_of_too_many_rows_are_refused() {
    let config = Config { tokens: 300, vocab: 4, fields: 1, ..small() };
    let mut writer = testing::random_writer(&config, 1).unwrap();
    writer.finish().unwrap();
    writer.set(Kind::Groups, 0, 0, &vec![0; 600]).unwrap();
    assert!(matches!(writer.finish().err(), Some(FormatError::Value { tensor: "groups", found: 300, max: 256, .. })));
}

/// Random damage with the checksum put right: refused or read, never a panic, and what is read can be run.
#[test]
fn forged_files_are_refused_or_safe() {
    let config = Config { h_cycles: 1, l_cycles: 1, ..small() };
    let bytes = file(&config);
    let mut stream = hrm_core::rng::Stream::new(1, hrm_core::rng::Purpose::Noise, 0);
    let (mut refused, mut read) = (0, 0);
    for _ in 0..if cfg!(miri) { 12 } else { 20_000 } {
        let forged = forged(&bytes, |b| {
            for _ in 0..1 + stream.next_u32() % 3 {
                // Half of the hits in header and table.
                let range = if stream.next_u32() & 1 == 0 { payload_start(20) } else { b.len() };
                let at = stream.next_u32() as usize % range;
                b[at] = match stream.next_u32() % 4 {
                    0 => 0,
                    1 => 0xff,
                    2 => b[at].wrapping_add(1),
                    _ => stream.next_u32() as u8,
                };
            }
        });
        let aligned = AlignedBytes::new(&forged);
        let Ok(view) = ModelView::new_checked(aligned.as_slice()) else {
            refused += 1;
            continue;
        };
        read += 1;
        let tokens = testing::random_tokens(view.config(), 1);
        if view.config().state_len() < 2000 && view.config().h_cycles < 4 && view.config().l_cycles < 4 {
            let hashes = testing::hashes(view, hrm_core::Kernel::best(), hrm_core::Plan::HOST, &tokens, 1, 1).unwrap();
            assert_eq!(hashes, testing::hashes(view, hrm_core::Kernel::REFERENCE, hrm_core::Plan::DEVICE, &tokens, 1, 1).unwrap());
        }
    }
    assert!(refused > 0 && read > 0, "{refused} refused, {read} read");
}

#[test]
fn writers_refuse_what_a_reader_would() {
    let mut writer = testing::random_writer(&small(), 1).unwrap();
    assert!(matches!(writer.set(Kind::Rope, 0, 0, &[]), Err(FormatError::Field { field: "tensor kind", .. })));
    assert!(matches!(
        writer.set(Kind::HeadWeight, 0, 0, &[1; 5]),
        Err(FormatError::Field { field: "tensor length", found: 5, expected: 4, .. })
    ));
    assert!(matches!(
        writer.set(Kind::HeadWeight, 0, 0, &[1, 2, 3, -128]),
        Err(FormatError::Value { offset: 3, found: -128, min: -127, .. })
    ));
    assert!(matches!(
        testing::random_model(&Config { inner: 0, ..small() }, 1),
        Err(FormatError::Config(ConfigError::Range { field: "inner", .. }))
    ));
}

#[test]
fn errors_say_what_was_found_and_expected() {
    let text = [
        FormatError::Truncated { found: 3, needed: 112 },
        FormatError::Field { field: "version", offset: 8, found: 2, expected: 1 },
        FormatError::Value { tensor: "up", offset: 99, found: -128, min: -127, max: 127 },
        FormatError::Checksum { found: 0xab, expected: 0xcd },
    ]
    .map(|e| e.to_string());
    assert_eq!(text[0], "model file has 3 bytes, 112 are needed: it is cut off");
    assert_eq!(text[1], "field `version` at offset 8 is 2, expected 1");
    assert_eq!(text[2], "tensor `up` holds -128 at offset 99, expected -127 to 127");
    assert_eq!(text[3], "checksum is 000000ab, the file says 000000cd: it is damaged");
}
