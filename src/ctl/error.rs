//! What can go wrong in the client, in words for the person at the keyboard, and the exit status each has.
//!
//! Owns `CtlError` and the exit statuses. May import std and thiserror. Must never know a socket or a screen.

use std::io;
use std::path::PathBuf;

/// Exit statuses of `kurultaictl`, as in kurultaictl(1).
pub mod exit {
    pub const DONE: u8 = 0;
    /// The task failed, or the request was refused for good, or a local file could not be read or written.
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    /// EX_UNAVAILABLE of sysexits(3).
    pub const UNREACHABLE: u8 = 69;
    /// EX_TEMPFAIL.
    pub const TRY_LATER: u8 = 75;
    /// EX_NOPERM.
    pub const NO_PERMISSION: u8 = 77;
    /// `--wait=S` ran out while the task goes on; the number timeout(1) uses.
    pub const WAIT_OVER: u8 = 124;

    #[cfg(test)]
    pub const ALL: [u8; 7] = [DONE, FAILED, USAGE, UNREACHABLE, TRY_LATER, NO_PERMISSION, WAIT_OVER];
}

#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error("{message}\n{hint}")]
    Usage { message: String, hint: String },
    #[error("cannot reach the daemon: no socket at {}: start kurultaid, or name its socket with --socket PATH or --url URL", path.display())]
    NoSocket { path: PathBuf },
    #[error(
        "cannot reach the daemon at {target}: {source}: start kurultaid, or name its address with --socket PATH or --url URL"
    )]
    Unreachable { target: String, source: io::Error },
    #[error("no permission to use {}: run as a user or group that may write it (ls -l shows which)", path.display())]
    SocketDenied { path: PathBuf },
    #[error(
        "no answer from {target} within {seconds} s: the daemon is stuck or the host overloaded; try again, or look at its log"
    )]
    TimedOut { target: String, seconds: u64 },
    #[error("the connection to {target} broke: {source}: look whether the daemon is still running")]
    ConnectionLost { target: String, source: io::Error },
    #[error("the answer from {target} is no HTTP/1.1 answer of kurultaid ({what}): check the address")]
    BadAnswer { target: String, what: String },
    #[error(
        "not allowed ({status} {code}): {message}: name a file that holds the daemon's token with --token-file PATH"
    )]
    Denied { status: u16, code: String, message: String },
    #[error("refused for now ({code}): {message}\nretryAfterS: {}", retry_text(*retry_after_s))]
    TryLater { code: String, message: String, retry_after_s: Option<u64> },
    #[error("refused ({status} {code}): {message}")]
    Refused { status: u16, code: String, message: String },
    #[error("task {task} {state}{cause}")]
    TaskEnded { task: String, state: String, cause: String },
    #[error("task {task} is not finished after {seconds} s and goes on: kurultaictl tasks follow {task}")]
    WaitOver { task: String, seconds: u64 },
    #[error("cannot read {what}: {source}")]
    Input { what: String, source: io::Error },
    #[error("{what} cannot be sent: {why}")]
    Unsendable { what: String, why: String },
    /// Problems of files, a line each.
    #[error("{0}")]
    Invalid(String),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl CtlError {
    /// The process's exit status. A reader that went away (`| head`) is no failure.
    pub fn exit_status(&self) -> u8 {
        match self {
            CtlError::Usage { .. } => exit::USAGE,
            CtlError::NoSocket { .. }
            | CtlError::Unreachable { .. }
            | CtlError::TimedOut { .. }
            | CtlError::ConnectionLost { .. }
            | CtlError::BadAnswer { .. } => exit::UNREACHABLE,
            CtlError::SocketDenied { .. } | CtlError::Denied { .. } => exit::NO_PERMISSION,
            CtlError::TryLater { .. } => exit::TRY_LATER,
            CtlError::WaitOver { .. } => exit::WAIT_OVER,
            CtlError::Input { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => exit::NO_PERMISSION,
            CtlError::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => exit::DONE,
            CtlError::Refused { .. }
            | CtlError::TaskEnded { .. }
            | CtlError::Input { .. }
            | CtlError::Unsendable { .. }
            | CtlError::Invalid(_)
            | CtlError::Output(_) => exit::FAILED,
        }
    }

    /// True where the reader of our output went away: nothing is to be said then.
    pub fn is_silent(&self) -> bool {
        matches!(self, CtlError::Output(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// True where the same request may work a little later, as after a restart of the daemon.
    pub fn may_pass(&self) -> bool {
        let status = self.exit_status();
        status == exit::UNREACHABLE || status == exit::TRY_LATER
    }
}

fn retry_text(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "unknown".to_owned(), |seconds| seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_and_a_gone_reader_have_statuses_of_their_own() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let gone = CtlError::Output(io::ErrorKind::BrokenPipe.into());
        for (error, status) in [
            (CtlError::SocketDenied { path: PathBuf::from("/s") }, exit::NO_PERMISSION),
            (CtlError::Input { what: "the token file".to_owned(), source: denied() }, exit::NO_PERMISSION),
            (CtlError::Input { what: "x".to_owned(), source: io::ErrorKind::NotFound.into() }, exit::FAILED),
            (CtlError::Output(io::ErrorKind::StorageFull.into()), exit::FAILED),
            (gone, exit::DONE),
        ] {
            assert_eq!(error.exit_status(), status, "{error}");
            assert_eq!(error.is_silent(), status == exit::DONE, "{error}");
        }
    }
}
