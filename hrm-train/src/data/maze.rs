//! Mazes: the shortest path from S to G on a square grid.
//!
//! Tokens are those of the public Maze-30x30-Hard: `#` wall, space free, `S`, `G`, `o` path. Such a maze has many shortest paths; its answer
//! is the one that from S on takes the first of down, left, right, up that stays on a shortest path. So an answer can be wrong in a cell
//! and yet be a shortest path: [`Maze::is_shortest`] tells.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, ensure};
use rand_pcg::Pcg32;

use super::grid::{GridKind, GridSet};
use super::rng::{below, generator, shuffle, unit};

/// Token of a wall.
pub const WALL: u8 = 1;
/// Token of a free cell that is not on the path.
pub const FREE: u8 = 2;
/// Token of the start.
pub const START: u8 = 3;
/// Token of the goal.
pub const GOAL: u8 = 4;
/// Token of a cell on the path, in answers only.
pub const PATH: u8 = 5;
/// Characters of the tokens from 1.
pub const ALPHABET: &str = "# SGo";

/// Not reached from the cell that distances are counted from.
const FAR: u32 = u32::MAX;

/// The rules on a grid of `size * size` cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maze {
    size: usize,
}

impl Maze {
    /// Mazes of `size` rows and columns.
    #[must_use]
    pub const fn new(size: usize) -> Self {
        Self { size }
    }

    /// Neighbours of a cell in the order of the tie-break: down, left, right, up.
    fn neighbours(self, cell: usize) -> impl Iterator<Item = usize> {
        let (n, row, col) = (self.size, cell / self.size, cell % self.size);
        let down = (row + 1 < n).then(|| cell + n);
        let left = (col > 0).then(|| cell - 1);
        let right = (col + 1 < n).then_some(cell + 1);
        let up = (row > 0).then(|| cell - n);
        [down, left, right, up].into_iter().flatten()
    }

    /// Steps from `from` to every cell over cells that are `open`.
    fn distances(self, from: usize, open: impl Fn(usize) -> bool) -> Vec<u32> {
        let mut steps = vec![FAR; self.size * self.size];
        steps[from] = 0;
        let mut queue = VecDeque::from([from]);
        while let Some(cell) = queue.pop_front() {
            for next in self.neighbours(cell) {
                if steps[next] == FAR && open(next) {
                    steps[next] = steps[cell] + 1;
                    queue.push_back(next);
                }
            }
        }
        steps
    }

    /// Start and goal of a puzzle.
    ///
    /// # Errors
    /// Another number of cells, a token that no puzzle has, not one S and one G.
    pub fn ends(self, input: &[u8]) -> Result<(usize, usize)> {
        let cells = self.size * self.size;
        ensure!(input.len() == cells, "the maze has {} cells, expected {cells}", input.len());
        if let Some(at) = input.iter().position(|t| !(WALL..=GOAL).contains(t)) {
            let (row, col) = (at / self.size + 1, at % self.size + 1);
            anyhow::bail!("row {row} column {col}: token {} in a maze, expected 1 to 4 (wall, free, S, G)", input[at]);
        }
        let only = |token: u8, name: &str| {
            let found: Vec<usize> = (0..cells).filter(|&i| input[i] == token).collect();
            ensure!(found.len() == 1, "the maze has {} cells `{name}`, expected 1", found.len());
            Ok(found[0])
        };
        Ok((only(START, "S")?, only(GOAL, "G")?))
    }

    /// The answer to a puzzle: its shortest path, of several the one of the tie-break. Returns the number of steps.
    ///
    /// # Errors
    /// As [`Maze::ends`], or there is no path.
    pub fn solve(self, input: &[u8], answer: &mut Vec<u8>) -> Result<u32> {
        let (start, goal) = self.ends(input)?;
        let left = self.distances(goal, |cell| input[cell] != WALL);
        ensure!(left[start] != FAR, "there is no path from S to G");
        answer.clear();
        answer.extend_from_slice(input);
        let mut cell = start;
        while left[cell] > 1 {
            cell = self.neighbours(cell).find(|&next| left[next] < left[cell]).context("the path ends")?;
            answer[cell] = PATH;
        }
        Ok(left[start])
    }

