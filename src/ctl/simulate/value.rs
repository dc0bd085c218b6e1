//! One value of a profile: is it what its key takes?
//!
//! Owns the meaning of the kinds. May import toml's values. Must never know files or the other keys.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{ProfileKey, ProfileKind};
use crate::core::task::Priority;
use crate::simulation::load::Spread;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Flag(bool),
    Integer(u64),
    Number(f64),
    Spread(Spread),
    Weights([u64; Priority::COUNT]),
}

/// What is wrong, where in the text it stands, and what to do.
pub struct Fault {
    pub at: usize,
    pub what: String,
    pub fix: String,
}

type Checked<T> = Result<T, Fault>;

pub fn check(key: &ProfileKey, value: &Spanned<DeValue<'_>>) -> Checked<Value> {
    let at = value.span().start;
    match (key.kind, value.get_ref()) {
        (ProfileKind::Text, DeValue::String(text)) if (1..=64).contains(&text.chars().count()) && is_plain(text) => {
            Ok(Value::Text(text.to_string()))
        }
        (ProfileKind::Flag, DeValue::Boolean(flag)) => Ok(Value::Flag(*flag)),
        (ProfileKind::Integer { min, max }, DeValue::Integer(_)) => integer(value, min, max).map(Value::Integer),
        (ProfileKind::Number { min, max }, DeValue::Integer(_) | DeValue::Float(_)) => {
            number(value, min, max).map(Value::Number)
        }
        (ProfileKind::Spread { min, max }, DeValue::Integer(_) | DeValue::Float(_)) => {
            number(value, min, max).map(|fixed| Value::Spread(Spread::Fixed(fixed)))
        }
        (ProfileKind::Spread { min, max }, DeValue::Table(table)) => spread(at, table, min, max).map(Value::Spread),
        (ProfileKind::Weights { max }, DeValue::Table(table)) => weights(at, table, max).map(Value::Weights),
        (kind, value) => {
            let what = format!("expected {}, found {}", kind.expected(), found(value));
            Err(Fault { at, what, fix: format!("write it like {}", key.example) })
        }
    }
}

impl ProfileKind {
    /// What the key takes, in words.
    pub fn expected(self) -> String {
        match self {
            ProfileKind::Text => "a text of 1 to 64 characters".to_owned(),
            ProfileKind::Flag => "true or false".to_owned(),
            ProfileKind::Integer { min, max } => format!("an integer from {min} to {max}"),
            ProfileKind::Number { min, max } => format!("a number from {min} to {max}"),
            ProfileKind::Spread { min, max } => format!("a number from {min} to {max} or a table of how it is spread"),
            ProfileKind::Weights { max } => format!("a table of integers from 0 to {max} by priority"),
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
        DeValue::Integer(number) => number.to_string().chars().take(40).collect(),
        DeValue::Float(number) => number.as_str().chars().take(40).collect(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn integer(value: &Spanned<DeValue<'_>>, min: u64, max: u64) -> Checked<u64> {
    let read = match value.get_ref() {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        DeValue::String(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    };
    read.filter(|number| (min..=max).contains(number)).ok_or_else(|| Fault {
        at: value.span().start,
        what: format!("expected an integer from {min} to {max}, found {}", found(value.get_ref())),
        fix: format!("choose {min} to {max}"),
    })
}

fn number(value: &Spanned<DeValue<'_>>, min: f64, max: f64) -> Checked<f64> {
    let read = match value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|int| int as f64),
        DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
        DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    };
    read.filter(|number| (min..=max).contains(number)).ok_or_else(|| Fault {
        at: value.span().start,
        what: format!("expected a number from {min} to {max}, found {}", found(value.get_ref())),
        fix: format!("choose {min} to {max}"),
    })
}

const SPREADS: &str = "write { min = 1, max = 5 }, or { p50 = 2, p95 = 8 }, or the latter with shape = \"normal\"";

fn spread(at: usize, table: &DeTable<'_>, min: f64, max: f64) -> Checked<Spread> {
    let fault = |at, what: String| Fault { at, what, fix: SPREADS.to_owned() };
    let (mut ends, mut is_normal) = ([None; 4], false);
    for (name, value) in table {
        let index = ["min", "max", "p50", "p95"].iter().position(|known| known == name.get_ref());
        match (index, name.get_ref().as_ref(), value.get_ref().as_str()) {
            (Some(index), _, _) => ends[index] = Some(number(value, min, max)?),
            (None, "shape", Some(shape @ ("normal" | "lognormal"))) => is_normal = shape == "normal",
            (None, "shape", _) => {
                let what = format!("expected \"normal\" or \"lognormal\", found {}", found(value.get_ref()));
                return Err(fault(value.span().start, what));
            }
            (None, unknown, _) => {
                return Err(fault(name.span().start, format!("{unknown:?} is no part of a spread")));
            }
        }
    }
    let is_ordered = |low: f64, high: f64, names: &str| {
        if low <= high { Ok(()) } else { Err(fault(at, format!("{names}: {low} is more than {high}"))) }
    };
    match ends {
        [Some(min), Some(max), None, None] if !table.contains_key("shape") => {
            is_ordered(min, max, "min and max")?;
            Ok(Spread::Uniform { min, max })
        }
        [None, None, Some(p50), Some(p95)] => {
            is_ordered(p50, p95, "p50 and p95")?;
            match is_normal {
                true => Ok(Spread::Normal { p50, p95 }),
                false if p50 > 0.0 => Ok(Spread::LogNormal { p50, p95 }),
                false => Err(fault(at, "a lognormal p50 is more than 0".to_owned())),
            }
        }
        _ => Err(fault(at, "it does not say how it is spread".to_owned())),
    }
}

fn weights(at: usize, table: &DeTable<'_>, max: u64) -> Checked<[u64; Priority::COUNT]> {
    let known = || Priority::ALL.map(Priority::name).join(", ");
    let mut weights = [0; Priority::COUNT];
    for (name, value) in table {
        let Some(priority) = Priority::ALL.into_iter().find(|priority| priority.name() == name.get_ref()) else {
            let what = format!("{:?} is no priority", name.get_ref());
            return Err(Fault { at: name.span().start, what, fix: format!("the priorities are {}", known()) });
        };
        weights[priority.index()] = integer(value, 0, max)?;
    }
    if weights.iter().sum::<u64>() == 0 {
        let fix = format!("give one of {} a weight, such as {{ normal = 1 }}", known());
        return Err(Fault { at, what: "nothing has a weight".to_owned(), fix });
    }
    Ok(weights)
}
