//! A grid on the screen.

use hrm_core::task::Sudoku;

/// How a cell looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Given by the puzzle.
    pub given: bool,
    /// Other than before.
    pub changed: bool,
    /// Stands twice in a row, column or box.
    pub conflict: bool,
}

/// The cells whose digit stands twice in one of their units.
pub(super) fn conflicts(sudoku: Sudoku, tokens: &[u8]) -> Vec<bool> {
    let clash = |a: usize, b: usize| tokens[a] == tokens[b] && (0..3).any(|k| sudoku.group(k, a) == sudoku.group(k, b));
    let cells = tokens.len();
    (0..cells).map(|a| sudoku.digit(tokens[a]).is_some() && (0..cells).any(|b| b != a && clash(a, b))).collect()
}

/// A board with marks: `*` changed, `!` conflict; with `colour` also givens bold, changes yellow and conflicts red.
pub(super) fn marked(sudoku: Option<Sudoku>, tokens: &[u8], marks: &[Mark], colour: bool) -> String {
    let mark = |i: usize| marks.get(i).copied().unwrap_or_default();
    match sudoku {
        Some(s) => sudoku_board(s, tokens, |i, digit| {
            let m = mark(i);
            let sign = if m.conflict {
                '!'
            } else if m.changed {
                '*'
            } else {
                ' '
            };
            match (colour, m) {
                (true, Mark { conflict: true, .. }) => format!("\x1b[31m{digit}{sign}\x1b[0m"),
                (true, Mark { changed: true, .. }) => format!("\x1b[33m{digit}{sign}\x1b[0m"),
                (true, Mark { given: true, .. }) => format!("\x1b[1m{digit}{sign}\x1b[0m"),
                _ => format!("{digit}{sign}"),
            }
        }),
        None => {
            let cells: Vec<String> =
                tokens.iter().enumerate().map(|(i, t)| format!("{t}{}", if mark(i).changed { "*" } else { "" })).collect();
            // Square grids in rows, others in one line.
            let side = tokens.len().isqrt();
            let width = if side * side == tokens.len() { side } else { tokens.len() };
            cells.chunks(width.max(1)).map(|row| row.iter().map(|c| format!("{c:>4}")).collect::<String>()).collect::<Vec<_>>().join("\n")
        }
    }
}

fn sudoku_board(s: Sudoku, tokens: &[u8], cell: impl Fn(usize, char) -> String) -> String {
    let (n, rows, cols) = (s.size(), s.box_rows(), s.box_cols());
    let mut out = String::new();
    let rule = vec!["-".repeat(2 * cols + 1); n / cols].join("+");
    for r in 0..n {
        if r > 0 {
            out.push('\n');
            if r % rows == 0 {
                out += &rule[1..rule.len() - 1];
                out.push('\n');
            }
        }
        for c in 0..n {
            if c > 0 && c % cols == 0 {
                out += "| ";
            }
            let i = r * n + c;
            let digit = tokens.get(i).and_then(|&t| s.digit(t)).map_or('.', |d| (b'0' + d) as char);
            out += &cell(i, digit);
        }
        // Padding of the last cell.
        out.truncate(out.trim_end_matches(' ').len());
    }
    out
}
