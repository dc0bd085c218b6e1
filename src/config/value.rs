//! One value: is it what its key takes? A checked value is JSON in the shape its field is read from.
//!
//! Owns the meaning of [`Kind`] and [`Rule`]. May import toml's values, serde_json's values and std. Must never know
//! files, variables or the other keys.

use std::net::SocketAddr;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::keys::{Absent, Key, Kind, LIST_MAX, PAYLOAD_MAX, PRIORITIES, Rule};
use super::problem::{nearest, quoted};

/// What is wrong inside a value, and where.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    /// Byte offset in the text the value was read from.
    pub at: usize,
    /// Follows the key's path: `""`, `[2]`, `.low`.
    pub within: String,
    pub what: String,
    pub fix: String,
}

/// The socket's name in `daemon.runtime_dir`, and the NUL behind it, leave this much of `sun_path`.
const SOCKET_DIRECTORY_MAX: usize = 108 - "/kurultai.sock".len() - 1;

/// The default as a checked value; null where there is none, something empty where the key is required.
pub(super) fn default_of(key: &Key) -> Value {
    match (key.absent, key.kind) {
        (Absent::Default, _) => {
            DeValue::parse(key.example).ok().and_then(|value| check(key, &value).ok()).unwrap_or(Value::Null)
        }
        (Absent::Means(_), _) => Value::Null,
        (Absent::Required, Kind::Texts { .. }) => Value::Array(Vec::new()),
        (Absent::Required, _) => Value::from(""),
    }
}

/// # Errors
///
/// Everything wrong with the value; at least one fault.
pub(super) fn check(key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, Vec<Fault>> {
    let mut faults = Vec::new();
    let checked = Check { example: key.example, faults: &mut faults }.kind(key.kind, value);
    if faults.is_empty() { Ok(checked) } else { Err(faults) }
}

/// What was found, for a message.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {}", quoted(text)),
        DeValue::Integer(number) => number.to_string().chars().take(40).collect(),
        DeValue::Float(number) => number.as_str().chars().take(40).collect(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date or time".to_string(),
        DeValue::Array(_) => "a list".to_string(),
        DeValue::Table(_) => "a table".to_string(),
    }
}

struct Check<'a> {
    example: &'static str,
    faults: &'a mut Vec<Fault>,
}

