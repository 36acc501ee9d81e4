//! ARC: tasks of a few coloured grids, their augmented forms, and the vote over the forms' answers.
//!
//! As in the public HRM code: a task becomes many by the symmetries of the square and by permutations of the colours 1 to 9 (0, the
//! background, stays). Each form has an identifier of its own, from which a model learns what the task is. A grid stands somewhere on a
//! larger square (random translation, in training); token 0 is the padding, 1 marks the row below and the column to its right, 2 to 11 are
//! the colours. At the end each form answers, the answers are turned back, and the most frequent ones count (pass@1, pass@2).

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand_pcg::Pcg32;
use serde::Deserialize;

use super::grid::{GridKind, GridSet, Place, Symmetry};
use super::rng::{below, generator, shuffle};

/// Token of the edge of a grid.
const EDGE: u8 = 1;
/// Token of colour 0.
const COLOUR: u8 = 2;
/// Colours.
const COLOURS: u8 = 10;

/// A grid of colours 0 to 9.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Vec<Vec<u8>>")]
pub struct Picture {
    /// Rows, 1 to 30.
    pub rows: usize,
    /// Columns, 1 to 30.
    pub cols: usize,
    /// Colours, row by row.
    pub cells: Vec<u8>,
}

impl TryFrom<Vec<Vec<u8>>> for Picture {
    type Error = String;

    fn try_from(lines: Vec<Vec<u8>>) -> Result<Self, String> {
        let (rows, cols) = (lines.len(), lines.first().map_or(0, Vec::len));
        if !(1..=30).contains(&rows) || !(1..=30).contains(&cols) || lines.iter().any(|line| line.len() != cols) {
            return Err(format!("a grid of {rows} rows whose first has {cols} cells, expected 1 to 30 rows of one length of 1 to 30"));
        }
        match lines.iter().flatten().find(|&&colour| colour >= COLOURS) {
            Some(colour) => Err(format!("colour {colour}, expected 0 to 9")),
            None => Ok(Self { rows, cols, cells: lines.concat() }),
        }
    }
}

impl Picture {
    /// Writes its tokens onto a square of `size * size`, its first cell at (`top`, `left`).
    fn place(&self, size: usize, top: usize, left: usize, tokens: &mut [u8]) {
        tokens.fill(0);
        for i in 0..=self.rows {
            for j in 0..=self.cols {
                let (row, col) = (top + i, left + j);
                if row < size && col < size && (i < self.rows || j < self.cols) {
                    let inside = i < self.rows && j < self.cols;
                    tokens[row * size + col] = if inside { self.cells[i * self.cols + j] + COLOUR } else { EDGE };
                }
            }
        }
    }

    /// The largest grid of colours alone whose first cell is the first token, as the public evaluation reads answers; none where that is no
    /// colour. Of equal ones the one with fewer rows.
    #[must_use]
    pub fn read(size: usize, tokens: &[u8]) -> Option<Self> {
        let colour = |i: usize, j: usize| (COLOUR..COLOUR + COLOURS).contains(&tokens[i * size + j]);
        let (mut width, mut best) = (size, (0, 0));
        for i in 0..size {
            width = (0..width).take_while(|&j| colour(i, j)).count();
            if (i + 1) * width > best.0 * best.1 {
                best = (i + 1, width);
            }
        }
        let (rows, cols) = best;
        let cells = (0..rows * cols).map(|at| tokens[at / cols * size + at % cols] - COLOUR).collect();
        (rows > 0).then_some(Self { rows, cols, cells })
    }
}

/// An input with its output.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Pair {
    /// What is given.
    pub input: Picture,
    /// What is asked for.
    pub output: Picture,
}

/// A task: demonstrations, and what is to be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Task {
    /// Name of its file.
    #[serde(skip)]
    pub name: String,
    /// Demonstrations.
    pub train: Vec<Pair>,
    /// Inputs to answer, with the answers.
    pub test: Vec<Pair>,
}

impl Task {
    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.train.iter().chain(&self.test)
    }

    /// Rows or columns of its largest grid.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.pairs().flat_map(|p| [p.input.rows, p.input.cols, p.output.rows, p.output.cols]).max().unwrap_or(0)
    }
}

/// The tasks of a folder of public JSON files, one each, by name.
///
/// # Errors
/// The folder or a file cannot be read, holds no task, or a grid is none; the sentence names the file.
pub fn read_folder(folder: &Path) -> Result<Vec<Task>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
    paths.sort();
    ensure!(!paths.is_empty(), "{} holds no .json file", folder.display());
    let read = |path: &Path| -> Result<Task> {
        let mut task: Task = serde_json::from_slice(&fs::read(path)?)?;
        ensure!(!task.train.is_empty() && !task.test.is_empty(), "a task without demonstration or without test");
        task.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(task)
    };
    paths.iter().map(|path| read(path).with_context(|| format!("{} is no ARC task", path.display()))).collect()
}

