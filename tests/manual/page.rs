//! A page read as text, and the source code it is held against.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

pub const DAEMON: &str = include_str!("../../man/kurultaid.8");
pub const CONFIG: &str = include_str!("../../man/kurultai.toml.5");
pub const API: &str = include_str!("../../man/kurultai-api.7");
pub const SIMULATE: &str = include_str!("../../man/kurultai-simulate.7");
pub const SPOOL: &str = include_str!("../../man/kurultai-spool.5");
pub const PROTOCOL: &str = include_str!("../../man/kurultai-protocol.7");

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text between a heading (`.Sh NAME`, `.Ss NAME`) and the next one of its kind or above.
pub fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("the page has no {heading}"));
    let text = &page[start + heading.len() + 2..];
    let nexts = if heading.starts_with(".Ss") { &["\n.Ss ", "\n.Sh "][..] } else { &["\n.Sh "][..] };
    let end = nexts.iter().filter_map(|next| text.find(next)).min().unwrap_or(text.len());
    &text[..end]
}

/// The entries of a list: the words after `.It <macro> ` and the text up to the next entry of that kind.
pub fn entries<'a>(text: &'a str, kind: &str) -> Vec<(&'a str, &'a str)> {
    let marker = format!("\n.It {kind} ");
    let starts: Vec<usize> = text.match_indices(&marker).map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let entry = |(start, end): (&usize, usize)| {
        let entry = &text[start + marker.len()..end];
        entry.split_once('\n').unwrap_or((entry, ""))
    };
    starts.iter().zip(ends).map(entry).collect()
}

pub fn names<'a>(text: &'a str, kind: &str) -> BTreeSet<&'a str> {
    entries(text, kind).into_iter().map(|(head, _)| head.split(' ').next().expect("a word")).collect()
}

/// Words that stand in double quotes in source code and satisfy `is_one`.
pub fn quoted_words(source: &str, is_one: impl Fn(&str) -> bool) -> BTreeSet<String> {
    source.split('"').skip(1).filter(|word| is_one(word)).map(str::to_owned).collect()
}

/// A source file without its unit tests.
pub fn source(path: &str) -> String {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.split("#[cfg(test)]\nmod tests").next().expect("a first part").to_owned()
}
