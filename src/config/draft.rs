//! A configuration in the making: defaults, then the file, then the environment, then [`Config`].
//!
//! Owns the tree of checked values, the origins and the problems met on the way. May import toml's and serde_json's
//! values. Must never know how values relate: that is `relations`.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Absent, ITEMS_MAX, Key, Rule, SECTIONS};
use super::problem::{ConfigError, Lines, Origin, Origins, Problem, nearest, quoted};
use super::value::{bare_or_quoted, check, default_of, found};
use super::{Config, Loaded, relations};

/// More syntax errors than this are consequences of the first ones.
const SYNTAX_ERRORS_MAX: usize = 10;

pub(super) struct Draft {
    /// The shape of [`Config`]. A value with a problem is left at its default here, and is in `bad`.
    tree: Map<String, Value>,
    pub(super) origins: Origins,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    /// Paths that already have a problem: no further ones are deduced from them.
    bad: BTreeSet<String>,
    lines: Lines,
}

impl Draft {
    /// The defaults; `file` is only a name.
    pub(super) fn new(file: &str) -> Self {
        Draft {
            tree: default_tree(),
            origins: Origins::new(file),
            problems: Vec::new(),
            warnings: Vec::new(),
            bad: BTreeSet::new(),
            lines: Lines::new(""),
        }
    }

    /// `false` if the text is no TOML: then the problems are those of its syntax, and nothing else can be said.
    pub(super) fn read_file(&mut self, text: &str) -> bool {
        self.lines = Lines::new(text);
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut told = BTreeSet::new();
        for error in errors.iter().take(SYNTAX_ERRORS_MAX) {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            // Why one a line: what follows on it is read wrongly for the same reason.
            if told.insert(self.lines.line(at)) {
                let message = error.message().trim_end_matches(", expected nothing");
                let what = format!("column {}: {message}", self.lines.column(text, at));
                self.problem_at(at, "", what, "mend the TOML".to_string());
            }
        }
        if !errors.is_empty() {
            return false;
        }
        for (name, value) in document.get_ref() {
            self.root_key(name, value);
        }
        true
    }

    /// Puts a checked value where a variable said.
    pub(super) fn set_from_env(&mut self, key: &Key, variable: &str, value: &Spanned<DeValue<'_>>) {
        let path = key.path.to_string();
        self.origins.set(path.clone(), Origin::Env { name: variable.into() });
        // The variable replaces the file's value, whatever was wrong with that.
        self.bad.remove(&path);
        match check(key, value) {
            Ok(value) => {
                if let Some(Value::Object(section)) = self.tree.get_mut(key.section()) {
                    section.insert(key.field().to_string(), value);
                }
            }
            Err(faults) => {
                self.bad.insert(path.clone());
                for fault in faults {
                    self.env_problem(variable, &format!("{path}{}", fault.within), fault.what, fault.fix);
                }
            }
        }
    }

    /// Sets `every_s` of every schedule at heartbeat priority; `false` if there is none.
    pub(super) fn set_heartbeat_interval(&mut self, variable: &str, every_s: i64) -> bool {
        let Some(Value::Array(schedules)) = self.tree.get_mut("schedules") else { return false };
        let mut any = false;
        for (index, schedule) in schedules.iter_mut().enumerate() {
            if schedule["priority"] == "heartbeat" {
                any = true;
                let path = format!("{}.every_s", schedule_path(index, schedule["name"].as_str().unwrap_or("")));
                schedule["every_s"] = Value::from(every_s);
                self.origins.set(path, Origin::Env { name: variable.into() });
            }
        }
        any
    }

    pub(super) fn set_gc_on_pressure(&mut self, variable: &str, on: bool) {
        self.tree.insert("gc_on_pressure".to_string(), Value::Bool(on));
        self.origins.set("gc_on_pressure".to_string(), Origin::Env { name: variable.into() });
    }

    pub(super) fn env_problem(&mut self, variable: &str, key: &str, what: String, fix: String) {
        let file = format!("env {}", variable.escape_debug());
        self.problems.push(Problem { file, line: None, key: key.to_string(), what, fix });
    }

