//! The configuration: kurultai.toml(5), the environment over it, and what a reload may change.
//!
//! Owns the schema ([`KEYS`] is its only list of keys, defaults, bounds and reload marks), validation, origins and the
//! printed form. May import serde, serde_json, toml and thiserror. Must never know threads, sockets, the rules of
//! `core`, or whether a user, directory or program it names exists.
//!
//! A file and an environment become a tree of checked values first and [`Config`] after that, so that every problem is
//! found in one go and with its line. The tree lives only while loading: [`Loaded`] is all that stays.

mod draft;
mod env;
mod keys;
mod print;
mod problem;
mod relations;
mod reload;
mod types;
mod value;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_effective;

use std::io::Read;
use std::path::Path;

pub use env::environment;
pub use keys::{Absent, ENV_ONLY, KEYS, Key, Kind, Rule};
pub use problem::{ConfigError, Origin, Origins, Problem};
pub use reload::{ReloadReport, reload};
pub use types::{
    Agent, AgentMode, Breaker, CgroupUse, Config, Daemon, Durability, Features, Gateway, LogFormat, LogLevel, Memory,
    Mode, Priority, PriorityLimits, Queue, Runtime, Schedule, Source, Spool, Workers,
};

/// The largest configuration file that is read, in bytes. It also bounds what agents, schedules and breakers can cost.
pub const FILE_MAX: u64 = 1024 * 1024;

/// A valid configuration, and where each value came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub origins: Origins,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

impl Loaded {
    /// The effective configuration as TOML, each value's origin in a comment; reading it gives the same [`Config`].
    ///
    /// `gc_on_pressure` has no key and is shown as a comment. Values of `agents.NAME.env` are shown as they are.
    pub fn print(&self) -> String {
        print::print(&self.config, &self.origins)
    }
}

/// Reads `path` and lays `env` over it; see [`environment`] for the process's own.
///
/// `host_memory_bytes` is only compared with, for warnings; `None` where it is not known.
///
/// # Errors
///
/// Every problem of the file and the environment; or, if the file is no TOML, its syntax errors alone.
pub fn load(
    path: &Path,
    env: impl IntoIterator<Item = (String, String)>,
    host_memory_bytes: Option<u64>,
) -> Result<Loaded, ConfigError> {
    let file = path.display().to_string();
    match read(path) {
        Ok(text) => parse(&text, &file, env, host_memory_bytes),
        Err((what, fix)) => Err(ConfigError {
            problems: vec![Problem { file, line: None, key: String::new(), what, fix: fix.to_string() }],
        }),
    }
}

/// [`load`] with the text in hand; `file_name` is what problems are reported under.
///
/// # Errors
///
/// As [`load`].
pub fn parse(
    text: &str,
    file_name: &str,
    env: impl IntoIterator<Item = (String, String)>,
    host_memory_bytes: Option<u64>,
) -> Result<Loaded, ConfigError> {
    let mut draft = draft::Draft::new(file_name);
    if !draft.read_file(text) {
        return Err(draft.into_error());
    }
    env::overlay(&mut draft, env);
    draft.finish(host_memory_bytes)
}

fn read(path: &Path) -> Result<String, (String, &'static str)> {
    let cannot = |error: std::io::Error| {
        (format!("cannot be read: {error}"), "create it, make it readable, or name another with --config")
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err((format!("is larger than {FILE_MAX} bytes"), "check that this is the configuration file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        (format!("line {line} is not UTF-8"), "save the file as UTF-8")
    })
}
