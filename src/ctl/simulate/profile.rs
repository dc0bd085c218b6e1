//! A load profile from its file: every mistake found in one go, each with its line and what to do.
//!
//! Owns the reading and the relations between keys. May import the configuration's problems and the simulation's load.
//! Must never know how a load is simulated.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::help::nearest;
use super::keys::{self, PROFILE_MAX, SUBMISSIONS_MAX, Without};
use super::value::{Value, check};
use crate::config::{Config, Problem};
use crate::core::ids::AgentName;
use crate::simulation::load::{Load, Phase, Spread, Work};

const MIB: f64 = 1_048_576.0;

/// # Errors
///
/// Every problem found, at least one.
pub fn read(path: &Path, config: &Config) -> Result<Load, Vec<Problem>> {
    let file = path.display().to_string();
    let unreadable = |what: String, fix: &str| {
        vec![Problem { file: file.clone(), line: None, key: String::new(), what, fix: fix.to_owned() }]
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path).and_then(|file| file.take(PROFILE_MAX + 1).read_to_end(&mut bytes));
    if let Err(error) = opened {
        return Err(unreadable(format!("cannot be read: {error}"), "name a profile that is there and may be read"));
    }
    if bytes.len() as u64 > PROFILE_MAX {
        return Err(unreadable(format!("is larger than {PROFILE_MAX} bytes"), "check that this is a profile"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => parse(&text, &file, config),
        Err(_) => Err(unreadable("is not UTF-8".to_owned(), "save the file as UTF-8")),
    }
}

/// [`read`] with the text in hand; `file` is what problems are reported under.
///
/// # Errors
///
/// As [`read`].
pub fn parse(text: &str, file: &str, config: &Config) -> Result<Load, Vec<Problem>> {
    let mut reader = Reader { file, text, config, problems: Vec::new() };
    let load = reader.load();
    reader.problems.sort_by_key(|problem| problem.line);
    match load {
        Some(load) if reader.problems.is_empty() => Ok(load),
        Some(_) | None => Err(reader.problems),
    }
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    config: &'a Config,
    problems: Vec<Problem>,
}

/// The checked values of one section, those that were left out at their defaults.
struct Fields(BTreeMap<&'static str, Value>);

const SECTIONS: &str = "[[phases]], [agents.NAME] and [defaults]";

impl Reader<'_> {
    fn load(&mut self) -> Option<Load> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        if let Some(error) = errors.first() {
            let at = error.span().map_or(0, |span| span.start);
            let message = error.message().trim_end_matches(", expected nothing").to_owned();
            self.problem(at, "", message, "mend the TOML".to_owned());
            return None;
        }
        let (mut top, mut phases, mut agents, mut defaults) = (DeTable::new(), Vec::new(), BTreeMap::new(), None);
        for (name, value) in document.get_ref() {
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("phases", DeValue::Array(list)) => {
                    for (index, item) in list.iter().enumerate() {
                        phases.extend(self.phase(index, item));
                    }
                }
                ("agents", DeValue::Table(table)) => {
                    for (name, value) in table {
                        agents.extend(self.agent(name, value));
                    }
                }
                ("defaults", DeValue::Table(table)) => {
                    let fields = self.fields("agents", "defaults", value.span().start, table);
                    defaults = Some(self.work("defaults", value.span().start, &fields));
                }
                ("phases" | "agents" | "defaults", _) => {
                    let what = "this is no section".to_owned();
                    self.problem(name.span().start, name.get_ref(), what, format!("the sections are {SECTIONS}"));
                }
                _ => drop(top.insert(name.clone(), value.clone())),
            }
        }
        let fields = self.fields("", "", 0, &top);
        let host_bytes = fields.integer("host_memory_mb").map(|mb| mb << 20);
        if phases.is_empty() && self.problems.is_empty() {
            self.problem(0, "phases", "there are none".to_owned(), "begin each phase with [[phases]]".to_owned());
        }
        let agents = self.all_agents(agents, defaults);
        let load = Load { phases, agents, host_bytes };
        self.check(&load);
        Some(load)
    }

    fn phase(&mut self, index: usize, item: &Spanned<DeValue<'_>>) -> Option<Phase> {
        let at = item.span().start;
        let named = item.get_ref().get("name").and_then(|name| name.get_ref().as_str());
        let path = named.map_or_else(|| format!("phases[{index}]"), |name| format!("phases.{}", shown(name)));
        let DeValue::Table(table) = item.get_ref() else {
            let what = "expected a table".to_owned();
            self.problem(at, &path, what, "begin each phase with [[phases]]".to_owned());
            return None;
        };
        let fields = self.fields("phases", &path, at, table);
        let phase = Phase {
            name: fields.text("name").unwrap_or_default(),
            duration: Duration::from_secs_f64(fields.number("duration_s").unwrap_or(1.0)),
            submitters: fields.integer("agents").unwrap_or(1),
            interval: Duration::from_secs_f64(fields.number("interval_s").unwrap_or(1.0)),
            priorities: fields.weights("priorities").unwrap_or([0, 0, 1, 0, 0]),
            retries: fields.integer("retries").unwrap_or(0) as u32,
            outside_bytes: fields.integer("outside_mb").unwrap_or(0) << 20,
        };
        Some(phase)
    }

    fn agent(&mut self, name: &Spanned<Cow<'_, str>>, value: &Spanned<DeValue<'_>>) -> Option<(AgentName, Work)> {
        let (at, name) = (name.span().start, name.get_ref().as_ref());
        let path = format!("agents.{}", shown(name));
        if !self.config.agents.contains_key(name) {
            let known = Vec::from_iter(self.config.agents.keys().map(String::as_str)).join(", ");
            let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {known}") };
            let fix = format!("add it there, or name another: {known}");
            self.problem(at, &path, "the configuration has no such agent".to_owned(), fix);
        }
        let DeValue::Table(table) = value.get_ref() else {
            self.problem(at, &path, "expected a table".to_owned(), format!("write its keys below [{path}]"));
            return None;
        };
        let fields = self.fields("agents", &path, at, table);
        Some((Arc::from(name), self.work(&path, at, &fields)))
    }

    fn work(&mut self, path: &str, at: usize, fields: &Fields) -> Work {
        let bytes = |name| fields.spread(name).unwrap_or(Spread::Fixed(1.0)).scaled(MIB);
        let work = Work {
            share: fields.integer("share").unwrap_or(1),
            run: fields.spread("run_s").unwrap_or(Spread::Fixed(1.0)),
            peak: bytes("peak_mb"),
            idle: bytes("idle_mb"),
            ready: fields.spread("ready_s").unwrap_or(Spread::Fixed(0.0)),
            leak: fields.number("leak_mb_per_s").unwrap_or(0.0) * MIB,
            crash: fields.number("crash").unwrap_or(0.0),
            gives_checkpoints: fields.flag("checkpoint").unwrap_or(false),
            max_retries: fields.integer("max_retries").map(|retries| retries as u32),
        };
        if let (Spread::Fixed(idle), Spread::Fixed(peak)) = (work.idle, work.peak)
            && idle > peak
            && fields.0.contains_key("peak_mb")
        {
            let what = format!("{} is less than the {} the process holds without a task", peak / MIB, idle / MIB);
            self.problem(at, &format!("{path}.peak_mb"), what, "raise it, or lower idle_mb".to_owned());
        }
        work
    }

    /// Those that have a section, and by `[defaults]` the others of the configuration.
    fn all_agents(&mut self, named: BTreeMap<AgentName, Work>, defaults: Option<Work>) -> BTreeMap<AgentName, Work> {
        let mut agents = named;
        if let Some(defaults) = defaults {
            for name in self.config.agents.keys() {
                agents.entry(Arc::from(name.as_str())).or_insert_with(|| defaults.clone());
            }
            if self.config.agents.is_empty() {
                let fix = "add one to it: kurultai.toml(5)".to_owned();
                self.problem(0, "", "the configuration has no agents".to_owned(), fix);
            }
        }
        agents
    }

    fn check(&mut self, load: &Load) {
        if !self.problems.is_empty() {
            return;
        }
        if load.agents.values().all(|work| work.share == 0) {
            let fix = "add [defaults] or [agents.NAME] with a share".to_owned();
            self.problem(0, "agents", "no agent gets tasks".to_owned(), fix);
        }
        for schedule in &self.config.schedules {
            if !load.agents.contains_key(schedule.agent.as_str()) {
                let what = format!("schedule {} runs it, and the profile does not say what it takes", schedule.name);
                let fix =
                    format!("add [agents.{}], with share = 0 if nothing else runs it, or [defaults]", schedule.agent);
                self.problem(0, &format!("agents.{}", schedule.agent), what, fix);
            }
        }
        if load.host_bytes.is_none() && load.phases.iter().any(|phase| phase.outside_bytes > 0) {
            let fix = "add host_memory_mb above the first section".to_owned();
            self.problem(0, "host_memory_mb", "is missing, and a phase has outside_mb".to_owned(), fix);
        }
        let submissions = |phase: &Phase| {
            phase.submitters as f64 * (phase.duration.as_secs_f64() / phase.interval.as_secs_f64()).max(1.0)
        };
        let all: f64 = load.phases.iter().map(submissions).sum();
        if all > SUBMISSIONS_MAX {
            let what = format!("these would be {all:.0} submissions");
            self.problem(0, "phases", what, format!("keep to {SUBMISSIONS_MAX:.0}"));
        }
    }

    fn fields(&mut self, section: &str, prefix: &str, at: usize, table: &DeTable<'_>) -> Fields {
        let path = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        let mut fields = BTreeMap::new();
        for (name, value) in table {
            let Some(key) = keys::of_section(section).find(|key| key.name == name.get_ref()) else {
                let known = || keys::of_section(section).map(|key| key.name);
                let fix = match nearest(name.get_ref(), known()) {
                    Some(near) => format!("did you mean {near}?"),
                    None if section.is_empty() => format!("the sections are {SECTIONS}"),
                    None => format!("the keys are {}", Vec::from_iter(known()).join(", ")),
                };
                self.problem(name.span().start, &path(&shown(name.get_ref())), "unknown key".to_owned(), fix);
                continue;
            };
            match check(key, value) {
                Ok(value) => drop(fields.insert(key.name, value)),
                Err(fault) => self.problem(fault.at, &path(key.name), fault.what, fault.fix),
            }
        }
        for key in keys::of_section(section).filter(|key| !table.contains_key(key.name)) {
            match key.absent {
                Without::Required => {
                    let fix = format!("add {} = {}", key.name, key.example);
                    self.problem(at, &path(key.name), "is missing".to_owned(), fix);
                }
                Without::Default => {
                    let value = DeValue::parse(key.example).ok().and_then(|value| check(key, &value).ok());
                    fields.extend(value.map(|value| (key.name, value)));
                }
                Without::Means(_) => {}
            }
        }
        Fields(fields)
    }

    fn problem(&mut self, at: usize, key: &str, what: String, fix: String) {
        let line = self.text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        self.problems.push(Problem { file: self.file.to_owned(), line: Some(line), key: key.to_owned(), what, fix });
    }
}

impl Fields {
    fn text(&self, name: &str) -> Option<String> {
        if let Value::Text(text) = self.0.get(name)? { Some(text.clone()) } else { None }
    }

    fn flag(&self, name: &str) -> Option<bool> {
        if let Value::Flag(flag) = self.0.get(name)? { Some(*flag) } else { None }
    }

    fn integer(&self, name: &str) -> Option<u64> {
        if let Value::Integer(number) = self.0.get(name)? { Some(*number) } else { None }
    }

    fn number(&self, name: &str) -> Option<f64> {
        if let Value::Number(number) = self.0.get(name)? { Some(*number) } else { None }
    }

    fn spread(&self, name: &str) -> Option<Spread> {
        if let Value::Spread(spread) = self.0.get(name)? { Some(*spread) } else { None }
    }

    fn weights(&self, name: &str) -> Option<[u64; crate::core::task::Priority::COUNT]> {
        if let Value::Weights(weights) = self.0.get(name)? { Some(*weights) } else { None }
    }
}

/// A name for a message: short, and on one line.
fn shown(name: &str) -> String {
    super::super::text::one_line(&name.chars().take(64).collect::<String>())
}
