//! From words on the command line to what is to be done.
//!
//! Owns the meaning and the limits of operands and options. May import lexopt, the catalogue, and the core's ids and
//! priorities. Must never know how a command is carried out, or touch a file or socket.

use super::catalogue::{COMMANDS, CommandSpec, GLOBAL, OptionSpec, SHELLS, STATES, ValueSpec, find, is_group};
use super::error::CtlError;
use super::simulate::Simulate;
use super::{Env, help};
use crate::core::ids::TaskId;
use crate::core::task::Priority;
use lexopt::Arg;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Help(String),
    Version,
    /// A completion script, whole.
    Completions(&'static str),
    Run(Invocation),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    pub command: Command,
    pub address: Address,
    pub token_file: Option<PathBuf>,
    pub json: bool,
}

/// Where the daemon is said to be; a URL is not looked at yet.
#[derive(Debug, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    Url(String),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Status { watch: bool },
    Submit(Submit),
    TasksList { state: Option<String>, agent: Option<String>, limit: Option<u32> },
    TasksShow(TaskId),
    TasksCancel(TaskId),
    TasksResult(TaskId),
    TasksFollow(TaskId),
    Queue,
    Workers,
    BreakersList,
    BreakersOpen(String),
    BreakersClose(String),
    Memory,
    Doctor,
    Simulate(Simulate),
    Why(TaskId),
    Events { types: Option<String> },
    Reload,
    Drain,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Submit {
    pub agent: String,
    pub payload: PayloadSource,
    pub priority: Option<Priority>,
    pub wait: Wait,
    pub timeout_s: Option<u32>,
    pub retries: Option<u32>,
    pub idempotency_key: Option<String>,
    pub json_payload: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum PayloadSource {
    Empty,
    StandardInput,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    No,
    Seconds(u64),
    Forever,
}

/// `arguments` without the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>, env: &Env) -> Result<Asked, CtlError> {
    let mut words = Words::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(lexical)? {
        let name = match argument {
            Arg::Value(value) => {
                words.operand(value)?;
                continue;
            }
            Arg::Short('h') => "help".to_owned(),
            Arg::Short('V') => "version".to_owned(),
            Arg::Short(letter) => return Err(words.unknown_option(&format!("-{letter}"), "")),
            Arg::Long(name) => name.to_owned(),
        };
        let option = words.option(&name)?;
        let value = match option.value {
            ValueSpec::None => None,
            ValueSpec::Required(_) => Some(parser.value().map_err(lexical)?),
            ValueSpec::Optional(_) => parser.optional_value(),
        };
        words.options.push((option.name, value));
    }
    words.finish(env)
}

fn lexical(error: lexopt::Error) -> CtlError {
    usage(error.to_string(), HINT)
}

const HINT: &str = "kurultaictl --help lists commands and options";

fn usage(message: impl Into<String>, hint: impl Into<String>) -> CtlError {
    CtlError::Usage { message: message.into(), hint: hint.into() }
}

/// The command line, sorted into the command, its operands and its options.
#[derive(Default)]
struct Words {
    group: Option<String>,
    command: Option<&'static CommandSpec>,
    operands: Vec<OsString>,
    options: Vec<(&'static str, Option<OsString>)>,
}

impl Words {
    fn operand(&mut self, value: OsString) -> Result<(), CtlError> {
        if let Some(command) = self.command {
            if self.operands.len() == command.operands_max {
                return Err(usage(format!("{}: {value:?} is one operand too many", command.name), see(command)));
            }
            self.operands.push(value);
            return Ok(());
        }
        let word = value.to_string_lossy();
        let name = self.group.as_ref().map_or_else(|| word.to_string(), |group| format!("{group} {word}"));
        self.command = find(&name);
        if self.command.is_some() {
            return Ok(());
        }
        if self.group.is_none() && is_group(&word) {
            self.group = Some(word.into_owned());
            return Ok(());
        }
        let hint = help::nearest(&name, COMMANDS.iter().map(|command| command.name))
            .map_or_else(|| HINT.to_owned(), |near| format!("did you mean kurultaictl {near}?"));
        Err(usage(format!("unknown command {name:?}"), hint))
    }

    fn option(&self, name: &str) -> Result<&'static OptionSpec, CtlError> {
        let own = self.command.map_or(&[][..], |command| command.options);
        own.iter().chain(GLOBAL).find(|option| option.name == name).ok_or_else(|| self.unknown_option("--", name))
    }