    /// # Errors
    ///
    /// All problems.
    pub(super) fn finish(mut self, host_memory_bytes: Option<u64>) -> Result<Loaded, ConfigError> {
        self.settle();
        match Config::deserialize(Value::Object(std::mem::take(&mut self.tree))) {
            Ok(config) => {
                let found = relations::check(&config, &self.origins, &self.bad, host_memory_bytes);
                self.problems.extend(found.problems);
                self.warnings.extend(found.warnings);
                if self.problems.is_empty() {
                    return Ok(Loaded { config, origins: self.origins, warnings: self.warnings });
                }
            }
            // Why: cannot happen while `KEYS` and the types agree, which the tests hold them to.
            Err(error) => {
                let (what, fix) = (format!("cannot be used: {error}"), "report this as a bug".to_string());
                self.problems.push(self.origins.problem(&[], what, fix));
            }
        }
        Err(self.into_error())
    }

    /// The problems so far, those of the file first and by line.
    pub(super) fn into_error(mut self) -> ConfigError {
        self.problems.sort_by_key(|problem| (problem.file != self.origins.file(), problem.line));
        ConfigError { problems: self.problems }
    }

    /// Values that follow others where nobody set them, and stand-ins for required ones that are not there.
    fn settle(&mut self) {
        let follows = *self.origins.of("workers.soft_limit_mb") == Origin::Default;
        let workers = &mut self.tree["workers"];
        if follows && workers["hard_limit_mb"].as_i64() < workers["soft_limit_mb"].as_i64() {
            workers["soft_limit_mb"] = workers["hard_limit_mb"].clone();
        }
        if let Value::Array(schedules) = &mut self.tree["schedules"] {
            for schedule in schedules {
                if schedule["skippable"].is_null() {
                    schedule["skippable"] = Value::Bool(schedule["priority"] == "heartbeat");
                }
            }
        }
    }

    fn root_key(&mut self, name: &Spanned<std::borrow::Cow<'_, str>>, value: &Spanned<DeValue<'_>>) {
        let at = name.span().start;
        let name = name.get_ref().as_ref();
        match name {
            "agents" | "breakers" => self.named_items(name, at, value),
            "schedules" => self.schedules(at, value),
            section if SECTIONS.contains(&section) => {
                if let Some(table) = self.table(section, at, value) {
                    let map = self.fields(section, section, at, table);
                    self.tree.insert(section.to_string(), Value::Object(map));
                }
            }
            unknown => {
                let fix = if let Some(meant) = nearest(unknown, SECTIONS) {
                    format!("did you mean [{meant}]?")
                } else if let Some(home) = home_of(unknown) {
                    format!("it belongs in [{home}]")
                } else {
                    format!("the sections are {}", SECTIONS.join(", "))
                };
                self.problem_at(at, &bare_or_quoted(unknown), "unknown section".to_string(), fix);
            }
        }
    }

    /// `[agents.NAME]` and `[breakers.NAME]`.
    fn named_items(&mut self, section: &str, at: usize, value: &Spanned<DeValue<'_>>) {
        let Some(table) = self.table(section, at, value) else {
            self.bad.insert(section.to_string());
            return;
        };
        self.count_items(section, at, table.len());
        let mut items = Map::new();
        for (name, value) in table {
            let (at, name) = (name.span().start, name.get_ref().as_ref());
            let path = format!("{section}.{}", bare_or_dotted(name));
            if let Some((what, fix)) = Rule::Name.broken_by(name) {
                self.problem_at(at, &path, format!("{} {what}", quoted(name)), fix);
            }
            let item = match self.table(&path, at, value) {
                Some(table) => self.fields(section, &path, at, table),
                None => {
                    self.bad.extend(keys::of_section(section).map(|key| format!("{path}.{}", key.field())));
                    defaults_of(section)
                }
            };
            items.insert(name.to_string(), Value::Object(item));
        }
        self.tree.insert(section.to_string(), Value::Object(items));
    }

