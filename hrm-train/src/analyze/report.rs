//! What an experiment found, and the pages made of it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::svg::escape;
use crate::checkpoint::write_atomic;

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(caption: &str, head: &[&str]) -> Self {
        Self { caption: caption.into(), head: head.iter().map(|&h| h.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

/// A plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// File name without its ending.
    pub name: String,
    /// What it shows.
    pub caption: String,
    /// The picture.
    pub svg: String,
}

/// One experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// Name of the experiment on the command line.
    pub name: String,
    /// Heading.
    pub title: String,
    /// How the figures came about: the definition of every measure.
    pub method: Vec<String>,
    /// What came out, beside what the paper says.
    pub findings: Vec<String>,
    /// Figures.
    pub tables: Vec<Table>,
    /// Pictures.
    pub plots: Vec<Plot>,
    /// All figures, for other programs.
    pub data: serde_json::Value,
}

impl Section {
    /// Writes `NAME.json` and the plots.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, folder: &Path, fingerprint: &str) -> anyhow::Result<()> {
        for plot in &self.plots {
            write_atomic(&folder.join(format!("{}.svg", plot.name)), plot.svg.as_bytes())?;
        }
        for (i, table) in self.tables.iter().enumerate() {
            let mut csv = csv::Writer::from_writer(Vec::new());
            csv.write_record(&table.head)?;
            table.rows.iter().try_for_each(|row| csv.write_record(row))?;
            write_atomic(&folder.join(format!("{}-{}.csv", self.name, i + 1)), &csv.into_inner()?)?;
        }
        keep(&folder.join(format!("{}.json", self.name)), self, fingerprint)
    }
}

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    fingerprint: String,
    value: T,
}

/// Writes what a later run with the same fingerprint takes up.
///
/// # Errors
/// The file system refuses.
pub fn keep<T: Serialize>(path: &Path, value: &T, fingerprint: &str) -> anyhow::Result<()> {
    write_atomic(path, &serde_json::to_vec(&Kept { fingerprint: fingerprint.into(), value })?)
}

/// What an earlier run with the same fingerprint left.
#[must_use]
pub fn kept<T: DeserializeOwned>(path: &Path, fingerprint: &str) -> Option<T> {
    let kept: Kept<T> = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (kept.fingerprint == fingerprint).then_some(kept.value)
}

/// One page that needs no other file.
#[must_use]
pub fn html(title: &str, about: &[String], sections: &[Section]) -> String {
    let mut out = format!(
        "<!doctype html><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{0}</title><style>\
         :root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}}td,th{{border-bottom:1px solid #8886;padding:.2rem .6rem;text-align:left}}\
         caption{{text-align:left;font-weight:600}}svg{{max-width:100%;height:auto}}figure{{margin:1rem 0}}code,pre{{font-size:.85em;overflow-x:auto}}</style><h1>{0}</h1>",
        escape(title)
    );
    for line in about {
        let _ = write!(out, "<p>{}</p>", inline(line));
    }
    for s in sections {
        let _ = write!(out, "<h2 id={0}>{1}</h2>", s.name, escape(&s.title));
        for line in s.method.iter().chain(&s.findings) {
            let _ = write!(out, "<p>{}</p>", inline(line));
        }
        for t in &s.tables {
            let _ = write!(out, "<table><caption>{}</caption><tr>", escape(&t.caption));
            t.head.iter().for_each(|h| out += &format!("<th>{}</th>", inline(h)));
            for row in &t.rows {
                out += "<tr>";
                row.iter().for_each(|c| out += &format!("<td>{}</td>", inline(c)));
            }
            out += "</table>";
        }
        for p in &s.plots {
            let _ = write!(out, "<figure>{}<figcaption>{}</figcaption></figure>", p.svg, escape(&p.caption));
        }
    }
    out
}

/// The same for a repository: Markdown with the pictures beside it, under `pictures`.
#[must_use]
pub fn markdown(title: &str, about: &[String], sections: &[Section], pictures: &str) -> String {
    let mut out = format!("# {title}\n");
    for line in about {
        let _ = write!(out, "\n{line}\n");
    }
    for s in sections {
        let _ = write!(out, "\n## {}\n", s.title);
        for line in s.method.iter().chain(&s.findings) {
            let _ = write!(out, "\n{line}\n");
        }
        for t in &s.tables {
            let line = |cells: &[String]| format!("| {} |\n", cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "));
            let _ = write!(out, "\n{}:\n\n{}|{}\n", t.caption, line(&t.head), "---|".repeat(t.head.len()));
            t.rows.iter().for_each(|row| out += &line(row));
        }
        for p in &s.plots {
            let _ = write!(out, "\n![{}]({pictures}/{}.svg)\n\n{}\n", p.caption, p.name, p.caption);
        }
    }
    out
}

/// Escapes, and turns `code` and **strong** into markup.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in escape(text).split('`').enumerate() {
        if i % 2 == 1 {
            let _ = write!(out, "<code>{part}</code>");
        } else {
            for (j, piece) in part.split("**").enumerate() {
                out += &if j % 2 == 1 { format!("<b>{piece}</b>") } else { piece.to_owned() };
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        let mut table = Table::new("of 3", &["a", "b"]);
        table.row(["1 | 2".into(), "<3".into()]);
        let plot = Plot { name: "p".into(), caption: "c".into(), svg: "<svg></svg>".into() };
        Section {
            name: "easy".into(),
            title: "T".into(),
            method: vec!["`x` **y**".into()],
            tables: vec![table],
            plots: vec![plot],
            ..Section::default()
        }
    }

    #[test]
    fn pages() {
        let page = html("t", &[], &[section()]);
        assert!(page.contains("<code>x</code> <b>y</b>") && page.contains("&lt;3") && page.contains("<svg></svg>"));
        let text = markdown("t", &[], &[section()], "pics");
        assert!(text.contains("| 1 \\| 2 | <3 |") && text.contains("![c](pics/p.svg)"), "{text}");
    }

    #[test]
    fn only_the_same_run_is_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        section().save(folder.path(), "one").unwrap();
        let file = folder.path().join("easy.json");
        assert_eq!((kept(&file, "one"), kept::<Section>(&file, "two")), (Some(section()), None));
        assert!(folder.path().join("p.svg").exists() && folder.path().join("easy-1.csv").exists());
    }
}
