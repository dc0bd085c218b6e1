//! The log: one event a line, as text or JSON, on standard error or in a file that USR1 opens anew.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use log::kv::{self, Key, Value, VisitSource};
use log::{LevelFilter, Record};

use crate::config::{LogFormat, LogLevel};
use crate::sys::clock::wall_ms;

/// Keeps a log file, if there is one.
#[derive(Debug, Clone)]
pub struct LogFile(Option<Arc<Opened>>);

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    /// Somebody has moved the file away: goes on in a new one. Without one, or if that fails, nothing changes.
    pub fn reopen(&self) {
        let Some(opened) = &self.0 else { return };
        match open(&opened.path) {
            Ok(file) => *opened.file.lock().unwrap_or_else(PoisonError::into_inner) = file,
            Err(error) => log::error!("cannot open {} anew: {error}; the old file goes on", opened.path.display()),
        }
    }
}

/// Starts logging. `path`: empty for standard error.
pub fn start(level: LogLevel, format: LogFormat, path: &str) -> io::Result<LogFile> {
    let log_file = if path.is_empty() {
        LogFile(None)
    } else {
        let path = PathBuf::from(path);
        let file = Mutex::new(open(&path)?);
        LogFile(Some(Arc::new(Opened { path, file })))
    };
    let target = match &log_file.0 {
        None => env_logger::Target::Stderr,
        Some(opened) => env_logger::Target::Pipe(Box::new(Shared(opened.clone()))),
    };
    let write = match format {
        LogFormat::Text => text,
        LogFormat::Json => json,
    };
    env_logger::Builder::new()
        .target(target)
        .filter_level(LevelFilter::Trace)
        .format(move |out, record| out.write_all(&write(record)))
        .init();
    set_level(level);
    Ok(log_file)
}

pub fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

struct Shared(Arc<Opened>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn now() -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(wall_ms());
    humantime::format_rfc3339_millis(at).to_string()
}

fn text(record: &Record<'_>) -> Vec<u8> {
    let mut line = format!("{} {:<5} ", now(), record.level());
    push_escaped(&mut line, &record.args().to_string());
    let _ = record.key_values().visit(&mut Text(&mut line));
    line.push('\n');
    line.into_bytes()
}

struct Text<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Text<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        if is_absent(&value) {
            return Ok(());
        }
        let value = value.to_string();
        let _ = write!(self.0, " {key}=");
        let is_plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '=');
        if is_plain {
            self.0.push_str(&value);
        } else {
            self.0.push('"');
            push_escaped(self.0, &value.replace('\\', "\\\\").replace('"', "\\\""));
            self.0.push('"');
        }
        Ok(())
    }
}

/// A log line is one line, whatever an agent or a client put into it.
fn push_escaped(line: &mut String, text: &str) {
    for letter in text.chars() {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
}

fn json(record: &Record<'_>) -> Vec<u8> {
    let message = record.args().to_string();
    let is_event = message.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_' || byte.is_ascii_digit());
    let mut object = serde_json::Map::new();
    object.insert("at".to_string(), now().into());
    object.insert("level".to_string(), record.level().as_str().to_ascii_lowercase().into());
    object.insert(if is_event { "event" } else { "message" }.to_string(), message.into());
    let _ = record.key_values().visit(&mut Json(&mut object));
    let mut line = serde_json::Value::Object(object).to_string();
    line.push('\n');
    line.into_bytes()
}

struct Json<'a>(&'a mut serde_json::Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Json<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        if is_absent(&value) {
            return Ok(());
        }
        let json = match (value.to_bool(), value.to_u64(), value.to_i64(), value.to_f64()) {
            (Some(flag), ..) => flag.into(),
            (_, Some(number), ..) => number.into(),
            (_, _, Some(number), _) => number.into(),
            (.., Some(number)) => number.into(),
            _ => value.to_string().into(),
        };
        self.0.insert(key.to_string(), json);
        Ok(())
    }
}

fn is_absent(value: &Value<'_>) -> bool {
    value.to_borrowed_str().is_none() && value.to_string() == "None"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>(
        args: std::fmt::Arguments<'a>,
        values: &'a [(&'a str, Value<'a>)],
        write: fn(&Record<'_>) -> Vec<u8>,
    ) -> String {
        let line = write(&Record::builder().args(args).level(log::Level::Info).key_values(&values).build());
        String::from_utf8(line).expect("text")
    }

    #[test]
    fn text_values_are_quoted_where_they_have_to_be_and_stay_on_one_line() {
        let values = [("task", Value::from("t-1")), ("text", Value::from("a \"b\"\nc")), ("n", Value::from(3_u64))];
        let line = record(format_args!("TASK_FAILED"), &values, text);
        assert!(line.ends_with("INFO  TASK_FAILED task=t-1 text=\"a \\\"b\\\"\\nc\" n=3\n"), "{line}");
    }

    #[test]
    fn json_lines_name_the_event_and_keep_numbers() {
        let values = [
            ("task", Value::from("t-1")),
            ("n", Value::from(3_u64)),
            ("x", Value::from(0.5)),
            ("f", Value::from(true)),
        ];
        let line = record(format_args!("TASK_FAILED"), &values, json);
        let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(object["event"], "TASK_FAILED");
        assert_eq!((&object["n"], &object["x"], &object["f"]), (&3.into(), &0.5.into(), &true.into()));
        assert!(line.starts_with("{\"at\":\""), "{line}");
        let line = record(format_args!("a sentence"), &[], json);
        assert!(line.contains("\"message\":\"a sentence\""), "{line}");
    }
}
