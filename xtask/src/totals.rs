//! Committed totals of instructions, a line each (`NAME COUNT`, names may hold spaces): they may fall, not grow by more than 2 %.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Compares `found` with the totals of `file`; with `bless` writes them there, below the comment `head`.
///
/// # Errors
/// A total has grown or has nothing committed, or the file cannot be read or written.
pub fn settle(file: &Path, head: &str, found: &BTreeMap<String, u64>, bless: bool) -> Result<()> {
    if bless {
        let lines = found.iter().map(|(name, count)| format!("{name} {count}\n"));
        let text = format!("# {head}\n") + &lines.collect::<String>();
        return fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()));
    }
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| -> Result<(String, u64)> {
        let place = || format!("{line:?} in {}, expected a name and a count", file.display());
        let (name, count) = line.rsplit_once(' ').with_context(place)?;
        Ok((name.to_owned(), count.parse().with_context(place)?))
    };
    let committed = text.lines().filter(|l| !l.starts_with('#')).map(line).collect::<Result<BTreeMap<_, _>>>()?;
    let grown = |(name, &count): (&String, &u64)| match committed.get(name) {
        Some(&before) => (u128::from(count) * 100 > u128::from(before) * 102).then(|| format!("{name}: {count}, committed {before}")),
        None => Some(format!("{name}: {count}, nothing committed")),
    };
    let grown: Vec<String> = found.iter().filter_map(grown).collect();
    ensure!(grown.is_empty(), "more instructions than committed in {}:\n{}", file.display(), grown.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_may_fall_but_not_grow() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("totals.txt");
        let totals = |a, b| BTreeMap::from([("core avx2".to_owned(), a), ("core scalar".to_owned(), b)]);
        settle(&file, "Instructions.", &totals(1000, 100), true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "# Instructions.\ncore avx2 1000\ncore scalar 100\n");
        settle(&file, "", &totals(1020, 90), false).unwrap();
        let error = settle(&file, "", &totals(1021, 90), false).unwrap_err().to_string();
        assert!(error.ends_with("core avx2: 1021, committed 1000"), "{error}");
        let error = settle(&file, "", &BTreeMap::from([("other".to_owned(), 1)]), false).unwrap_err().to_string();
        assert!(error.ends_with("other: 1, nothing committed"), "{error}");
        fs::write(&file, "core avx2 many\n").unwrap();
        assert!(settle(&file, "", &totals(1, 1), false).is_err());
    }
}
