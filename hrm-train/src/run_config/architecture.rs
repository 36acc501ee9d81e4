//! The network that a config describes: its extents, and the groups of its task.

use anyhow::{Context as _, ensure};
use hrm_core::task::Sudoku;
use hrm_core::{Config, Mixer};

use super::validate::count;
use super::{RunConfig, TaskKind};
use crate::data::grid::GridKind;
use crate::spec::{Grouping, ModelSpec};

impl RunConfig {
    /// The rules of the task.
    ///
    /// # Errors
    /// A size that no Sudoku has, another task.
    pub fn sudoku(&self) -> anyhow::Result<Sudoku> {
        ensure!(self.task.kind == TaskKind::Sudoku, "task.kind is {:?}, expected sudoku here", self.task.kind);
        Sudoku::new(self.task.size).with_context(|| format!("task.size is {}, expected 4, 6 or 9", self.task.size))
    }

    /// The architecture.
    ///
    /// # Errors
    /// A sentence naming the field that cannot be built.
    pub fn spec(&self) -> anyhow::Result<ModelSpec> {
        let m = &self.model;
        let grouped = matches!(m.mixer, Mixer::GroupSum | Mixer::GroupAttention);
        ensure!(
            !m.intersections || (grouped && self.task.kind == TaskKind::Sudoku),
            "model.intersections is true, expected false without boxes (task.kind = \"sudoku\") or without groups \
             (model.mixer = \"group-sum\" or \"group-attention\")"
        );
        let (tokens, vocab, groupings) = match self.task.kind.grid() {
            None => {
                let sudoku = self.sudoku()?;
                (sudoku.cells(), sudoku.vocab(), if grouped { sudoku_groupings(sudoku, m.fields, m.intersections) } else { Vec::new() })
            }
            Some(kind) => {
                let size = self.task.size;
                count("task.size", size as u64, if kind == GridKind::Maze { 3 } else { 2 }, 64)?;
                ensure!(!m.fields, "model.fields is true, expected false with task.kind {:?}: its tokens are no digits", self.task.kind);
                (size * size, kind.vocab(), if grouped { grid_groupings(size) } else { Vec::new() })
            }
        };
        let spec = ModelSpec {
            config: Config {
                shared: m.shared,
                mixer: m.mixer,
                start: m.start,
                rope: m.rope,
                tokens: u16::try_from(tokens)?,
                prefix: m.prefix,
                vocab: u16::try_from(vocab)?,
                fields: if m.fields { u16::try_from(self.task.size)? } else { 1 },
                channels: m.channels,
                inner: m.inner,
                token_inner: m.token_inner,
                heads: m.heads,
                groupings: u8::try_from(groupings.len())?,
                h_layers: m.layers,
                l_layers: m.layers,
                h_cycles: m.h_cycles,
                l_cycles: m.l_cycles,
            },
            groupings,
        };
        spec.validate().context("[model]")?;
        Ok(spec)
    }
}

/// Row, column and box for each field, with fields the cell over all of them, and if wanted what a box shares with a row and with a column. A
/// model without those is one of zero weights with them: they come last.
fn sudoku_groupings(sudoku: Sudoku, fields: bool, intersections: bool) -> Vec<Grouping> {
    const CELL: usize = 3;
    (0..Sudoku::GROUPINGS)
        .filter(|&k| k < CELL || (k == CELL && fields) || (k > CELL && intersections))
        .map(|k| Grouping {
            // At most 81 groups: the cast cannot truncate.
            ids: (0..sudoku.cells()).map(|cell| sudoku.group(k, cell) as u16).collect(),
            merge_fields: k == CELL,
        })
        .collect()
}

/// Row, column, and the pairs of neighbours: along rows and along columns, from an even and from an odd cell on. The last four show a cell all
/// its neighbours.
fn grid_groupings(size: usize) -> Vec<Grouping> {
    let pairs = size / 2 + 1;
    let of = |id: &dyn Fn(usize, usize) -> usize| {
        let raw: Vec<usize> = (0..size * size).map(|cell| id(cell / size, cell % size)).collect();
        let mut used = raw.clone();
        used.sort_unstable();
        used.dedup();
        // At most 64 * 33 groups: the cast cannot truncate.
        let ids = raw.iter().map(|id| used.partition_point(|u| u < id) as u16).collect();
        Grouping { ids, merge_fields: false }
    };
    vec![
        of(&|row, _| row),
        of(&|_, col| col),
        of(&|row, col| row * pairs + col / 2),
        of(&|row, col| row * pairs + col.div_ceil(2)),
        of(&|row, col| col * pairs + row / 2),
        of(&|row, col| col * pairs + row.div_ceil(2)),
    ]
}
