//! What a reload may change in a running daemon.
//!
//! Owns the merge of the running configuration and a new one by the marks in [`KEYS`]. May import serde_json's values.
//! Must never know how the rooms take up what changed.

use serde::Deserialize;
use serde_json::Value;

use super::Config;
use super::keys::KEYS;

/// What a reload did, as paths: `queue.max_depth`, or `agents.wc` for all of an agent that came, went or changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadReport {
    /// In force now.
    pub changed: Vec<String>,
    /// In the new configuration but in force, or wholly in force, only after a restart.
    pub needs_restart: Vec<String>,
}

/// The configuration that is in force after a reload, and what that means. `old` is the running one.
///
/// Keys marked [`reload`](super::Key::reload), agents, schedules and breakers are the new ones, all else stays. Where a
/// new value is only possible together with one that stays (a soft limit above the running hard limit, a timeout above
/// the running maximum), it is cut to that, so that the result is always valid; it is then in `needs_restart` as well.
pub fn reload(old: &Config, new: Config) -> (Config, ReloadReport) {
    let (was, wanted) = (tree(old), tree(&new));
    let mut merged = wanted.clone();
    for key in KEYS.iter().filter(|key| !key.is_pattern() && !key.reload) {
        merged[key.section()][key.field()] = was[key.section()][key.field()].clone();
    }
    merged["gc_on_pressure"] = was["gc_on_pressure"].clone();
    // INVARIANT: every section comes whole from a tree that was made of a `Config`.
    let mut effective = Config::deserialize(merged).expect("a mixture of two configurations has the shape of one");
    fit(&mut effective);
    let is = tree(&effective);
    let report = ReloadReport { changed: differing(&was, &is), needs_restart: differing(&is, &wanted) };
    (effective, report)
}

/// Cuts what reloaded to what stayed.
fn fit(config: &mut Config) {
    let (hard_mb, most_s) = (config.workers.hard_limit_mb, config.workers.max_task_timeout_s);
    config.workers.task_timeout_s = config.workers.task_timeout_s.min(most_s);
    for agent in config.agents.values_mut() {
        let hard_mb = agent.hard_limit_mb.unwrap_or(hard_mb);
        agent.soft_limit_mb = agent.soft_limit_mb.map(|soft_mb| soft_mb.min(hard_mb));
        agent.task_timeout_s = agent.task_timeout_s.map(|timeout_s| timeout_s.min(most_s));
    }
}

/// Paths at which two configurations differ, in the order of [`KEYS`].
fn differing(a: &Value, b: &Value) -> Vec<String> {
    let mut paths: Vec<String> = KEYS
        .iter()
        .filter(|key| !key.is_pattern() && a[key.section()][key.field()] != b[key.section()][key.field()])
        .map(|key| key.path.to_string())
        .collect();
    for section in ["agents", "schedules", "breakers"] {
        let (before, after) = (items(&a[section]), items(&b[section]));
        let mut names: Vec<&str> = before
            .iter()
            .filter(|item| !after.contains(item))
            .chain(after.iter().filter(|item| !before.contains(item)))
            .map(|(name, _)| *name)
            .collect();
        names.sort_unstable();
        names.dedup();
        paths.extend(names.into_iter().map(|name| format!("{section}.{name}")));
    }
    paths
}

/// Agents and breakers by their key, schedules by their name; their order means nothing.
fn items(section: &Value) -> Vec<(&str, &Value)> {
    match section {
        Value::Object(map) => map.iter().map(|(name, item)| (name.as_str(), item)).collect(),
        Value::Array(list) => list.iter().map(|item| (item["name"].as_str().unwrap_or(""), item)).collect(),
        _ => Vec::new(),
    }
}

fn tree(config: &Config) -> Value {
    serde_json::to_value(config).expect("a configuration has only text for keys and finite numbers")
}