    fn unknown_option(&self, dashes: &str, name: &str) -> CtlError {
        let own = self.command.map_or(&[][..], |command| command.options);
        let elsewhere = COMMANDS.iter().find(|command| command.options.iter().any(|option| option.name == name));
        let near = help::nearest(name, own.iter().chain(GLOBAL).map(|option| option.name));
        let hint = match (elsewhere, near, self.command) {
            (Some(command), _, None) => format!("it belongs after the command: kurultaictl {} --{name}", command.name),
            (Some(command), _, Some(_)) => format!("it is an option of kurultaictl {}", command.name),
            (None, Some(near), _) => format!("did you mean --{near}?"),
            (None, None, Some(command)) => see(command),
            (None, None, None) => HINT.to_owned(),
        };
        usage(format!("unknown option {dashes}{name}"), hint)
    }

    fn finish(self, env: &Env) -> Result<Asked, CtlError> {
        if self.has("help") {
            return Ok(Asked::Help(self.command.map_or_else(help::overall, help::of)));
        }
        if self.has("version") {
            return Ok(Asked::Version);
        }
        let Some(command) = self.command else {
            let message =
                self.group.map_or_else(|| "no command".to_owned(), |group| format!("{group}: what about them?"));
            let names: Vec<_> = COMMANDS.iter().map(|command| command.name).collect();
            return Err(usage(message, format!("commands are: {}\n{HINT}", names.join(", "))));
        };
        if self.operands.len() < command.operands_min {
            return Err(usage(format!("{}: {} is missing", command.name, command.operands), see(command)));
        }
        if command.name == "completions" {
            return self.completions();
        }
        Ok(Asked::Run(Invocation {
            address: self.address(env)?,
            token_file: self.path("token-file")?.or_else(|| env.token_file.as_deref().map(PathBuf::from)),
            json: self.has("json"),
            command: self.command(command)?,
        }))
    }

    fn completions(&self) -> Result<Asked, CtlError> {
        let shell = self.text_operand("shell")?;
        let script = SHELLS.iter().find(|(name, _)| *name == shell);
        script
            .map(|(_, script)| Asked::Completions(script))
            .ok_or_else(|| usage(format!("no completions for {shell:?}"), "there are some for bash, zsh and fish"))
    }

    /// An option beats the environment, and there a URL beats a socket.
    fn address(&self, env: &Env) -> Result<Address, CtlError> {
        match (self.path("socket")?, self.text("url")?) {
            (Some(_), Some(_)) => Err(usage("--socket and --url name two daemons", "leave one of them out")),
            (Some(socket), None) => Ok(Address::Socket(socket)),
            (None, Some(url)) => Ok(Address::Url(url)),
            (None, None) => Ok(match (&env.url, &env.socket) {
                (Some(url), _) => Address::Url(url.to_string_lossy().into_owned()),
                (None, Some(socket)) => Address::Socket(PathBuf::from(socket)),
                (None, None) => Address::Socket(PathBuf::from(super::DEFAULT_SOCKET)),
            }),
        }
    }

    fn command(&self, spec: &'static CommandSpec) -> Result<Command, CtlError> {
        Ok(match spec.name {
            "status" => Command::Status { watch: self.has("watch") },
            "submit" => Command::Submit(self.submit()?),
            "tasks list" => Command::TasksList {
                state: self.text("state")?.map(states).transpose()?,
                agent: self.text("agent")?,
                limit: self.number("limit", 1, 1000)?.map(|limit| limit as u32),
            },
            "tasks show" => Command::TasksShow(self.task()?),
            "tasks cancel" => Command::TasksCancel(self.task()?),
            "tasks result" => Command::TasksResult(self.task()?),
            "tasks follow" => Command::TasksFollow(self.task()?),
            "queue" => Command::Queue,
            "workers" => Command::Workers,
            "breakers list" => Command::BreakersList,
            "breakers open" => Command::BreakersOpen(self.name("breaker")?),
            "breakers close" => Command::BreakersClose(self.name("breaker")?),
            "memory" => Command::Memory,
            "doctor" => Command::Doctor,
            "simulate" => Command::Simulate(Simulate {
                config: self.path("config")?,
                profile: self.path("profile")?,
                seed: self.number("seed", 0, u64::MAX)?,
                csv: self.has("csv"),
                record: self.has("record"),
            }),
            "why" => Command::Why(self.task()?),
            "events" => Command::Events { types: self.text("types")? },
            "reload" => Command::Reload,
            "drain" => Command::Drain,
            other => unreachable!("{other} is in the catalogue and not here; a test tries every command"),
        })
    }

