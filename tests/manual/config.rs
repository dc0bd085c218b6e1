//! kurultai.toml(5).

use std::collections::BTreeSet;
use std::fs;

use kurultai::config::{Absent, ENV_ONLY, KEYS, Key, Kind, Rule};

use super::page::{CONFIG, entries, names, root, section};

/// The line that begins a key's entry: type, range, default, reload.
fn facts(key: &Key) -> String {
    let kind = match key.kind {
        Kind::Flag => "True or false".to_owned(),
        Kind::Integer { min, max } => format!("Integer, {min} to {max}"),
        Kind::Ratio { min, max } => format!("Number, {min} to {max}"),
        Kind::Choice(among) => format!("One of {}", among.join(", ")),
        Kind::Priority => "Priority".to_owned(),
        Kind::Text(rule) => text_rule(rule).to_owned(),
        Kind::Texts { rule, some } => {
            let of = match rule {
                Rule::Host => "host names",
                Rule::Variable => "names of variables",
                Rule::Any
                | Rule::Filled
                | Rule::AbsolutePath
                | Rule::SocketDirectory
                | Rule::OptionalPath
                | Rule::Name
                | Rule::OptionalName
                | Rule::Listen => "texts",
            };
            format!("List of {of}{}", if some { ", at least one" } else { "" })
        }
        Kind::Choices(among) => format!("List of {}, at least one", among.join(", ")),
        Kind::Integers { min, max } => format!("List of integers, {min} to {max}, at least one"),
        Kind::Levels { min, max, .. } => format!("Table of integers by priority, {min} to {max}"),
        Kind::Environment => "Table of texts".to_owned(),
        Kind::Payload => "Any value".to_owned(),
    };
    let absent = match key.absent {
        Absent::Default => format!("default {}", key.example),
        Absent::Required => "required".to_owned(),
        Absent::Means(means) => format!("default {means}"),
    };
    // Agents, schedules and breakers are reloaded as a whole, which their sections say.
    let reload = if key.reload && !key.is_pattern() { "; reload" } else { "" };
    format!("{kind}; {absent}{reload}.")
}

fn text_rule(rule: Rule) -> &'static str {
    match rule {
        Rule::Any => "Text",
        Rule::Filled => "Text, not empty",
        Rule::AbsolutePath => "Absolute path",
        Rule::SocketDirectory => "Absolute path, at most 93 bytes",
        Rule::OptionalPath => "Absolute path or \"\"",
        Rule::Name => "Name",
        Rule::OptionalName => "Name or \"\"",
        Rule::Listen => "Address:port or \"\"",
        Rule::Host => "Host name",
        Rule::Variable => "Name of a variable",
    }
}

fn heading(key: &Key) -> String {
    match (key.section(), key.is_pattern()) {
        ("schedules", _) => ".Ss [[schedules]]".to_owned(),
        (section, true) => format!(".Ss [{section}.NAME]"),
        (section, false) => format!(".Ss [{section}]"),
    }
}

#[test]
fn the_configuration_page_has_every_key_with_its_facts_and_no_other() {
    let mut missing = Vec::new();
    for key in KEYS {
        let section = section(CONFIG, &heading(key));
        match entries(section, "Cm").into_iter().find(|(name, _)| *name == key.field()) {
            Some((_, text)) if text.lines().next() == Some(facts(key).as_str()) => {}
            Some((_, text)) => missing.push(format!("{}: {:?}, not {:?}", key.path, text.lines().next(), facts(key))),
            None => missing.push(format!("{}: {}", key.path, facts(key))),
        }
        let fields: BTreeSet<&str> =
            KEYS.iter().filter(|other| heading(other) == heading(key)).map(Key::field).collect();
        assert_eq!(names(section, "Cm"), fields, "{}", heading(key));
        assert!(!key.is_pattern() || key.reload, "{} is not reloaded, which its section says", key.path);
    }
    assert!(missing.is_empty(), "in man/kurultai.toml.5:\n{}", missing.join("\n"));
}

#[test]
fn the_configuration_page_has_every_old_name() {
    let environment = section(CONFIG, ".Sh ENVIRONMENT");
    for key in KEYS {
        if let Some(old) = key.v21 {
            let line = format!(".It Ev {old} Ta Cm {}\n", key.path);
            assert!(environment.contains(&line), "{line}");
        }
    }
    for name in ENV_ONLY {
        assert!(environment.contains(&format!(".It Ev {name}\n")), "{name}");
    }
}

#[test]
fn the_configuration_page_s_example_and_the_files_of_conf_are_valid() {
    let example = section(CONFIG, ".Sh EXAMPLES");
    let (_, example) = example.split_once(".Bd -literal -offset indent\n").expect("an example");
    let (example, _) = example.split_once(".Ed").expect("its end");
    let mut texts = vec![("the example of kurultai.toml(5)".to_owned(), example.to_owned())];
    for entry in fs::read_dir(root().join("conf")).expect("conf").map(|entry| entry.expect("an entry").path()) {
        if entry.extension().is_some_and(|extension| extension == "toml") {
            texts.push((entry.display().to_string(), fs::read_to_string(&entry).expect("a text")));
        }
    }
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for (number, text) in readme.split("```toml\n").skip(1).enumerate() {
        texts.push((format!("README.md, snippet {number}"), text.split("```").next().expect("its end").to_owned()));
    }
    for (name, text) in texts {
        let loaded = kurultai::config::parse(&text, &name, [], None).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
    }
}