    fn schedules(&mut self, at: usize, value: &Spanned<DeValue<'_>>) {
        let Some(list) = value.get_ref().as_array() else {
            let what = format!("expected a list of tables, found {}", found(value.get_ref()));
            self.problem_at(at, "schedules", what, "begin each schedule with [[schedules]]".to_string());
            return;
        };
        self.count_items("schedules", at, list.len());
        let mut schedules = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let at = item.span().start;
            let name = item.get_ref().get("name").and_then(|name| name.get_ref().as_str()).unwrap_or("");
            let name = if Rule::Name.broken_by(name).is_none() { name } else { "" };
            let path = schedule_path(index, name);
            if let Some(table) = self.table(&path, at, item) {
                let schedule = self.fields("schedules", &path, at, table);
                schedules.push(Value::Object(schedule));
            }
        }
        self.tree.insert("schedules".to_string(), Value::Array(schedules));
    }

    fn count_items(&mut self, section: &str, at: usize, count: usize) {
        if count > ITEMS_MAX {
            let what = format!("there are {count} {section}");
            self.problem_at(at, section, what, format!("keep to {ITEMS_MAX}"));
        }
    }

    fn table<'v, 't>(&mut self, path: &str, at: usize, value: &'v Spanned<DeValue<'t>>) -> Option<&'v DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let what = format!("expected a table, found {}", found(value.get_ref()));
            self.problem_at(at, path, what, "write its keys below a [header], or between { and }".to_string());
        }
        table
    }

    /// The keys of one section, agent, schedule or breaker, over their defaults.
    fn fields(&mut self, section: &str, prefix: &str, at: usize, table: &DeTable<'_>) -> Map<String, Value> {
        let mut map = defaults_of(section);
        for (name, value) in table {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            let path = format!("{prefix}.{}", bare_or_quoted(name));
            let Some(key) = keys::find(section, name) else {
                self.problem_at(at, &path, "unknown key".to_string(), meant_key(section, name));
                continue;
            };
            self.origins.set(path.clone(), Origin::File { line: self.lines.line(at) });
            match check(key, value) {
                Ok(value) => {
                    map.insert(name.to_string(), value);
                }
                Err(faults) => {
                    for fault in faults {
                        self.problem_at(fault.at, &format!("{path}{}", fault.within), fault.what, fault.fix);
                    }
                    self.bad.insert(path);
                }
            }
        }
        for key in keys::of_section(section).filter(|key| key.absent == Absent::Required) {
            if !table.contains_key(key.field()) {
                let path = format!("{prefix}.{}", key.field());
                let fix = format!("add {} = {}", key.field(), key.example);
                self.problem_at(at, &path, "is missing".to_string(), fix);
                self.bad.insert(path);
            }
        }
        map
    }

    fn problem_at(&mut self, offset: usize, key: &str, what: String, fix: String) {
        let file = self.origins.file().to_string();
        self.problems.push(Problem { file, line: Some(self.lines.line(offset)), key: key.to_string(), what, fix });
    }
}

impl Default for Config {
    /// The configuration of an empty file and environment.
    fn default() -> Self {
        // INVARIANT: `KEYS` has a sound default for every field outside agents, schedules and breakers.
        Config::deserialize(Value::Object(default_tree())).expect("the defaults have the shape of a configuration")
    }
}

/// What origins and problems call a schedule: by its name, or by its place if it has no usable one.
pub(super) fn schedule_path(index: usize, name: &str) -> String {
    if name.is_empty() { format!("schedules[{index}]") } else { format!("schedules.{name}") }
}

/// [`Config::default`] as a tree.
fn default_tree() -> Map<String, Value> {
    let mut tree = Map::new();
    for section in SECTIONS {
        let value = match section {
            "agents" | "breakers" => Value::Object(Map::new()),
            "schedules" => Value::Array(Vec::new()),
            _ => Value::Object(defaults_of(section)),
        };
        tree.insert(section.to_string(), value);
    }
    tree.insert("gc_on_pressure".to_string(), Value::Bool(true));
    tree
}

fn defaults_of(section: &str) -> Map<String, Value> {
    keys::of_section(section).map(|key| (key.field().to_string(), default_of(key))).collect()
}

/// A name of an agent or breaker in a path: dots are part of it and need no quotes to be read.
fn bare_or_dotted(name: &str) -> String {
    if Rule::Name.broken_by(name).is_none() { name.to_string() } else { bare_or_quoted(name) }
}

fn meant_key(section: &str, name: &str) -> String {
    if let Some(meant) = nearest(name, keys::of_section(section).map(Key::field)) {
        return format!("did you mean {meant}?");
    }
    match home_of(name) {
        Some(home) => format!("it belongs in [{home}]"),
        None => {
            let known: Vec<_> = keys::of_section(section).map(Key::field).collect();
            format!("the keys of {section} are {}", known.join(", "))
        }
    }
}

/// The section that has a key of that name.
fn home_of(name: &str) -> Option<&'static str> {
    keys::KEYS.iter().find(|key| key.field() == name && !key.is_pattern()).map(Key::section)
}
