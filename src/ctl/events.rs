//! `events`: what the daemon does, as it does it.
//!
//! Owns the lines' look. May import the API, the console and text. Must never know which events there are.

use super::api::Api;
use super::console::Console;
use super::error::CtlError;
use super::follow::read_line;
use super::http::{Request, encoded};
use super::text;
use serde_json::{Map, Value};
use std::io::BufReader;

/// Until interrupted, or the daemon stops.
pub fn run(api: &Api, console: &mut Console, types: Option<&str>, json: bool) -> Result<(), CtlError> {
    let query = types.map_or_else(String::new, |types| {
        let types: Vec<_> = types.split(',').map(encoded).collect();
        format!("?types={}", types.join(","))
    });
    let body = api.stream(Request::get(format!("/v1/events{query}")))?;
    body.set_timeout(None).map_err(|source| api.lost(source))?;
    let mut lines = BufReader::new(body);
    loop {
        let mut line = Vec::new();
        read_line(&mut lines, &mut line).map_err(|source| api.lost(source))?;
        if line.is_empty() {
            return Ok(());
        }
        match serde_json::from_slice::<Map<String, Value>>(&line) {
            Ok(event) if !json => {
                console.print(&event_line(&event))?;
                console.flush()?;
            }
            Ok(_) | Err(_) => console.print_foreign_line(&line)?,
        }
    }
}

/// Shown before an event's other values.
const IDS: [&str; 4] = ["task", "worker", "incident", "request"];

/// Time, name, then the event's own `key=value` pairs, as in the log.
fn event_line(event: &Map<String, Value>) -> String {
    let word = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or("-");
    let mut line = format!("{} {}", word("at"), word("event"));
    let named = IDS.iter().filter_map(|id| event.get_key_value(*id));
    let others = event.iter().filter(|(key, _)| *key != "at" && *key != "event" && !IDS.contains(&key.as_str()));
    for (key, value) in named.chain(others) {
        match value {
            Value::Null => {}
            Value::String(text) if text.contains([' ', '"', '=']) || text.is_empty() => {
                line.push_str(&format!(" {key}={value}"));
            }
            Value::String(text) => line.push_str(&format!(" {key}={text}")),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                line.push_str(&format!(" {key}={value}"));
            }
        }
    }
    text::one_line(&line) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_like_its_line_in_the_log() {
        let event = serde_json::from_str(
            r#"{"at":"T","event":"TASK_FAILED","task":"t-1","code":"worker_oom","why":"over \u001b the limit","n":3,"x":null}"#,
        )
        .expect("JSON");
        let line = event_line(&event);
        assert!(line.starts_with("T TASK_FAILED task=t-1 code=worker_oom "), "{line}");
        for part in ["why=\"over \\u001b the limit\"", "n=3"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains('\x1b') && !line.contains("x="), "{line}");
    }
}
