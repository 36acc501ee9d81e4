//! Scores on mazes and ARC: exact match, shortest paths whatever the tie-break, and the vote over the forms of a task.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::data::arc::{Form, Picture, vote};
use crate::data::grid::{GridKind, GridSet};
use crate::data::maze::Maze;
use crate::evaluate::{CHUNK, Model, Share, chunk_seed, right_of};

/// Figures after a number of segments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GridScore {
    /// Segments run.
    pub segments: usize,
    /// Right in every cell that counts.
    pub exact: Share,
    /// Mazes: the answer marks a shortest path, whichever, and changes nothing else.
    pub shortest: Option<Share>,
    /// Share of right cells of those that count.
    pub cells: f64,
    /// Examples with a positive halt logit.
    pub q_positive: Share,
}

/// The vote over all forms after the last segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VoteScore {
    /// Forms of a task that voted, on average.
    pub forms: f64,
    /// The most frequent answer is right.
    pub pass_1: Share,
    /// One of the two most frequent answers is right.
    pub pass_2: Share,
}

/// What [`evaluate`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GridReport {
    /// `float` or `int8`.
    pub model: String,
    /// Seed of the starts.
    pub seed: u64,
    /// Examples scored.
    pub examples: usize,
    /// By number of segments, ascending.
    pub segments: Vec<GridScore>,
    /// ARC only.
    pub vote: Option<VoteScore>,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    exact: usize,
    shortest: usize,
    cells: usize,
    positive: usize,
}

/// Scores a model on a set after each of the numbers of segments in `at`. `names`: what the identifiers of ARC stand for, empty for mazes.
///
/// # Errors
/// `at` is empty or holds 0, the set is empty, an identifier has no name, the engine fails.
pub fn evaluate(
    model: &mut dyn Model,
    set: &GridSet,
    names: &[String],
    at: &[usize],
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<GridReport> {
    let (n, tokens, maze) = (set.len(), set.cells(), Maze::new(set.size));
    let last = at.iter().copied().max().filter(|_| !at.contains(&0)).context("the numbers of segments: expected one or more from 1")?;
    ensure!(n > 0, "there is no example to evaluate");
    let mut tally: BTreeMap<usize, Tally> = at.iter().map(|&segments| (segments, Tally::default())).collect();
    let mut of = 0;
    let mut answered = Vec::new();
    for start in (0..n).step_by(CHUNK) {
        let range = start..(start + CHUNK).min(n);
        let identifiers: Vec<usize> = set.places[range.clone()].iter().map(|p| p.identifier as usize).collect();
        let inputs = &set.inputs[range.start * tokens..range.end * tokens];
        of += range.clone().flat_map(|i| set.label(i)).filter(|&&l| l != 0).count();
        model.infer_as(&identifiers, inputs, last, chunk_seed(seed, start / CHUNK), &mut |segment, answers, q_halt| {
            if segment + 1 == last && set.kind == GridKind::Arc {
                answered.extend(answers.chunks(tokens).zip(q_halt).map(|(answer, &q)| (Picture::read(set.size, answer), q)));
            }
            let Some(tally) = tally.get_mut(&(segment + 1)) else { return };
            for (i, answer) in range.clone().zip(answers.chunks(tokens)) {
                let (right, counted) = right_of(answer, set.label(i));
                tally.cells += right;
                tally.exact += usize::from(right == counted);
                tally.shortest += usize::from(set.kind == GridKind::Maze && maze.is_shortest(set.input(i), answer));
            }
            tally.positive += q_halt.iter().filter(|&&q| q > 0.0).count();
        })?;
        progress(range.end);
    }
    let segments = tally.into_iter().map(|(segments, t)| GridScore {
        segments,
        exact: Share::new(t.exact, n),
        shortest: (set.kind == GridKind::Maze).then(|| Share::new(t.shortest, n)),
        cells: t.cells as f64 / of as f64,
        q_positive: Share::new(t.positive, n),
    });
    let vote = if set.kind == GridKind::Arc { Some(voted(set, names, &answered)?) } else { None };
    Ok(GridReport { model: model.kind().to_owned(), seed, examples: n, segments: segments.collect(), vote })
}

/// The vote: each form's answer is turned back into the task's; what no grid can be read from does not vote.
fn voted(set: &GridSet, names: &[String], answered: &[(Option<Picture>, f32)]) -> anyhow::Result<VoteScore> {
    let form = |i: usize| {
        let id = set.places[i].identifier as usize;
        let name = names.get(id).with_context(|| format!("identifier {id} has no name: there are {}", names.len()))?;
        anyhow::Ok(Form::parse(name)?.1)
    };
    // By test input: the answers of all forms, and the right one.
    let mut asked: BTreeMap<(u32, u32), (Vec<(Picture, f32)>, Picture)> = BTreeMap::new();
    for (i, (answer, q)) in answered.iter().enumerate() {
        let form = form(i)?;
        let place = set.places[i];
        let truth = || Picture::read(set.size, set.label(i)).context("a label that is no grid at the upper left corner");
        let entry = match asked.entry((place.group, place.member)) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert((Vec::new(), form.undo(&truth()?))),
        };
        if let Some(answer) = answer {
            entry.0.push((form.undo(answer), *q));
        }
    }
    let inputs = asked.len();
    let (mut first, mut second) = (0, 0);
    for (answers, truth) in asked.into_values() {
        let place = vote(answers).into_iter().position(|answer| answer == truth);
        first += usize::from(place == Some(0));
        second += usize::from(place.is_some_and(|p| p < 2));
    }
    let forms = answered.len() as f64 / inputs as f64;
    Ok(VoteScore { forms, pass_1: Share::new(first, inputs), pass_2: Share::new(second, inputs) })
}