    /// Whether `answer` marks a shortest path of `input`, whichever, and changes nothing else.
    #[must_use]
    pub fn is_shortest(self, input: &[u8], answer: &[u8]) -> bool {
        let Ok((start, goal)) = self.ends(input) else { return false };
        let kept = |(&i, &a): (&u8, &u8)| i == a || (i == FREE && a == PATH);
        if answer.len() != input.len() || !input.iter().zip(answer).all(kept) {
            return false;
        }
        let shortest = self.distances(start, |cell| input[cell] != WALL)[goal];
        let along = self.distances(start, |cell| answer[cell] == PATH || cell == goal)[goal];
        let marked = answer.iter().filter(|&&t| t == PATH).count();
        along == shortest && along != FAR && marked + 1 == along as usize
    }
}

/// How to make mazes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MazeOptions {
    /// Rows and columns, 3 to 64.
    pub size: usize,
    /// Seed.
    pub seed: u64,
    /// Least number of steps of the shortest path.
    pub shortest: usize,
    /// Mazes without a loop, so that there is one path: rooms in every other row and column, joined by a random tree. Else walls at random
    /// places, a share of the cells that is uniform in 0.3 to 0.5, as in Maze-Hard.
    pub unique: bool,
}

/// Mazes without success before the generator gives up. Of 57,000 random ones of size 30, one has a path of 109 steps, as Maze-Hard asks for.
const TRIES: u32 = 2_000_000;

/// `n` different mazes with answers, a pure function of the arguments.
///
/// # Errors
/// A size out of range, or paths so long that they hardly ever come up.
pub fn generate(options: &MazeOptions, n: usize) -> Result<GridSet> {
    let MazeOptions { size, seed, shortest, unique } = *options;
    ensure!((3..=64).contains(&size), "a maze of size {size}, expected 3 to 64");
    ensure!(shortest < size * size, "a path of {shortest} steps in a maze of size {size}, expected fewer than {}", size * size);
    let maze = Maze::new(size);
    let mut set = GridSet::new(GridKind::Maze, size);
    let mut seen = std::collections::HashSet::new();
    let (mut answer, mut failed) = (Vec::new(), 0u32);
    for counter in 0.. {
        if set.len() == n {
            break;
        }
        let mut rng = generator(seed, counter);
        let input = if unique { tree(&mut rng, size) } else { scattered(&mut rng, size) };
        if maze.solve(&input, &mut answer).is_ok_and(|steps| steps as usize >= shortest) && seen.insert(input.clone()) {
            set.push_alone(&input, &answer)?;
            failed = 0;
        } else {
            failed += 1;
            ensure!(
                failed < TRIES,
                "{TRIES} mazes of size {size} one after the other had no path of {shortest} steps or were there before"
            );
        }
    }
    Ok(set)
}

/// S and G in two of the cells that are free.
fn ends(rng: &mut Pcg32, grid: &mut [u8]) {
    let mut free: Vec<usize> = (0..grid.len()).filter(|&i| grid[i] == FREE).collect();
    shuffle(rng, &mut free);
    if let [start, goal, ..] = free[..] {
        (grid[start], grid[goal]) = (START, GOAL);
    }
}

fn scattered(rng: &mut Pcg32, size: usize) -> Vec<u8> {
    let share = 0.3 + 0.2 * unit(rng);
    let mut grid: Vec<u8> = (0..size * size).map(|_| if unit(rng) < share { WALL } else { FREE }).collect();
    ends(rng, &mut grid);
    grid
}

