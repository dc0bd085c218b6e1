//! The client, `kurultaictl`: its commands, their screens, and the small HTTP client under them.
//!
//! Owns everything the person at the keyboard sees. May import the core's ids and priorities, the clock, and for
//! `simulate` the configuration, its translation for the core, and the simulation. Must never know the daemon's
//! threads: it has the same API as everybody else. Nothing outside this room uses it, so what only the client needs
//! costs the daemon no memory.

mod api;
mod args;
mod body;
mod catalogue;
mod console;
mod doctor;
mod error;
mod events;
mod follow;
mod help;
mod http;
mod parts;
mod payload;
mod simulate;
mod status;
mod submit;
mod table;
mod tasks;
mod text;

#[cfg(test)]
mod documents_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use console::{Console, Env};
pub use simulate::{PROFILE_KEYS, PROFILE_MAX, ProfileKey, ProfileKind, SUBMISSIONS_MAX, Without};

use api::Api;
use args::{Address, Asked, Command, Invocation};
use error::{CtlError, exit};
use http::{Client, Target};
use std::ffi::OsString;
use std::path::Path;

const DEFAULT_SOCKET: &str = "/run/kurultai/kurultai.sock";
const TOKEN_LIMIT_BYTES: u64 = 4096;

/// Carries out one command line (without the program's name); errors are told on the console. Returns the exit status.
pub fn run(arguments: impl IntoIterator<Item = OsString>, env: &Env, console: &mut Console) -> u8 {
    let done = obey(arguments, env, console).and_then(|()| console.flush());
    let Err(error) = done else { return exit::DONE };
    if !error.is_silent() {
        // Why: what was printed before belongs before the error; if that fails too, there is nobody to tell.
        let _ = console.flush();
        console.complain(&error.to_string());
    }
    error.exit_status()
}

fn obey(arguments: impl IntoIterator<Item = OsString>, env: &Env, console: &mut Console) -> Result<(), CtlError> {
    match args::parse(arguments, env)? {
        Asked::Help(text) => console.print(&text),
        Asked::Version => console.print(concat!("kurultaictl ", env!("CARGO_PKG_VERSION"), "\n")),
        Asked::Completions(script) => console.print(script),
        Asked::Run(invocation) => carry_out(invocation, console),
    }
}

fn carry_out(invocation: Invocation, console: &mut Console) -> Result<(), CtlError> {
    let target = match invocation.address {
        Address::Socket(path) => Target::Unix(path),
        Address::Url(url) => Target::from_url(&url)?,
    };
    let token = invocation.token_file.as_deref().map(read_token).transpose()?;
    let api = Api::new(Client::new(target, token));
    let json = invocation.json;
    match invocation.command {
        Command::Status { watch: false } => status::once(&api, console, json),
        Command::Status { watch: true } => status::watch(&api, console, json),
        Command::Submit(submit) => submit::run(&api, console, &submit, json),
        Command::TasksList { state, agent, limit } => {
            tasks::list(&api, console, &tasks::Filter { state, agent, limit }, json)
        }
        Command::TasksShow(task) => tasks::show(&api, console, task, json),
        Command::TasksCancel(task) => tasks::cancel(&api, console, task, json),
        Command::TasksResult(task) => tasks::result(&api, console, task),
        Command::TasksFollow(task) => tasks::follow(&api, console, task, json),
        Command::Queue => parts::queue(&api, console, json),
        Command::Workers => parts::workers(&api, console, json),
        Command::BreakersList => parts::breakers(&api, console, json),
        Command::BreakersOpen(name) => parts::force_breaker(&api, console, &name, "open", json),
        Command::BreakersClose(name) => parts::force_breaker(&api, console, &name, "close", json),
        Command::Memory => parts::memory(&api, console, json),
        Command::Doctor => doctor::run(&api, console, json),
        Command::Simulate(asked) => simulate::run(&api, console, &asked, json),
        Command::Why(task) => tasks::why(&api, console, task, json),
        Command::Events { types } => events::run(&api, console, types.as_deref(), json),
        Command::Reload => parts::reload(&api, console, json),
        Command::Drain => parts::drain(&api, console, json),
    }
}

/// The token on the first line of a file; it becomes a header's value, so it may hold only visible ASCII.
fn read_token(path: &Path) -> Result<String, CtlError> {
    use std::io::Read;
    let what = || format!("the token file {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|source| CtlError::Input { what: what(), source })?;
    file.take(TOKEN_LIMIT_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| CtlError::Input { what: what(), source })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = "it is to hold one line of visible ASCII characters".to_owned();
        return Err(CtlError::Unsendable { what: what(), why });
    }
    Ok(token.to_owned())
}