    fn submit(&self) -> Result<Submit, CtlError> {
        let payload = match self.operands.get(1) {
            None => PayloadSource::Empty,
            Some(dash) if dash == "-" => PayloadSource::StandardInput,
            Some(file) => PayloadSource::File(PathBuf::from(file)),
        };
        let json_payload = self.has("json-payload");
        if json_payload && payload == PayloadSource::Empty {
            return Err(usage("--json-payload without a payload", "name a FILE, or - for standard input"));
        }
        let wait = match self.last("wait") {
            None => Wait::No,
            Some(None) => Wait::Forever,
            Some(Some(_)) => self.number("wait", 0, 31_536_000)?.map_or(Wait::Forever, Wait::Seconds),
        };
        let priority = self.text("priority")?.map(|text| text.parse::<Priority>()).transpose();
        Ok(Submit {
            agent: self.name("agent")?,
            payload,
            wait,
            priority: priority.map_err(|error| usage(format!("--priority: {error}"), HINT))?,
            timeout_s: self.number("timeout", 1, u64::from(u32::MAX))?.map(|seconds| seconds as u32),
            retries: self.number("retries", 0, u64::from(u32::MAX))?.map(|retries| retries as u32),
            idempotency_key: self.text("idempotency-key")?.map(visible_key).transpose()?,
            json_payload,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.last(name).is_some()
    }

    /// The last time an option was given wins.
    fn last(&self, name: &str) -> Option<&Option<OsString>> {
        self.options.iter().rev().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    fn value(&self, name: &str) -> Option<&OsStr> {
        self.last(name).and_then(|value| value.as_deref())
    }

    fn text(&self, name: &str) -> Result<Option<String>, CtlError> {
        self.value(name).map(|value| utf8(&format!("--{name}"), value)).transpose()
    }

    fn path(&self, name: &str) -> Result<Option<PathBuf>, CtlError> {
        match self.value(name) {
            Some(path) if path.is_empty() => Err(usage(format!("--{name} is empty"), "name a file")),
            path => Ok(path.map(PathBuf::from)),
        }
    }

    fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, CtlError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| {
            usage(format!("--{name}: {text:?} is no number from {least} to {most}"), "give a whole number")
        })
    }

    fn text_operand(&self, what: &str) -> Result<String, CtlError> {
        utf8(what, self.operands.first().map_or(OsStr::new(""), OsString::as_os_str))
    }

    /// A name that becomes one segment of a path.
    fn name(&self, what: &str) -> Result<String, CtlError> {
        let name = self.text_operand(what)?;
        if matches!(name.as_str(), "" | "." | "..") {
            return Err(usage(format!("{name:?} names no {what}"), "see the daemon's configuration for names"));
        }
        Ok(name)
    }

    fn task(&self) -> Result<TaskId, CtlError> {
        let text = self.text_operand("task")?;
        text.parse().map_err(|error| usage(format!("{error}"), "kurultaictl tasks list shows the ids"))
    }
}

fn see(command: &CommandSpec) -> String {
    format!("kurultaictl {} --help explains it", command.name)
}

fn utf8(what: &str, value: &OsStr) -> Result<String, CtlError> {
    value.to_str().map(str::to_owned).ok_or_else(|| usage(format!("{what}: {value:?} is not UTF-8"), HINT))
}

fn states(list: String) -> Result<String, CtlError> {
    for state in list.split(',') {
        if !STATES.iter().any(|(name, _)| *name == state) {
            let known: Vec<_> = STATES.iter().map(|(name, _)| *name).collect();
            return Err(usage(format!("--state: {state:?} is no state"), format!("states are: {}", known.join(", "))));
        }
    }
    Ok(list)
}

/// A key travels in a header: RFC 9110, section 5.5.
fn visible_key(key: String) -> Result<String, CtlError> {
    let visible = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    if visible { Ok(key) } else { Err(usage(format!("--idempotency-key: {key:?}"), "use visible ASCII, no spaces")) }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
