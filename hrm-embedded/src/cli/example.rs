//! `hrm` without a command: one puzzle solved, and how to go on.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use hrm_core::task::Sudoku;
use hrm_embedded::{Model, builtin};

use super::board::{self, Mark};
use super::colours;
use super::models::text;

/// One puzzle of each size, made by this project's generator: one solution, no given too many.
const PUZZLES: [(usize, &str); 3] = [
    (9, ".71.....9.............1.5.49......3..1.9.....786......8..3.....3..7.846..5..6...7"),
    (6, ".....46.4.3.5...6...2.....1...4..51."),
    (4, "4..11..33......."),
];

pub(super) fn run() -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let example = PUZZLES.into_iter().find(|(size, _)| builtin::sizes().any(|n| usize::from(n) == *size));
    match example {
        Some((size, puzzle)) => solve(size, puzzle, &mut out)?,
        None => writeln!(out, "This hrm was built without embedded models (none in models/): pass one with --model FILE.\n")?,
    }
    let (_, puzzle) = example.unwrap_or(PUZZLES[0]);
    let next = format!(
        "Go on with\n\
         \n\
         hrm solve puzzles.txt               one puzzle a line, `.` for a blank; also `-`, .csv, .gz\n\
         hrm solve puzzles.csv --format csv  as a table; answers in the input are compared\n\
         hrm trace {puzzle}\n\
         {:36}how the network gets there, segment by segment\n\
         hrm inspect models/sudoku-9x9.hrm   what a model holds and costs\n\
         hrm --help                          everything else",
        ""
    );
    writeln!(out, "{}", next.replace("\nhrm", "\n    hrm"))?;
    Ok(ExitCode::SUCCESS)
}

fn solve(size: usize, puzzle: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let model = Model::builtin(size)?;
    let Some(sudoku) = Sudoku::new(size) else { bail!("there is no Sudoku of size {size}") };
    let mut tokens = vec![0; sudoku.cells()];
    sudoku.parse(puzzle, &mut tokens)?;
    let solved = model.solve(&tokens, &model.default_options())?;
    let colour = colours(&io::stdout());
    let given: Vec<Mark> = tokens.iter().map(|&t| Mark { given: sudoku.digit(t).is_some(), ..Mark::default() }).collect();
    writeln!(out, "A puzzle:\n\n{}\n", board::marked(model.sudoku(), &tokens, &given, colour))?;
    let ms = solved.time.as_secs_f64() * 1e3;
    let effort = format!("segments {}, guesses {}, {ms:.1} ms on one core ({})", solved.segments, solved.guesses, model.kernel().name());
    match solved.trusted(&model) {
        Some(answer) => {
            writeln!(out, "{}\n", board::marked(model.sudoku(), answer, &given, colour))?;
            writeln!(out, "Solved and checked against the rules: {effort}.\n{}\n", text(model.sudoku(), answer))?;
        }
        None => writeln!(out, "The model found no valid answer: {effort}.\n")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hrm_core::task::{Solutions, count_solutions};

    #[test]
    fn examples_have_one_solution() {
        for (size, puzzle) in PUZZLES {
            let sudoku = Sudoku::new(size).unwrap();
            let mut tokens = vec![0; sudoku.cells()];
            sudoku.parse(puzzle, &mut tokens).unwrap();
            let n = count_solutions(sudoku, &tokens, 2, 100_000, &mut [0; 81]).unwrap();
            assert_eq!(n, Solutions::Exactly(1), "{puzzle}");
        }
    }
}
