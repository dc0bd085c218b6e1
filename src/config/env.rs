//! The environment over the file: `KURULTAI_<SECTION>_<KEY>`, and the names of the v2.1 plan.
//!
//! Owns which variable sets what. May import toml's values. Must never know what a value means.

use std::borrow::Cow;
use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeValue;

use super::draft::Draft;
use super::keys::{ENV_ONLY, GC_ON_PRESSURE, HEARTBEAT_INTERVAL, KEYS, Key, Kind, NOT_OURS};
use super::problem::{Problem, nearest, quoted};

/// The process's own variables as [`super::load`] wants them; bytes that are not UTF-8 become U+FFFD, and so a problem
/// where they matter. (`std::env::vars` would panic over any variable.)
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// Lays the variables that are ours over the draft. Other programs' are not looked at.
pub(super) fn overlay(draft: &mut Draft, env: impl IntoIterator<Item = (String, String)>) {
    let v21_names: Vec<&str> = KEYS.iter().filter_map(|key| key.v21).collect();
    let mut ours: BTreeMap<String, String> = env
        .into_iter()
        .filter(|(name, _)| name.starts_with("KURULTAI_") || v21_names.contains(&name.as_str()))
        .filter(|(name, _)| !NOT_OURS.contains(&name.as_str()))
        .collect();
    for key in KEYS {
        let Some(exact_name) = key.env_name() else { continue };
        let exact = ours.remove(&exact_name);
        let old_name = key.v21.filter(|name| *name != exact_name);
        let old = old_name.and_then(|name| Some((name, ours.remove(name)?)));
        match (exact, old) {
            (Some(text), old) => {
                if let Some((old_name, _)) = old.filter(|(_, old_text)| *old_text != text) {
                    draft.warnings.push(ignored(old_name, key, &exact_name));
                }
                set(draft, key, &exact_name, &text);
            }
            (None, Some((old_name, text))) => set(draft, key, old_name, &text),
            (None, None) => {}
        }
    }
    if let Some(text) = ours.remove(HEARTBEAT_INTERVAL) {
        heartbeat_interval(draft, &text);
    }
    if let Some(text) = ours.remove(GC_ON_PRESSURE) {
        gc_on_pressure(draft, &text);
    }
    for name in ours.keys() {
        unknown(draft, name);
    }
}

fn set(draft: &mut Draft, key: &Key, variable: &str, text: &str) {
    let whole = 0..text.len();
    let as_text = || Spanned::new(whole.clone(), DeValue::String(Cow::Borrowed(text)));
    let value = match key.kind {
        Kind::Text(_) | Kind::Choice(_) | Kind::Priority => as_text(),
        Kind::Flag => match flag(text) {
            Some(on) => Spanned::new(whole, DeValue::Boolean(on)),
            None => as_text(),
        },
        // A number that cannot be read goes on as the text it is, and is refused as one with a better message.
        Kind::Integer { .. } | Kind::Ratio { .. } => DeValue::parse(text.trim()).unwrap_or_else(|_| as_text()),
        Kind::Texts { .. }
        | Kind::Choices(_)
        | Kind::Integers { .. }
        | Kind::Levels { .. }
        | Kind::Environment
        | Kind::Payload => match DeValue::parse(text.trim()) {
            Ok(value) => value,
            Err(error) => {
                let what = format!("{} is no TOML value: {}", quoted(text), error.message());
                draft.env_problem(variable, key.path, what, format!("write it like {}", key.example));
                return;
            }
        },
    };
    draft.set_from_env(key, variable, &value);
}

/// Why 1 and 0: flags of the v2.1 plan are commonly given so.
fn flag(text: &str) -> Option<bool> {
    match text.trim() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn heartbeat_interval(draft: &mut Draft, text: &str) {
    match text.trim().parse::<i64>() {
        // The bounds of schedules.every_s.
        Ok(ms)
            if ms % 1000 == 0 && super::keys::find("schedules", "every_s").is_some_and(|key| key.allows(ms / 1000)) =>
        {
            if !draft.set_heartbeat_interval(HEARTBEAT_INTERVAL, ms / 1000) {
                draft.warnings.push(Problem {
                    file: format!("env {HEARTBEAT_INTERVAL}"),
                    line: None,
                    key: "schedules".to_string(),
                    what: "no schedule has heartbeat priority, so this sets nothing".to_string(),
                    fix: "add a [[schedules]] to the file, or unset it".to_string(),
                });
            }
        }
        _ => {
            let what = format!("expected milliseconds that make whole seconds, found {}", quoted(text));
            draft.env_problem(HEARTBEAT_INTERVAL, "schedules", what, "write it like 300000".to_string());
        }
    }
}

fn gc_on_pressure(draft: &mut Draft, text: &str) {
    match flag(text) {
        Some(on) => draft.set_gc_on_pressure(GC_ON_PRESSURE, on),
        None => {
            let what = format!("expected true or false, found {}", quoted(text));
            draft.env_problem(GC_ON_PRESSURE, "", what, "write true or false".to_string());
        }
    }
}

fn ignored(old_name: &str, key: &Key, exact_name: &str) -> Problem {
    Problem {
        file: format!("env {old_name}"),
        line: None,
        key: key.path.to_string(),
        what: format!("is ignored: {exact_name} is set and differs"),
        fix: "unset one of them".to_string(),
    }
}

fn unknown(draft: &mut Draft, name: &str) {
    let known: Vec<String> = KEYS.iter().filter_map(Key::env_name).collect();
    let v21 = KEYS.iter().filter_map(|key| key.v21);
    let candidates = known.iter().map(String::as_str).chain(v21).chain(ENV_ONLY);
    let fix = if ["KURULTAI_AGENTS_", "KURULTAI_SCHEDULES_", "KURULTAI_BREAKERS_"].iter().any(|p| name.starts_with(p)) {
        "set agents, schedules and breakers in the file".to_string()
    } else {
        match nearest_variable(name, candidates) {
            Some(meant) => format!("did you mean {meant}?"),
            None => "unset it; variables are KURULTAI_<SECTION>_<KEY>, see kurultai.toml(5)".to_string(),
        }
    };
    draft.env_problem(name, "", "unknown variable".to_string(), fix);
}

/// Why without the prefix: nine letters that are always right would make far names look near.
fn nearest_variable<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rest = |name: &'a str| name.strip_prefix("KURULTAI_").unwrap_or(name);
    let word = name.strip_prefix("KURULTAI_").unwrap_or(name);
    let candidates: Vec<&str> = candidates.collect();
    let meant = nearest(word, candidates.iter().map(|candidate| rest(candidate)))?;
    candidates.into_iter().find(|candidate| rest(candidate) == meant)
}
