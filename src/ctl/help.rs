//! Help texts, and hints for words that are nearly right.
//!
//! Owns their layout. May import the catalogue. Must never know what was typed beyond the one wrong word.

use super::catalogue::{COMMANDS, CommandSpec, GLOBAL, OptionSpec, ValueSpec};
use std::fmt::Write;

pub fn overall() -> String {
    let mut text =
        String::from("Talk to kurultaid, the memory governor.\n\nUsage: kurultaictl [OPTIONS] COMMAND ...\n");
    text.push_str("\nCommands:\n");
    for command in COMMANDS {
        line(&mut text, &format!("{} {}", command.name, command.operands), command.about);
    }
    options(&mut text, "Options, before or after the command", GLOBAL);
    text.push_str("\nkurultaictl COMMAND --help explains one. Exit statuses: see kurultaictl(1).\n");
    text
}

pub fn of(command: &CommandSpec) -> String {
    let operands = if command.operands.is_empty() { String::new() } else { format!(" {}", command.operands) };
    let mut text = format!("Usage: kurultaictl {} [OPTIONS]{operands}\n\n{}\n", command.name, sentence(command.about));
    if !command.options.is_empty() {
        options(&mut text, "Options", command.options);
    }
    options(&mut text, "Options of every command", GLOBAL);
    text
}

fn options(text: &mut String, title: &str, options: &[OptionSpec]) {
    let _ = write!(text, "\n{title}:\n");
    for option in options {
        line(text, &spelled(option), option.about);
    }
}

/// `--wait[=S]`, `--priority P`, `--json`.
pub fn spelled(option: &OptionSpec) -> String {
    match option.value {
        ValueSpec::None => format!("--{}", option.name),
        ValueSpec::Required(value) => format!("--{} {value}", option.name),
        ValueSpec::Optional(value) => format!("--{}[={value}]", option.name),
    }
}

const ABOUT_AT: usize = 25;

fn line(text: &mut String, left: &str, about: &str) {
    let left = left.trim_end();
    let _ = write!(text, "  {left:<width$}", width = ABOUT_AT - 2);
    if left.len() > ABOUT_AT - 3 {
        let _ = write!(text, "\n{:ABOUT_AT$}", "");
    }
    for (index, piece) in super::text::wrap(about, 79 - ABOUT_AT).iter().enumerate() {
        if index > 0 {
            let _ = write!(text, "{:ABOUT_AT$}", "");
        }
        let _ = writeln!(text, "{piece}");
    }
}

fn sentence(about: &str) -> String {
    let mut chars = about.chars();
    chars.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), chars.as_str()))
}

/// The known word a mistyped one was probably meant to be, if one is near.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = 1 + typed.chars().count() / 4;
    known
        .into_iter()
        .map(|word| (distance(typed, word), word))
        .filter(|(far, word)| *far <= allowed || (typed.len() >= 3 && word.starts_with(typed)))
        .min()
        .map(|(_, word)| word)
}

/// Levenshtein's distance: insertions, deletions and replacements between two words.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_help_is_wider_than_a_terminal() {
        for text in COMMANDS.iter().map(of).chain([overall()]) {
            for line in text.lines() {
                assert!(line.chars().count() <= 79, "too wide: {line:?}");
            }
        }
    }

    #[test]
    fn a_slip_of_the_finger_finds_the_word() {
        for (typed, expected) in [
            ("statsu", Some("status")),
            ("sub", Some("submit")),
            ("worker", Some("workers")),
            ("explode", None),
            ("x", None),
        ] {
            let found = nearest(typed, ["status", "submit", "workers", "queue"]);
            assert_eq!(found, expected, "{typed}");
        }
    }
}
