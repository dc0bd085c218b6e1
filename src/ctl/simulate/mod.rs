//! `simulate`: what the daemon would do with a load, on virtual time.
//!
//! Owns the profile, its recording and the screens. May import the configuration and its translation for the core, the
//! simulation, and the rest of the client. Nothing here talks to a daemon but `--record`.

mod keys;
mod output;
mod plot;
mod profile;
mod record;
mod screen;
mod value;

pub use keys::{PROFILE_KEYS, PROFILE_MAX, ProfileKey, ProfileKind, SUBMISSIONS_MAX, Without};

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::api::Api;
use super::console::Console;
use super::error::CtlError;
use crate::config::{self, Config, Problem, Source};
use crate::daemon::settings::settings;
use crate::simulation::figures::Figures;
use crate::simulation::load::Load;
use crate::simulation::run::{Monitor, simulate};

/// As of kurultaid(8).
pub const DEFAULT_CONFIG: &str = "/etc/kurultai/kurultai.toml";

#[derive(Debug, PartialEq, Eq)]
pub struct Simulate {
    pub config: Option<PathBuf>,
    pub profile: Option<PathBuf>,
    pub seed: Option<u64>,
    pub csv: bool,
    pub record: bool,
}

/// Without `--seed`; always the same, so that a simulation repeats.
const SEED: u64 = 1;

/// A simulation with all that belongs to its report.
struct Simulated<'a> {
    config_file: &'a Path,
    profile_file: &'a Path,
    config: &'a Config,
    load: &'a Load,
    seed: u64,
    figures: &'a Figures,
}

pub fn run(api: &Api, console: &mut Console, asked: &Simulate, json: bool) -> Result<(), CtlError> {
    if asked.record {
        let others = asked.config.is_some() || asked.profile.is_some() || asked.seed.is_some() || asked.csv || json;
        if others {
            return Err(usage("--record asks a running daemon for a profile", "it goes with none of the others"));
        }
        return record::run(api, console);
    }
    let Some(profile_file) = &asked.profile else {
        return Err(usage("simulate: --profile FILE is missing", "kurultai-simulate(7) says what stands in one"));
    };
    if asked.csv && json {
        return Err(usage("--csv and --json are two ways to print one thing", "leave one of them out"));
    }
    let config_file = asked.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    let config = config::load(config_file, [], None).map_err(|error| invalid(&error.problems))?.config;
    let load = profile::read(profile_file, &config).map_err(|problems| invalid(&problems))?;
    let seed = asked.seed.unwrap_or(SEED);
    let figures = simulate(settings(&config), monitor(&config), &load, seed);
    let simulated = Simulated { config_file, profile_file, config: &config, load: &load, seed, figures: &figures };
    if asked.csv {
        console.print(&output::csv(&figures))
    } else if json {
        console.print(&format!("{}\n", output::json(&simulated)))
    } else {
        screen::show(&simulated, console)
    }
}

fn monitor(config: &Config) -> Monitor {
    let watches = |source| config.memory.sources.contains(&source);
    Monitor {
        interval: Duration::from_millis(config.memory.check_interval_ms),
        watches_budget: watches(Source::Budget),
        watches_host: watches(Source::Host),
    }
}

fn usage(message: &str, hint: &str) -> CtlError {
    CtlError::Usage { message: message.to_owned(), hint: hint.to_owned() }
}

fn invalid(problems: &[Problem]) -> CtlError {
    CtlError::Invalid(problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests;
