//! The keys of a load profile: kurultai-simulate(7) documents them, and reading and recording know no others.
//!
//! Owns names, kinds, bounds and defaults. Imports nothing. Must never know how a value is read.

/// One key of a profile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProfileKey {
    /// `""` for what stands above all sections, `phases`, or `agents` for what an agent and `defaults` have.
    pub section: &'static str,
    pub name: &'static str,
    pub kind: ProfileKind,
    pub absent: Without,
    /// A value as TOML; the default where there is one.
    pub example: &'static str,
}

/// What holds where a key is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    Default,
    Required,
    /// In words.
    Means(&'static str),
}

/// What a key takes. Bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ProfileKind {
    Text,
    Flag,
    Integer {
        min: u64,
        max: u64,
    },
    Number {
        min: f64,
        max: f64,
    },
    /// A number, or a table that says how it is spread.
    Spread {
        min: f64,
        max: f64,
    },
    /// A table of integers by priority.
    Weights {
        max: u64,
    },
}

const fn key(
    section: &'static str,
    name: &'static str,
    kind: ProfileKind,
    absent: Without,
    example: &'static str,
) -> ProfileKey {
    ProfileKey { section, name, kind, absent, example }
}

use ProfileKind::{Flag, Integer, Number, Spread, Text, Weights};
use Without::{Default as Preset, Means, Required};

const WEEK_S: f64 = 7.0 * 86_400.0;
/// 1 TiB.
const MEMORY_MAX_MB: u64 = 1024 * 1024;

#[rustfmt::skip] // Why: a table is read in columns.
pub const PROFILE_KEYS: &[ProfileKey] = &[
    key("", "host_memory_mb", Integer { min: 4, max: MEMORY_MAX_MB }, Means("the host's memory is not looked at"), "512"),

    key("phases", "name", Text, Required, r#""steady""#),
    key("phases", "duration_s", Number { min: 1.0, max: WEEK_S }, Required, "600"),
    key("phases", "agents", Integer { min: 0, max: 10_000 }, Preset, "1"),
    key("phases", "interval_s", Number { min: 0.01, max: WEEK_S }, Required, "30"),
    key("phases", "priorities", Weights { max: 1000 }, Preset, "{ normal = 1 }"),
    key("phases", "retries", Integer { min: 0, max: 1000 }, Preset, "0"),
    key("phases", "outside_mb", Integer { min: 0, max: MEMORY_MAX_MB }, Preset, "0"),

    key("agents", "share", Integer { min: 0, max: 1000 }, Preset, "1"),
    key("agents", "run_s", Spread { min: 0.0, max: WEEK_S }, Required, "2.5"),
    key("agents", "peak_mb", Spread { min: 0.0, max: MEMORY_MAX_MB as f64 }, Required, "{ p50 = 60, p95 = 120 }"),
    key("agents", "idle_mb", Spread { min: 0.0, max: MEMORY_MAX_MB as f64 }, Preset, "10"),
    key("agents", "ready_s", Spread { min: 0.0, max: 3600.0 }, Preset, "0.1"),
    key("agents", "leak_mb_per_s", Number { min: 0.0, max: 10_240.0 }, Preset, "0"),
    key("agents", "crash", Number { min: 0.0, max: 1.0 }, Preset, "0"),
    key("agents", "checkpoint", Flag, Preset, "false"),
    key("agents", "max_retries", Integer { min: 0, max: 100 }, Means("as the configuration says"), "3"),
];

/// The largest profile that is read, in bytes.
pub const PROFILE_MAX: u64 = 1024 * 1024;

/// Submissions a profile may lead to: some minutes of simulating.
pub const SUBMISSIONS_MAX: f64 = 10_000_000.0;

pub fn of_section(section: &str) -> impl Iterator<Item = &'static ProfileKey> {
    PROFILE_KEYS.iter().filter(move |key| key.section == section)
}