impl fmt::Display for GridReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} model, {} examples, seed {}; 95 % Wilson intervals", self.model, self.examples, self.seed)?;
        writeln!(f, "segments  exact (all cells)            a shortest path              cells    Q > 0")?;
        for s in &self.segments {
            let shortest = s.shortest.map_or_else(|| "-".to_owned(), |s| s.to_string());
            let q = 100.0 * s.q_positive.share;
            writeln!(f, "{:8}  {}  {shortest:27}  {:6.2} %  {q:.2} %", s.segments, s.exact, 100.0 * s.cells)?;
        }
        if let Some(vote) = &self.vote {
            writeln!(f, "vote of {:.1} forms of each of {} test inputs", vote.forms, vote.pass_1.of)?;
            writeln!(f, "pass@1 {}\npass@2 {}", vote.pass_1, vote.pass_2)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::arc::{Dataset, DatasetOptions, Pair, Task, dataset};
    use crate::data::maze::{FREE, MazeOptions, PATH, generate};

    /// Answers from a list: `answers[segment][example]`.
    struct Script {
        answers: Vec<Vec<Vec<u8>>>,
        done: usize,
        identifiers: Vec<usize>,
    }

    impl Model for Script {
        fn kind(&self) -> &'static str {
            "float"
        }

        fn infer(
            &mut self,
            inputs: &[u8],
            segments: usize,
            seed: u64,
            observe: &mut dyn FnMut(usize, &[u8], &[f32]),
        ) -> anyhow::Result<()> {
            self.infer_as(&[], inputs, segments, seed, observe)
        }

        fn infer_as(
            &mut self,
            identifiers: &[usize],
            inputs: &[u8],
            segments: usize,
            _: u64,
            observe: &mut dyn FnMut(usize, &[u8], &[f32]),
        ) -> anyhow::Result<()> {
            self.identifiers.extend_from_slice(identifiers);
            let n = inputs.len() / self.answers[0][0].len();
            for segment in 0..segments {
                observe(segment, &self.answers[segment][self.done..self.done + n].concat(), &vec![1.0; n]);
            }
            self.done += n;
            Ok(())
        }
    }

    #[test]
    fn another_shortest_path_is_valid_and_not_exact() {
        let set = &generate(&MazeOptions { size: 6, seed: 5, shortest: 4, unique: false }, CHUNK + 8).unwrap();
        let maze = Maze::new(6);
        // One cell of the path moved to any free cell: mostly wrong, now and then another shortest path.
        let cells = |i: usize, token: u8| (0..36).filter(move |&at| set.label(i)[at] == token);
        let other = |i: usize| {
            let mut moved = cells(i, PATH).flat_map(|from| cells(i, FREE).map(move |to| (from, to))).map(|(from, to)| {
                let mut answer = set.label(i).to_vec();
                answer.swap(from, to);
                answer
            });
            moved.find(|a| maze.is_shortest(set.input(i), a))
        };
        let wrong = |i: usize| set.input(i).to_vec();
        let n = set.len();
        let answers = vec![
            (0..n).map(wrong).collect(),
            (0..n).map(|i| if i % 2 == 0 { set.label(i).to_vec() } else { other(i).unwrap_or(wrong(i)) }).collect(),
        ];
        let others = (1..n).step_by(2).filter(|&i| other(i).is_some()).count();
        assert!(others > 8, "{others}");
        let mut script = Script { answers, done: 0, identifiers: Vec::new() };
        let report = evaluate(&mut script, set, &[], &[2, 1], 0, &mut |_| {}).unwrap();
        let counts = report.segments.iter().map(|s| (s.segments, s.exact.count, s.shortest.unwrap().count)).collect::<Vec<_>>();
        assert_eq!(counts, [(1, 0, 0), (2, n.div_ceil(2), n.div_ceil(2) + others)]);
        assert!(report.segments[1].cells > 0.8 && report.vote.is_none());
        assert!(report.to_string().contains("a shortest path"));
        assert!(evaluate(&mut script, set, &[], &[0, 1], 0, &mut |_| {}).is_err());
    }

    #[test]
    fn forms_vote_after_they_are_turned_back() {
        let pair = |cells: [u8; 6]| {
            let input = Picture { rows: 2, cols: 3, cells: cells.to_vec() };
            Pair { output: input.clone(), input }
        };
        let task = |name: &str, cells| Task {
            name: name.into(),
            train: vec![pair([1, 2, 3, 0, 0, 5])],
            test: vec![pair(cells), pair([0, 1, 0, 2, 3, 4])],
        };
        let tasks = [task("a", [1, 2, 0, 4, 0, 0]), task("b", [7, 0, 0, 0, 8, 0])];
        let Dataset { test, names, .. } = dataset(&[], &tasks, &DatasetOptions { size: 5, copies: 4, seed: 2 }).unwrap();
        assert_eq!(test.len(), 2 * 2 * 5);
        // Task a: three of five forms answer the first input right, two the second, where three agree on another answer; task b: none.
        let mut form = 0;
        let answers: Vec<Vec<u8>> = (0..20)
            .map(|i| {
                let place = test.places[i];
                form = if place.member == 0 { (form + 1) % 5 } else { form };
                let right = match (place.group, place.member) {
                    (0, 0) => form < 3,
                    (0, 1) => form < 2,
                    _ => false,
                };
                // The same wrong answer in every form: the other test input of the task.
                if right { test.label(i).to_vec() } else { test.label(i ^ 1).to_vec() }
            })
            .collect();
        let mut script = Script { answers: vec![answers.clone()], done: 0, identifiers: Vec::new() };
        let report = evaluate(&mut script, &test, &names, &[1], 0, &mut |_| {}).unwrap();
        let found = report.vote.clone().unwrap();
        assert_eq!((found.forms, found.pass_1.count, found.pass_2.count, found.pass_1.of), (5.0, 1, 2, 4));
        assert_eq!(report.segments[0].exact.count, 5);
        assert_eq!(script.identifiers, test.places.iter().map(|p| p.identifier as usize).collect::<Vec<_>>());
        assert!(report.to_string().contains("pass@2"));
        let mut script = Script { answers: vec![answers], done: 0, identifiers: Vec::new() };
        let error = evaluate(&mut script, &test, &names[..3], &[1], 0, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("identifier 3 has no name"), "{error}");
    }
}
