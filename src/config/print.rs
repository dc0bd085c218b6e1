//! The effective configuration as TOML that can be loaded again.
//!
//! Owns the written form of values. May import serde_json's values. Must never know how a configuration is read.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;
use serde_json::value::RawValue;

use super::draft::schedule_path;
use super::keys::{self, Absent, GC_ON_PRESSURE, Kind, PRIORITIES, SECTIONS};
use super::{Config, Origins};

/// Where the comments begin, if the values leave room.
const COMMENT_COLUMN: usize = 40;

pub(super) fn print(config: &Config, origins: &Origins) -> String {
    let tree = serde_json::to_value(config).expect("a configuration has only text for keys and finite numbers");
    let mut out = format!("# file: {}\n", origins.file().escape_debug());
    for section in SECTIONS {
        match &tree[section] {
            Value::Object(items) if matches!(section, "agents" | "breakers") => {
                for (name, item) in items {
                    let header = format!("[{section}.{}]", bare_or_text(name));
                    fields(&mut out, &header, section, &format!("{section}.{name}"), item, origins);
                }
            }
            Value::Array(schedules) => {
                for (index, schedule) in schedules.iter().enumerate() {
                    let path = schedule_path(index, schedule["name"].as_str().unwrap_or(""));
                    fields(&mut out, "[[schedules]]", section, &path, schedule, origins);
                }
            }
            values => fields(&mut out, &format!("[{section}]"), section, section, values, origins),
        }
    }
    let (gc, origin) = (config.gc_on_pressure, origins.of("gc_on_pressure"));
    out.push('\n');
    line(&mut out, &format!("# {GC_ON_PRESSURE} = {gc}"), &format!("{origin}; no key of the file"));
    out
}

fn fields(out: &mut String, header: &str, section: &str, prefix: &str, values: &Value, origins: &Origins) {
    let _ = writeln!(out, "\n{header}");
    for key in keys::of_section(section) {
        let (field, value) = (key.field(), &values[key.field()]);
        let origin = origins.of(&format!("{prefix}.{field}")).to_string();
        match (value, key.absent) {
            (Value::Null, Absent::Means(means)) => line(out, &format!("# {field}"), &format!("{origin}: {means}")),
            (Value::String(json), _) if key.kind == Kind::Payload => {
                line(out, &format!("{field} = {}", payload(json)), &origin);
            }
            (value, _) if matches!(key.kind, Kind::Levels { .. }) => {
                let levels: Vec<_> = PRIORITIES.iter().map(|name| format!("{name} = {}", value[*name])).collect();
                line(out, &format!("{field} = {{ {} }}", levels.join(", ")), &origin);
            }
            (value, _) => line(out, &format!("{field} = {}", toml(value)), &origin),
        }
    }
}

fn line(out: &mut String, setting: &str, comment: &str) {
    let _ = writeln!(out, "{setting:<COMMENT_COLUMN$} # {comment}");
}

/// On one line, whatever the value.
fn toml(value: &Value) -> String {
    match value {
        // Why: TOML has no null, and no checked value holds one.
        Value::Null => "{}".to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quote(text),
        Value::Array(list) => format!("[{}]", list.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            inline_table(map.iter().map(|(name, value)| format!("{} = {}", bare_or_text(name), toml(value))).collect())
        }
    }
}

/// JSON text as TOML. Why not by [`Value`]: numbers stay as they are written, a detour by `f64` would change some.
fn payload(json: &str) -> String {
    let pairs = |(name, value): (String, &RawValue)| format!("{} = {}", bare_or_text(&name), payload(value.get()));
    if let Ok(text) = serde_json::from_str::<String>(json) {
        quote(&text)
    } else if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(json) {
        format!("[{}]", list.into_iter().map(|item| payload(item.get())).collect::<Vec<_>>().join(", "))
    } else if let Ok(map) = serde_json::from_str::<BTreeMap<String, &RawValue>>(json) {
        inline_table(map.into_iter().map(pairs).collect())
    } else {
        json.to_string()
    }
}

fn inline_table(pairs: Vec<String>) -> String {
    if pairs.is_empty() { "{}".to_string() } else { format!("{{ {} }}", pairs.join(", ")) }
}

fn bare_or_text(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.chars().all(bare) { name.to_string() } else { quote(name) }
}

/// A basic string of TOML 1.0.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