impl Check<'_> {
    fn kind(&mut self, kind: Kind, value: &Spanned<DeValue<'_>>) -> Value {
        let at = value.span().start;
        match (kind, value.get_ref()) {
            (Kind::Flag, DeValue::Boolean(flag)) => Value::Bool(*flag),
            (Kind::Integer { min, max }, DeValue::Integer(number)) => self.integer("", at, number, (min, max)),
            (Kind::Ratio { min, max }, DeValue::Float(number)) => self.ratio(at, number.as_str(), (min, max)),
            (Kind::Ratio { min, max }, DeValue::Integer(number)) => self.ratio(at, number.as_str(), (min, max)),
            (Kind::Choice(among), DeValue::String(text)) => self.choice("", at, text, among),
            (Kind::Priority, DeValue::String(text)) => self.priority(at, text),
            (Kind::Priority, DeValue::Integer(number)) => self.priority(at, &number.to_string()),
            (Kind::Text(rule), DeValue::String(text)) => self.text("", at, text, rule),
            (Kind::Texts { rule, some }, DeValue::Array(list)) => self.texts(at, list, rule, some),
            (Kind::Choices(among), DeValue::Array(list)) => self.choices(at, list, among),
            (Kind::Integers { min, max }, DeValue::Array(list)) => self.integers(at, list, (min, max)),
            (Kind::Levels { min, max, absent }, DeValue::Table(table)) => self.levels(table, (min, max), absent),
            (Kind::Environment, DeValue::Table(table)) => self.environment(at, table),
            (Kind::Payload, value) => self.payload(at, value),
            (Kind::Flag | Kind::Integer { .. } | Kind::Ratio { .. }, DeValue::String(text))
                if DeValue::parse(text).is_ok_and(|inner| !inner.get_ref().is_str()) =>
            {
                let what = format!("expected {}, found {}", kind.expected(), found(value.get_ref()));
                self.fault("", at, what, "remove the quotes".to_string())
            }
            (kind, value) => {
                self.wrong_type("", at, &kind.expected(), value);
                Value::Null
            }
        }
    }

    fn fault(&mut self, within: &str, at: usize, what: String, fix: String) -> Value {
        self.faults.push(Fault { at, within: within.to_string(), what, fix });
        Value::Null
    }

    fn wrong_type(&mut self, within: &str, at: usize, expected: &str, value: &DeValue<'_>) {
        let fix = format!("write it like {}", self.example);
        self.fault(within, at, format!("expected {expected}, found {}", found(value)), fix);
    }

    fn integer(&mut self, within: &str, at: usize, number: &DeInteger<'_>, (min, max): (i64, i64)) -> Value {
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) if (min..=max).contains(&value) => Value::from(value),
            _ => {
                let shown: String = number.to_string().chars().take(40).collect();
                self.fault(within, at, format!("{shown} is out of range"), format!("choose {min} to {max}"))
            }
        }
    }

    fn ratio(&mut self, at: usize, number: &str, (min, max): (f64, f64)) -> Value {
        match number.parse::<f64>() {
            Ok(value) if (min..=max).contains(&value) => Value::from(value),
            _ => {
                let shown: String = number.chars().take(40).collect();
                self.fault("", at, format!("{shown} is out of range"), format!("choose {min} to {max}"))
            }
        }
    }

    fn choice(&mut self, within: &str, at: usize, text: &str, among: &[&str]) -> Value {
        if among.contains(&text) {
            return Value::from(text);
        }
        let fix = match nearest(text, among.iter().copied()) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("choose one of {}", among.join(", ")),
        };
        self.fault(within, at, format!("expected one of {}, found {}", among.join(", "), quoted(text)), fix)
    }

    fn priority(&mut self, at: usize, text: &str) -> Value {
        let by_name = PRIORITIES.into_iter().find(|name| text.eq_ignore_ascii_case(name));
        let by_number = || PRIORITIES.into_iter().zip("01234".chars()).find(|(_, digit)| text.chars().eq([*digit]));
        match by_name.or_else(|| by_number().map(|(name, _)| name)) {
            Some(name) => Value::from(name),
            None => self.fault(
                "",
                at,
                format!("{} is no priority", quoted(text)),
                format!("choose one of {}, or 0 to 4", PRIORITIES.join(", ")),
            ),
        }
    }

    fn text(&mut self, within: &str, at: usize, text: &str, rule: Rule) -> Value {
        match rule.broken_by(text) {
            None => Value::from(text),
            Some((what, fix)) => self.fault(within, at, format!("{} {what}", quoted(text)), fix),
        }
    }

    fn texts(&mut self, at: usize, list: &DeArray<'_>, rule: Rule, some: bool) -> Value {
        self.listed(at, list.len(), some);
        let mut texts = Vec::with_capacity(list.len().min(LIST_MAX));
        for (index, item) in list.iter().enumerate() {
            let (within, at) = (format!("[{index}]"), item.span().start);
            match item.get_ref() {
                DeValue::String(text) if some && index == 0 => texts.push(self.program(at, text)),
                DeValue::String(text) => texts.push(self.text(&within, at, text, rule)),
                other => self.wrong_type(&within, at, "a text", other),
            }
        }
        Value::Array(texts)
    }

    /// Why: a relative path with a slash would depend on where the daemon was started.
    fn program(&mut self, at: usize, text: &str) -> Value {
        if text.is_empty() || (text.contains('/') && !text.starts_with('/')) {
            let what = format!("{} is no program", quoted(text));
            let fix = "give an absolute path, or a bare name that is in PATH".to_string();
            return self.fault("[0]", at, what, fix);
        }
        self.text("[0]", at, text, Rule::Any)
    }

    fn choices(&mut self, at: usize, list: &DeArray<'_>, among: &[&str]) -> Value {
        self.listed(at, list.len(), true);
        let mut chosen: Vec<Value> = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let (within, at) = (format!("[{index}]"), item.span().start);
            let Some(text) = item.get_ref().as_str() else {
                self.wrong_type(&within, at, "a text", item.get_ref());
                continue;
            };
            if chosen.iter().any(|value| value == text) {
                self.fault(&within, at, format!("{} is named twice", quoted(text)), "remove one".to_string());
            }
            chosen.push(self.choice(&within, at, text, among));
        }
        Value::Array(chosen)
    }

    fn integers(&mut self, at: usize, list: &DeArray<'_>, range: (i64, i64)) -> Value {
        self.listed(at, list.len(), true);
        let mut numbers = Vec::new();
        for (index, item) in list.iter().enumerate() {
            let (within, at) = (format!("[{index}]"), item.span().start);
            match item.get_ref() {
                DeValue::Integer(number) => numbers.push(self.integer(&within, at, number, range)),
                other => self.wrong_type(&within, at, &Kind::Integer { min: range.0, max: range.1 }.expected(), other),
            }
        }
        Value::Array(numbers)
    }

    fn listed(&mut self, at: usize, len: usize, some: bool) {
        if some && len == 0 {
            self.fault("", at, "is empty".to_string(), format!("write it like {}", self.example));
        }
        if len > LIST_MAX {
            self.fault("", at, format!("has {len} entries"), format!("keep it to {LIST_MAX}"));
        }
    }

    fn levels(&mut self, table: &DeTable<'_>, range: (i64, i64), absent: i64) -> Value {
        let mut levels: Map<String, Value> =
            PRIORITIES.into_iter().map(|name| (name.to_string(), Value::from(absent))).collect();
        for (name, value) in table {
            let (within, at) = (format!(".{}", bare_or_quoted(name.get_ref())), value.span().start);
            if !PRIORITIES.contains(&name.get_ref().as_ref()) {
                let fix = match nearest(name.get_ref(), PRIORITIES) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => format!("the priorities are {}", PRIORITIES.join(", ")),
                };
                self.fault(&within, name.span().start, "unknown priority".to_string(), fix);
                continue;
            }
            match value.get_ref() {
                DeValue::Integer(number) => {
                    let number = self.integer(&within, at, number, range);
                    levels.insert(name.get_ref().to_string(), number);
                }
                other => self.wrong_type(&within, at, &Kind::Integer { min: range.0, max: range.1 }.expected(), other),
            }
        }
        Value::Object(levels)
    }

    fn environment(&mut self, at: usize, table: &DeTable<'_>) -> Value {
        self.listed(at, table.len(), false);
        let mut variables = Map::new();
        for (name, value) in table {
            let (within, at) = (format!(".{}", bare_or_quoted(name.get_ref())), value.span().start);
            self.text(&within, name.span().start, name.get_ref(), Rule::Variable);
            match value.get_ref() {
                DeValue::String(text) => {
                    let text = self.text(&within, at, text, Rule::Any);
                    variables.insert(name.get_ref().to_string(), text);
                }
                other => self.wrong_type(&within, at, "a text", other),
            }
        }
        Value::Object(variables)
    }

    fn payload(&mut self, at: usize, value: &DeValue<'_>) -> Value {
        let Some(json) = to_json(value) else {
            let what = "holds a number that JSON cannot".to_string();
            return self.fault("", at, what, "no nan, no inf, no integer beyond 64 bits".to_string());
        };
        let text = json.to_string();
        if text.len() > PAYLOAD_MAX {
            let what = format!("is {} bytes as JSON", text.len());
            return self.fault("", at, what, format!("keep it to {PAYLOAD_MAX}, or let it name a file"));
        }
        Value::from(text)
    }
}