/// A random depth-first tree over the rooms.
fn tree(rng: &mut Pcg32, size: usize) -> Vec<u8> {
    let mut grid = vec![WALL; size * size];
    let rooms = size.div_ceil(2);
    let mut stack = vec![(2 * below(rng, rooms), 2 * below(rng, rooms))];
    grid[stack[0].0 * size + stack[0].1] = FREE;
    while let Some(&(row, col)) = stack.last() {
        let mut ways = [(2, 0), (0, 2), (-2, 0), (0, -2)];
        shuffle(rng, &mut ways);
        let next = ways.into_iter().find_map(|(down, right)| {
            let (r, c) = (row.checked_add_signed(down)?, col.checked_add_signed(right)?);
            (r < size && c < size && grid[r * size + c] == WALL).then_some((r, c))
        });
        match next {
            Some((r, c)) => {
                grid[r * size + c] = FREE;
                grid[(row + r) / 2 * size + (col + c) / 2] = FREE;
                stack.push((r, c));
            }
            None => drop(stack.pop()),
        }
    }
    ends(rng, &mut grid);
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<u8> {
        text.chars().map(|c| ALPHABET.find(c).unwrap() as u8 + 1).collect()
    }

    #[test]
    fn the_path_is_that_of_the_tie_break_and_others_are_shortest_too() {
        let maze = Maze::new(4);
        let input = tokens("S   ## #   G    ");
        let mut answer = Vec::new();
        // One way down, then down before right.
        assert_eq!(maze.solve(&input, &mut answer).unwrap(), 5);
        assert_eq!(answer, tokens("Soo ##o#  oG    "));
        assert!(maze.is_shortest(&input, &answer));
        let open = tokens("S  #  #     #  G");
        maze.solve(&open, &mut answer).unwrap();
        let other = tokens("Soo#  #     #  G");
        assert!(maze.is_shortest(&open, &answer) && !maze.is_shortest(&open, &other));
        // Another of the same length, a detour, a gap, a changed wall, a stray mark.
        let free = tokens("S        G      ");
        for (text, right) in [
            ("So o o  oG      ", false),
            ("S   o   oG      ", true),
            ("So   o   G      ", true),
            ("Soo  oo  G      ", false),
            ("S       oG      ", false),
            ("S   o   oG     #", false),
            ("S   o   oG     o", false),
        ] {
            assert_eq!(maze.is_shortest(&free, &tokens(text)), right, "{text:?}");
        }
        assert!(!maze.is_shortest(&free, &free[..15]));
    }

    #[test]
    fn generated_mazes_hold_what_was_asked_for() {
        for (unique, size) in [(true, 9), (true, 8), (false, 10)] {
            let options = MazeOptions { size, seed: 3, shortest: 8, unique };
            let set = generate(&options, 40).unwrap();
            let maze = Maze::new(size);
            assert_eq!(set.len(), 40);
            let mut lengths = std::collections::BTreeSet::new();
            for i in 0..set.len() {
                let steps = set.label(i).iter().filter(|&&t| t == PATH).count() + 1;
                assert!(steps >= 8 && maze.is_shortest(set.input(i), set.label(i)));
                lengths.insert(steps);
                let open = set.input(i).iter().filter(|&&t| t != WALL).count();
                // A tree of rooms has one passage less than rooms.
                let rooms = size.div_ceil(2).pow(2);
                assert!(!unique || open == 2 * rooms - 1, "{open}");
            }
            assert!(lengths.len() > 4, "{lengths:?}");
            assert_eq!(generate(&options, 40).unwrap(), set);
            assert_ne!(generate(&MazeOptions { seed: 4, ..options }, 40).unwrap(), set);
        }
        let error = generate(&MazeOptions { size: 4, seed: 0, shortest: 16, unique: false }, 1).unwrap_err().to_string();
        assert!(error.contains("path of 16 steps in a maze of size 4, expected fewer than 16"), "{error}");
        assert!(generate(&MazeOptions { size: 2, seed: 0, shortest: 0, unique: true }, 1).is_err());
    }

    #[test]
    fn bad_mazes_are_named() {
        let maze = Maze::new(3);
        let error = |text: &str| maze.solve(&tokens(text), &mut Vec::new()).unwrap_err().to_string();
        assert!(error("S  ###  G").contains("no path"));
        assert!(error("S  S    G").contains("2 cells `S`"));
        assert!(error("S        ").contains("0 cells `G`"));
        assert!(error("S   o   G").contains("row 2 column 2: token 5"));
        assert!(error("S  G").contains("has 4 cells, expected 9"));
    }
}