/// How one form of a task comes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// Applied to every grid.
    pub symmetry: Symmetry,
    /// New colour of each.
    pub colours: [u8; 10],
}

impl Form {
    /// The task itself.
    pub const IDENTITY: Self = Self { symmetry: Symmetry::IDENTITY, colours: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] };

    /// Any form.
    fn random(rng: &mut Pcg32) -> Self {
        let mut form = Self { symmetry: Symmetry::random(rng), ..Self::IDENTITY };
        shuffle(rng, &mut form.colours[1..]);
        form
    }

    /// The form of a grid.
    #[must_use]
    pub fn apply(&self, picture: &Picture) -> Picture {
        let (rows, cols, cells) = self.symmetry.apply(picture.rows, picture.cols, &picture.cells);
        Picture { rows, cols, cells: cells.into_iter().map(|c| self.colours[usize::from(c)]).collect() }
    }

    /// The grid that [`Form::apply`] made this one of.
    #[must_use]
    pub fn undo(&self, picture: &Picture) -> Picture {
        let mut colours = [0; 10];
        for (old, &new) in (0..).zip(&self.colours) {
            colours[usize::from(new)] = old;
        }
        Self { symmetry: self.symmetry.inverse(), colours }.apply(picture)
    }

    fn of(&self, task: &Task) -> Task {
        let pairs = |pairs: &[Pair]| pairs.iter().map(|p| Pair { input: self.apply(&p.input), output: self.apply(&p.output) }).collect();
        Task { name: task.name.clone(), train: pairs(&task.train), test: pairs(&task.test) }
    }

    /// The public name of a form of a task: `TASK|||t3|||0231456789`; the task itself has its plain name.
    #[must_use]
    pub fn name(&self, task: &str) -> String {
        if *self == Self::IDENTITY {
            return task.to_owned();
        }
        let colours: String = self.colours.iter().map(u8::to_string).collect();
        format!("{task}|||t{}|||{colours}", self.symmetry.number())
    }

    /// Task and form of a public name.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(name: &str) -> Result<(&str, Self)> {
        let Some((task, rest)) = name.split_once("|||") else { return Ok((name, Self::IDENTITY)) };
        let parse = || -> Option<Self> {
            let (symmetry, digits) = rest.split_once("|||")?;
            let symmetry = Symmetry::new(symmetry.strip_prefix('t')?.parse().ok()?)?;
            let colours: Vec<u8> = digits.bytes().map(|b| b.wrapping_sub(b'0')).collect();
            let distinct: HashSet<&u8> = colours.iter().filter(|&&c| c < COLOURS).collect();
            (distinct.len() == 10).then_some(())?;
            Some(Self { symmetry, colours: colours.try_into().ok()? })
        };
        Ok((task, parse().with_context(|| format!("identifier `{name}`, expected TASK|||t0 to t7|||a permutation of 0123456789"))?))
    }
}

/// How to make a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Rows and columns of the square; tasks with a larger grid are left out.
    pub size: usize,
    /// Forms of each task besides itself; fewer where a task has not so many.
    pub copies: usize,
    /// Seed of the forms and the translations.
    pub seed: u64,
}

/// Examples to train on and to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// All pairs of the training tasks, the demonstrations of the others.
    pub train: GridSet,
    /// The test pairs of the other tasks, in all their forms: group = task, member = test input.
    pub test: GridSet,
    /// What each identifier stands for; 0 is nothing.
    pub names: Vec<String>,
    /// Tasks that did not fit.
    pub left_out: usize,
}

