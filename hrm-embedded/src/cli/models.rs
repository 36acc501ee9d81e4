//! Which model solves a puzzle: that of `--model`, or the embedded one of the puzzle's size.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use hrm_core::format::TaskKind;
use hrm_core::task::{Grid, PuzzleError, Sudoku};
use hrm_embedded::{Model, ModelError};

/// One given model, or the embedded ones, each loaded when it is first needed.
pub(super) struct Models {
    given: Option<Arc<Model>>,
    builtin: [OnceLock<Arc<Model>>; 3],
}

/// Where the tokens of a puzzle come from.
#[derive(Clone, Copy)]
pub(super) enum Reader {
    /// Any Sudoku size, told by the length of the text.
    AnySudoku,
    /// One size.
    Sudoku(Sudoku),
    /// A token grid: integers.
    Grid(Grid),
}

impl Models {
    /// `path`: the value of `--model`.
    ///
    /// # Errors
    /// The file is no valid model.
    pub(super) fn new(path: Option<&Path>) -> Result<Self, ModelError> {
        let given = path.map(Model::open).transpose()?.map(Arc::new);
        Ok(Self { given, builtin: [const { OnceLock::new() }; 3] })
    }

    pub(super) fn given(&self) -> Option<&Arc<Model>> {
        self.given.as_ref()
    }

    /// How puzzles are to be read.
    pub(super) fn reader(&self) -> Reader {
        let Some(model) = &self.given else { return Reader::AnySudoku };
        let c = model.config();
        match (model.sudoku(), Grid::new(c.tokens, c.vocab)) {
            (Some(sudoku), _) => Reader::Sudoku(sudoku),
            (None, Some(grid)) => Reader::Grid(grid),
            // Tokens are bytes: a larger vocabulary cannot be asked for, the solver names the first token it cannot read.
            (None, None) => Reader::AnySudoku,
        }
    }

    /// The model for a puzzle of `tokens` tokens.
    ///
    /// # Errors
    /// No such model was embedded.
    pub(super) fn for_tokens(&self, tokens: usize) -> Result<&Arc<Model>, ModelError> {
        if let Some(model) = &self.given {
            return Ok(model);
        }
        let size = tokens.isqrt();
        let slot = match size {
            4 => &self.builtin[0],
            6 => &self.builtin[1],
            9 => &self.builtin[2],
            _ => return Err(ModelError::NotBuiltIn { size }),
        };
        if let Some(model) = slot.get() {
            return Ok(model);
        }
        // Two threads may both load it; one of them wins.
        let model = Arc::new(Model::builtin(size)?);
        Ok(slot.get_or_init(|| model))
    }
}

impl Reader {
    /// Reads one puzzle.
    ///
    /// # Errors
    /// Those of the task's parser.
    pub(super) fn parse(self, text: &str) -> Result<Vec<u8>, PuzzleError> {
        let sudoku = match self {
            Self::AnySudoku => Sudoku::from_text(text)?,
            Self::Sudoku(s) => s,
            Self::Grid(grid) => {
                let mut tokens = vec![0; grid.tokens()];
                grid.parse_integers(text, &mut tokens)?;
                return Ok(tokens);
            }
        };
        let mut tokens = vec![0; sudoku.cells()];
        sudoku.parse(text, &mut tokens)?;
        Ok(tokens)
    }
}

/// Tokens as text: digits and `.` for a Sudoku, integers for a grid.
pub(super) fn text(sudoku: Option<Sudoku>, tokens: &[u8]) -> String {
    let digits = |s: Sudoku| s.format(tokens, &mut [0; 81]).map(str::to_owned).ok();
    let integers = || tokens.iter().map(u8::to_string).collect::<Vec<_>>().join(" ");
    sudoku.and_then(digits).unwrap_or_else(integers)
}

/// The task's name.
pub(super) fn task_name(task: TaskKind) -> String {
    match task {
        TaskKind::Sudoku(n) => format!("Sudoku {n}x{n}"),
        TaskKind::Grid => "token grid".to_owned(),
    }
}
