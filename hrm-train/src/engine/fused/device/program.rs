//! What the kernels of `step.cu` are made for: the macros of a model, its tables, its weights as the products read them, and sizes.

use std::fmt::Write as _;

use hrm_core::Start;

use super::packing::Packing;
use crate::engine::OptimizerKind;
use crate::engine::fused::layout::Dims;
use crate::engine::fused::rounding::BlockSteps;
use crate::engine::muon;

/// Text of the kernels.
pub const SOURCE: &str = concat!(
    include_str!("layout.cuh"),
    include_str!("products.cuh"),
    include_str!("block.cuh"),
    include_str!("step.cu"),
    include_str!("optimizer.cu")
);

/// Blocks of a kernel whose threads share out what there is.
pub(super) const GRID: usize = 256;

/// Threads of a block.
pub const THREADS: u32 = 512;

/// Words of a command and of a result before the tokens.
pub(super) const COMMAND_HEAD: usize = 11;
pub(super) const RESULT_HEAD: usize = 4;

/// Numbers that enter the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// bf16, what the tensor cores of a GPU multiply.
    Bf16,
    /// f32: the kernels on a host, so that their logic can be compared closely.
    F32,
}

impl Operand {
    /// Bytes of one.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The kernels of one model.
#[derive(Clone, Debug)]
pub struct Program {
    /// What is defined before [`SOURCE`].
    pub macros: String,
    /// Index tables.
    pub tables: Vec<u32>,
    /// Where what the kernels read comes from.
    pub packing: Vec<u32>,
    /// What products multiply.
    pub operand: Operand,
    /// Bytes of a slot's carry and scratch memory. It begins with z_H and z_L, f32 `[R][Cp]` each.
    pub work_bytes: usize,
    /// Bytes that the backward pass needs for each module call.
    pub call_bytes: usize,
    /// Words of a slot's command.
    pub command_words: usize,
    /// Words of a slot's result.
    pub result_words: usize,
    /// Values of the padded gradient of a slot.
    pub gradient_len: usize,
    /// Operands of the products.
    pub weight_len: usize,
    /// Other weights and factors.
    pub float_len: usize,
    /// Trained parameters.
    pub len: usize,
    /// Channels that have a factor each.
    pub channels: usize,
    /// Matrices that Muon's rule is for.
    pub matrices: usize,
    /// Values of the scratch memory for them.
    pub scratch_len: usize,
}

impl Program {
    /// The kernels for models of these extents that round in these steps or not at all. `init`: the fixed starts.
    pub(in crate::engine::fused) fn new(
        d: &Dims,
        rounding: Option<&[BlockSteps]>,
        init: &[Vec<f32>; 2],
        optimizer: OptimizerKind,
        operand: Operand,
    ) -> Self {
        let packing = Packing::new(d, rounding, init, optimizer);
        let config = &d.spec.config;
        let (r, cp, ip, n, g, groups) = (d.r, d.cp, d.ip, 2 * d.ip, d.g, d.groups());
        let mut tiles = Vec::new();
        for (j, range) in d.group_base.windows(2).enumerate() {
            tiles.extend((range[0]..range[1]).step_by(16).flat_map(|first| [first as u32, j as u32]));
        }
        let group_tiles = tiles.len() / 2;
        let grouping_of = d.group_base.windows(2).enumerate().flat_map(|(j, range)| std::iter::repeat_n(j as u32, range[1] - range[0]));
        let tables = [&d.ids[..], &d.starts, &d.members].concat();
        let tables = tables.into_iter().chain(grouping_of).chain(d.group_base.iter().map(|&b| b as u32)).chain(tiles).collect();
        let layers = d.layers.iter().copied().max().unwrap_or(0);
        let (elem, align) = (operand.bytes(), |bytes: usize| bytes.next_multiple_of(16));
        let state = r * cp;
        let call_bytes = 4 * (layers + 1) * state + layers * align(4 * r * n + elem * groups * cp + 4 * r);
        let rows = elem * (2 * state + r * ip + r * n) + 4 * groups * n + elem * groups * n + 4 * groups * cp;
        let heads = 4 * r * d.head + 8 * d.s + 4 * 16 * d.head.max(d.classes) * cp + 4 * (cp + 2);
        let work_bytes = align(16 * state + rows + heads) + call_bytes;
        let token_words = d.s.div_ceil(4);
        let mut program = Self {
            macros: String::new(),
            tables,
            packing: packing.words(),
            operand,
            work_bytes,
            call_bytes,
            command_words: COMMAND_HEAD + 2 * token_words,
            result_words: RESULT_HEAD + token_words,
            gradient_len: d.grad_len,
            weight_len: packing.elements.len(),
            float_len: packing.floats.len(),
            len: d.len,
            channels: packing.channels.len(),
            matrices: packing.matrices.len(),
            scratch_len: packing.scratch_len,
        };
        let values = [
            ("TOKENS", d.s),
            ("FIELDS", d.f),
            ("CHANNELS", d.c),
            ("INNER", d.i),
            ("GROUPINGS", g),
            ("GROUP_ROWS", groups),
            ("GROUP_TILES", group_tiles),
            ("HEAD", d.head),
            ("CLASSES", d.classes),
            ("MODULES", d.layers.len()),
            ("L_LAYERS", d.layers[0]),
            ("H_LAYERS", d.layers[d.h_module()]),
            ("RANDOM_START", usize::from(config.start == Start::Random)),
            ("ROUND", usize::from(rounding.is_some())),
            ("THREADS", THREADS as usize),
            ("GRID", GRID),
            ("WORK_BYTES", work_bytes),
            ("CALL_BYTES", call_bytes),
            ("COMMAND_WORDS", program.command_words),
            ("RESULT_WORDS", program.result_words),
            ("GRADIENT_LEN", program.gradient_len),
            ("WEIGHT_LEN", program.weight_len),
            ("FLOAT_LEN", program.float_len),
            ("TABLE_LEN", program.tables.len()),
            ("PACKING_LEN", program.packing.len()),
            ("LEN", program.len),
            ("CHANNEL_COUNT", program.channels),
            ("UNIT_COUNT", packing.units.len()),
            ("MATRIX_COUNT", program.matrices),
            ("SCRATCH_LEN", program.scratch_len),
        ];
        for (name, value) in values {
            // Writing to a string cannot fail.
            let _ = writeln!(program.macros, "#define HRM_{name} {value}");
        }
        let [a, b, c] = muon::QUINTIC;
        for (name, value) in [("A", a), ("B", b), ("C", c), ("RMS", muon::RMS)] {
            let _ = writeln!(program.macros, "#define HRM_MUON_{name} {value:?}f");
        }
        let _ = writeln!(program.macros, "#define HRM_MUON_TINY {:?}", muon::TINY);
        program
    }
}