/// The dataset of tasks that may be trained on and of tasks whose test pairs are to be answered. A pure function of the arguments.
///
/// # Errors
/// No task fits.
pub fn dataset(training: &[Task], evaluation: &[Task], options: &DatasetOptions) -> Result<Dataset> {
    let DatasetOptions { size, copies, seed } = *options;
    let mut out = Dataset {
        train: GridSet::new(GridKind::Arc, size),
        test: GridSet::new(GridKind::Arc, size),
        names: vec!["<blank>".to_owned()],
        left_out: 0,
    };
    let (mut input, mut label) = (vec![0; size * size], vec![0; size * size]);
    let all = training.iter().map(|task| (task, true)).chain(evaluation.iter().map(|task| (task, false)));
    for (number, (task, open)) in all.enumerate() {
        if task.largest() > size {
            out.left_out += 1;
            continue;
        }
        let mut rng = generator(seed, number as u64);
        let mut seen = HashSet::new();
        // A task has finitely many forms, some of them the same; five tries for each, as in the public code.
        for tried in 0..=5 * copies {
            let form = if tried == 0 { Form::IDENTITY } else { Form::random(&mut rng) };
            let image = form.of(task);
            if !seen.insert(image.clone()) {
                continue;
            }
            let place = Place { group: number as u32, member: 0, identifier: u32::try_from(out.names.len())? };
            out.names.push(form.name(&task.name));
            let shown = if open { image.pairs().collect::<Vec<_>>() } else { image.train.iter().collect() };
            let asked = if open { [].iter() } else { image.test.iter() };
            for (member, pair) in (0..).zip(&shown) {
                let room = |a: usize, b: usize| size - a.max(b) + 1;
                let (down, right) = (room(pair.input.rows, pair.output.rows), room(pair.input.cols, pair.output.cols));
                let (top, left) = (below(&mut rng, down), below(&mut rng, right));
                pair.input.place(size, top, left, &mut input);
                pair.output.place(size, top, left, &mut label);
                out.train.push(&input, &label, Place { member, ..place })?;
            }
            for (member, pair) in (0..).zip(asked) {
                pair.input.place(size, 0, 0, &mut input);
                pair.output.place(size, 0, 0, &mut label);
                out.test.push(&input, &label, Place { member, ..place })?;
            }
            if seen.len() > copies {
                break;
            }
        }
    }
    ensure!(!out.train.is_empty(), "none of the {} tasks fits onto {size} rows and columns", training.len() + evaluation.len());
    Ok(out)
}

