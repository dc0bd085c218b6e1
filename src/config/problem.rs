//! What is wrong, where, and what to do; and where each value came from.
//!
//! Owns [`Problem`], [`ConfigError`], [`Origins`] and the search for what somebody may have meant. May import std and
//! thiserror. Must never know which keys there are.

use std::collections::BTreeMap;
use std::fmt;

/// One thing to mend. Shown as `file:line: key: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named, or `env NAME`.
    pub file: String,
    /// From 1; `None` for the environment and for the file as a whole.
    pub line: Option<usize>,
    /// `""` where no single key is to blame.
    pub key: String,
    pub what: String,
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.what, self.fix)
    }
}

/// Why a configuration cannot be used: every problem found, one a line, those of the file in its order first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { line: usize },
    Env { name: Box<str> },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { line } => write!(f, "file:{line}"),
            Origin::Env { name } => write!(f, "env {name}"),
        }
    }
}

/// Where every value came from. Defaults take no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    file: String,
    set: BTreeMap<String, Origin>,
}

impl Origins {
    pub(super) fn new(file: &str) -> Self {
        Origins { file: file.to_string(), set: BTreeMap::new() }
    }

    /// The file as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Of `memory.limit_mb`, `agents.wc.command`, `schedules.nightly.every_s`; a path nobody set is a default.
    pub fn of(&self, path: &str) -> &Origin {
        self.set.get(path).unwrap_or(&Origin::Default)
    }

    pub(super) fn set(&mut self, path: String, origin: Origin) {
        self.set.insert(path, origin);
    }

    /// A problem at the last of `paths` that somebody set: that is the one to look at, a default is not.
    pub fn problem(&self, paths: &[&str], what: String, fix: String) -> Problem {
        let key = paths.iter().rev().find(|path| self.set.contains_key(**path)).or(paths.first());
        let key = key.map_or("", |path| *path).to_string();
        let (file, line) = match self.of(&key) {
            Origin::Default => (self.file.clone(), None),
            Origin::File { line } => (self.file.clone(), Some(*line)),
            Origin::Env { name } => (format!("env {name}"), None),
        };
        Problem { file, line, key, what, fix }
    }
}

/// Byte offsets to line numbers.
pub(super) struct Lines {
    newlines: Vec<usize>,
}

impl Lines {
    pub(super) fn new(text: &str) -> Self {
        Lines { newlines: text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect() }
    }

    /// From 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.newlines.partition_point(|newline| *newline < offset) + 1
    }

    /// In characters, from 1; `text` is what the lines were made of.
    pub(super) fn column(&self, text: &str, offset: usize) -> usize {
        let start = self.line(offset).checked_sub(2).map_or(0, |previous| self.newlines[previous] + 1);
        text.get(start..offset).map_or(offset - start, |before| before.chars().count()) + 1
    }
}

/// The candidate somebody who wrote `word` most likely meant; `None` if none is close.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let word: String = plain(word).chars().take(80).collect();
    let within = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= within && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements between two words, a swap of neighbours counting as one (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut least = (last[j] + usize::from(a[i] != b[j])).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Foreign text for a message: at most 40 characters, nothing that could move a terminal's cursor.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(40).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!("{:?}", format!("{shown}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_close_or_none() {
        let words = ["max_depth", "priority_limits", "mode", "max", "user"];
        for (word, expected) in [
            ("max_dept", Some("max_depth")),
            ("maxdepth", Some("max_depth")),
            ("Max-Depth", Some("max_depth")),
            ("priority_limit", Some("priority_limits")),
            ("mdoe", Some("mode")),
            ("xam", None),
            ("mx", Some("max")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, words), expected, "{word}");
        }
    }

    #[test]
    fn lines_and_columns_count_from_one() {
        let text = "a\nbö c\n\nd";
        let lines = Lines::new(text);
        for (offset, line, column) in [(0, 1, 1), (1, 1, 2), (2, 2, 1), (6, 2, 4), (8, 3, 1), (9, 4, 1)] {
            assert_eq!((lines.line(offset), lines.column(text, offset)), (line, column), "offset {offset}");
        }
    }

    #[test]
    fn foreign_text_is_short_and_has_no_control_characters() {
        assert_eq!(quoted("a\x1b[2J"), "\"a\\u{1b}[2J\"");
        assert_eq!(quoted(&"x".repeat(50)), format!("\"{}…\"", "x".repeat(40)));
    }
}