impl Kind {
    /// What the key takes, in words.
    pub fn expected(self) -> String {
        match self {
            Kind::Flag => "true or false".to_string(),
            Kind::Integer { min, max } => format!("an integer from {min} to {max}"),
            Kind::Ratio { min, max } => format!("a number from {min} to {max}"),
            Kind::Choice(among) => format!("one of {}", among.join(", ")),
            Kind::Priority => format!("one of {}, or 0 to 4", PRIORITIES.join(", ")),
            Kind::Text(_) => "a text".to_string(),
            Kind::Texts { .. } => "a list of texts".to_string(),
            Kind::Choices(among) => format!("a list from {}", among.join(", ")),
            Kind::Integers { min, max } => format!("a list of integers from {min} to {max}"),
            Kind::Levels { .. } => "a table of limits by priority".to_string(),
            Kind::Environment => "a table of texts".to_string(),
            Kind::Payload => "any value".to_string(),
        }
    }
}

impl Rule {
    /// What is wrong with the text, and what to do; `None` if nothing is.
    pub(super) fn broken_by(self, text: &str) -> Option<(&'static str, String)> {
        let broken = |what, fix: &str| Some((what, fix.to_string()));
        if text.contains('\0') {
            return broken("holds a NUL", "remove it");
        }
        match self {
            Rule::Any => None,
            Rule::Filled if text.is_empty() => broken("is empty", "fill it in, or leave the key out"),
            Rule::Filled => None,
            Rule::OptionalPath | Rule::OptionalName | Rule::Listen if text.is_empty() => None,
            Rule::AbsolutePath | Rule::SocketDirectory | Rule::OptionalPath if !text.starts_with('/') => {
                broken("is not an absolute path", "begin it with /")
            }
            Rule::SocketDirectory if text.len() > SOCKET_DIRECTORY_MAX => {
                let fix = format!("keep it to {SOCKET_DIRECTORY_MAX} bytes, the socket's path has 108");
                Some(("is too long", fix))
            }
            Rule::AbsolutePath | Rule::SocketDirectory | Rule::OptionalPath => None,
            Rule::Name | Rule::OptionalName => {
                let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
                let fits = (1..=64).contains(&text.len()) && text.chars().all(allowed) && text != "." && text != "..";
                if fits { None } else { broken("is not a name", "use 1 to 64 of A-Z a-z 0-9 . _ -") }
            }
            Rule::Listen if text.parse::<SocketAddr>().is_ok() => None,
            Rule::Listen => broken(
                "is not address:port",
                "write it like 127.0.0.1:7700 or [::1]:7700, or \"\" for the Unix socket only",
            ),
            Rule::Host => {
                let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '[' | ']');
                let fits = (1..=255).contains(&text.len()) && text.chars().all(allowed);
                if fits {
                    None
                } else {
                    broken("is not a host name", "write it like box.example.org, without a scheme")
                }
            }
            Rule::Variable if text.is_empty() || text.contains('=') => {
                broken("cannot name a variable", "use letters, digits and _")
            }
            Rule::Variable => None,
        }
    }
}

/// A key as it has to be written in TOML, cut where it is absurdly long.
pub(super) fn bare_or_quoted(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(bare) { name.to_string() } else { quoted(name) }
}

fn to_json(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => Value::from(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Float(number) => Value::Number(serde_json::Number::from_f64(number.as_str().parse().ok()?)?),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Array(list) => Value::Array(list.iter().map(|item| to_json(item.get_ref())).collect::<Option<_>>()?),
        DeValue::Table(table) => Value::Object(
            table
                .iter()
                .map(|(name, value)| Some((name.get_ref().to_string(), to_json(value.get_ref())?)))
                .collect::<Option<_>>()?,
        ),
    })
}