/// Answers by votes: the most frequent first, of equally frequent ones that with the larger mean halt logit.
#[must_use]
pub fn vote(answers: impl IntoIterator<Item = (Picture, f32)>) -> Vec<Picture> {
    let mut tally: Vec<(Picture, usize, f64)> = Vec::new();
    for (picture, q) in answers {
        match tally.iter_mut().find(|(p, ..)| *p == picture) {
            Some((_, count, sum)) => {
                *count += 1;
                *sum += f64::from(q);
            }
            None => tally.push((picture, 1, f64::from(q))),
        }
    }
    tally.sort_by(|(_, n, a), (_, m, b)| m.cmp(n).then((b / *m as f64).partial_cmp(&(a / *n as f64)).unwrap_or(Ordering::Equal)));
    tally.into_iter().map(|(picture, ..)| picture).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(text: &str) -> Picture {
        Picture::try_from(text.split(' ').map(|line| line.bytes().map(|b| b - b'0').collect()).collect::<Vec<_>>()).unwrap()
    }

    /// Tasks of our own: mirror the grid, or swap two colours.
    fn tasks(n: usize) -> Vec<Task> {
        let make = |number: usize| {
            let mut rng = generator(9, number as u64);
            let pairs: Vec<Pair> = (0..4)
                .map(|_| {
                    let (rows, cols) = (1 + below(&mut rng, 3), 2 + below(&mut rng, 3));
                    let input = Picture { rows, cols, cells: (0..rows * cols).map(|_| below(&mut rng, 4) as u8).collect() };
                    let mut form = Form::IDENTITY;
                    if number.is_multiple_of(2) {
                        form.symmetry = Symmetry::new(4).unwrap();
                    } else {
                        form.colours.swap(1, 2);
                    }
                    Pair { output: form.apply(&input), input }
                })
                .collect();
            Task { name: format!("task{number}"), train: pairs[..3].to_vec(), test: pairs[3..].to_vec() }
        };
        (0..n).map(make).collect()
    }

    #[test]
    fn grids_stand_on_the_square_and_come_back() {
        let p = picture("12 34 50");
        let mut tokens = vec![9; 25];
        p.place(5, 0, 0, &mut tokens);
        #[rustfmt::skip]
        assert_eq!(tokens, [3, 4, 1, 0, 0, 5, 6, 1, 0, 0, 7, 2, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Picture::read(5, &tokens), Some(p.clone()));
        // At the far corner there is no room for an edge.
        p.place(5, 2, 3, &mut tokens);
        assert_eq!((tokens[13], tokens[24], Picture::read(5, &tokens)), (3, 2, None));
        // A hole ends the answer; the largest grid counts.
        picture("111 111 111").place(3, 0, 0, &mut tokens[..9]);
        tokens[5] = 0;
        assert_eq!(Picture::read(3, &tokens[..9]), Some(picture("11 11 11")));
    }

    #[test]
    fn forms_come_back_and_have_names() {
        let p = picture("123 456 780");
        let mut rng = generator(1, 1);
        let mut images = HashSet::new();
        for _ in 0..50 {
            let form = Form::random(&mut rng);
            let image = form.apply(&p);
            assert_eq!(form.undo(&image), p);
            assert_eq!(image.cells.iter().filter(|&&c| c == 0).count(), 1);
            assert_eq!(Form::parse(&form.name("a1b2")).unwrap(), ("a1b2", form));
            images.insert(image);
        }
        assert!(images.len() > 45);
        assert_eq!((Form::IDENTITY.name("x"), Form::parse("x").unwrap()), ("x".to_owned(), ("x", Form::IDENTITY)));
        for wrong in ["x|||t8|||0123456789", "x|||t1|||0123456788", "x|||t1|||012345678", "x|||1|||0123456789", "x|||t1"] {
            assert!(Form::parse(wrong).unwrap_err().to_string().contains("permutation"), "{wrong}");
        }
    }

    #[test]
    fn every_form_of_a_dataset_is_that_of_its_identifier() {
        let (open, asked) = (tasks(3), tasks(6).split_off(3));
        let options = DatasetOptions { size: 6, copies: 9, seed: 4 };
        let data = dataset(&open, &asked, &options).unwrap();
        assert_eq!(dataset(&open, &asked, &options).unwrap(), data);
        assert_eq!((data.names.len(), data.left_out), (61, 0));
        assert_eq!((data.train.len(), data.test.len()), (10 * (3 * 4 + 3 * 3), 10 * 3));
        let (names, mut places) = (data.names.iter().collect::<HashSet<_>>(), HashSet::new());
        assert_eq!(names.len(), 61);
        for (set, is_test) in [(&data.train, false), (&data.test, true)] {
            for i in 0..set.len() {
                let place = set.places[i];
                let (name, form) = Form::parse(&data.names[place.identifier as usize]).unwrap();
                let task = &tasks(6)[place.group as usize];
                assert_eq!(task.name, name);
                let pair = if is_test { &task.test[place.member as usize] } else { task.pairs().nth(place.member as usize).unwrap() };
                let image = form.apply(&pair.input);
                // Found where it stands: the first token that is a colour is its corner.
                let corner = set.input(i).iter().position(|&t| t >= COLOUR).unwrap();
                assert!(!is_test || corner == 0);
                let mut expected = vec![0; 36];
                image.place(6, corner / 6, corner % 6, &mut expected);
                assert_eq!(set.input(i), expected);
                form.apply(&pair.output).place(6, corner / 6, corner % 6, &mut expected);
                assert_eq!(set.label(i), expected);
                places.insert((corner, is_test));
            }
        }
        assert!(places.len() > 6, "{places:?}");
        // The asked test pairs are in no training example.
        let trained: HashSet<(u32, u32)> = data.train.places.iter().map(|p| (p.group, p.member)).collect();
        assert!((3..6).all(|group| !trained.contains(&(group, 3))) && (0..3).all(|group| trained.contains(&(group, 3))));
        let small = DatasetOptions { size: 3, ..options };
        assert!(dataset(&open, &asked, &small).unwrap().left_out > 0);
        assert!(dataset(&[], &[], &small).unwrap_err().to_string().contains("none of the 0 tasks fits"));
    }

    #[test]
    fn the_most_frequent_answer_wins_and_q_breaks_ties() {
        let [a, b, c] = ["1", "2", "3"].map(picture);
        let votes = [(&a, 1.0), (&b, 0.0), (&c, 5.0), (&b, 0.5), (&a, -3.0), (&c, 1.0), (&c, -9.0)];
        assert_eq!(vote(votes.map(|(p, q)| (p.clone(), q))), [c, b, a]);
        assert!(vote([]).is_empty());
    }

    #[test]
    fn bad_tasks_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            fs::write(dir.path().join("x.json"), text).unwrap();
            format!("{:#}", read_folder(dir.path()).unwrap_err())
        };
        assert!(read_folder(dir.path()).unwrap_err().to_string().contains("no .json file"));
        let task =
            |input: &str| format!(r#"{{"train": [{{"input": {input}, "output": [[1]]}}], "test": [{{"input": [[1]], "output": [[1]]}}]}}"#);
        assert!(error(&task("[[1, 2], [3]]")).contains("grid of 2 rows whose first has 2 cells"));
        assert!(error(&task("[[1, 10]]")).contains("x.json is no ARC task: colour 10"), "{}", error(&task("[[1, 10]]")));
        assert!(error(&task("[]")).contains("grid of 0 rows"));
        assert!(error("{}").contains("train"));
        fs::write(dir.path().join("x.json"), task("[[1, 2]]")).unwrap();
        let read = read_folder(dir.path()).unwrap();
        assert_eq!((read[0].name.as_str(), read[0].largest()), ("x", 2));
    }
}
