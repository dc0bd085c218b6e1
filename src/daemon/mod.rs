//! Starting, running and stopping: threads in a written order, signals, pid file, readiness, reload.
//!
//! May import everything but `ctl`. Must never know policy.

mod check;
mod control;
mod descriptors;
mod listen;
pub mod logger;
mod pid_file;
mod predecessor;
pub(crate) mod settings;
mod signals;
mod threads;

use std::path::PathBuf;

use crate::config::{self, Config};
use crate::spool::SpoolError;

pub use check::{HostCheck, check_host};
pub use threads::run;

/// What the command line asked for.
#[derive(Debug, Clone)]
pub struct Options {
    pub config: PathBuf,
    pub pid_file: Option<PathBuf>,
}

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Config(#[from] config::ConfigError),
    #[error(
        "daemon.log_file = {path:?} cannot be opened: {source}; name a file that can be written, or \"\" for standard error"
    )]
    LogFile { path: String, source: std::io::Error },
    #[error("daemon.state_dir cannot be used: {0}")]
    Spool(#[from] SpoolError),
    #[error("cannot listen on {address}: {source}; stop what listens there, or change {key}")]
    Listen { address: String, key: &'static str, source: std::io::Error },
    #[error("descriptor {fd} of the service manager cannot be listened on: {why}")]
    Activation { fd: i32, why: String },
    #[error(
        "{address}, which was handed over, is reached from beyond this host, and there is no token: set gateway.token_file, \
         or listen on 127.0.0.1"
    )]
    NoToken { address: std::net::SocketAddr },
    #[error("gateway.socket_group = {group:?} cannot be given the socket: {why}")]
    SocketGroup { group: String, why: String },
    #[error("gateway.token_file = {path:?} cannot be used: {why}")]
    Token { path: String, why: String },
    #[error("daemon.user = {user:?} cannot be become: {why}")]
    User { user: String, why: String },
    #[error("cannot write the pid file {}: {source}; name one in a directory that can be written", .path.display())]
    PidFile { path: PathBuf, source: std::io::Error },
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
}

impl StartError {
    /// 78 EX_CONFIG where the operator's word is wrong, 71 EX_OSERR where the system says no (sysexits.h).
    pub fn exit_status(&self) -> u8 {
        match self {
            StartError::Config(_)
            | StartError::LogFile { .. }
            | StartError::NoToken { .. }
            | StartError::SocketGroup { .. }
            | StartError::Token { .. }
            | StartError::User { .. } => 78,
            StartError::Spool(_)
            | StartError::Activation { .. }
            | StartError::Listen { .. }
            | StartError::PidFile { .. }
            | StartError::System { .. } => 71,
        }
    }
}

/// The configuration of the file and the environment, with what it warns of.
pub fn load(path: &std::path::Path) -> Result<config::Loaded, config::ConfigError> {
    config::load(path, config::environment(), crate::memory::host_memory_bytes())
}

fn token(config: &Config) -> Result<Option<Vec<u8>>, StartError> {
    use std::os::unix::fs::PermissionsExt;
    let path = &config.gateway.token_file;
    if path.is_empty() {
        return Ok(None);
    }
    let refused = |why: String| StartError::Token { path: path.clone(), why };
    let text = std::fs::read_to_string(path).map_err(|error| refused(format!("{error}; make it readable")))?;
    let mode = std::fs::metadata(path).map_err(|error| refused(error.to_string()))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(refused(format!(
            "its mode is {:04o}, so that others may read it; chmod 600 {path}",
            mode & 0o7777
        )));
    }
    let token = text.trim();
    if token.len() < 16 || token.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(refused("a token is at least 16 visible ASCII characters on one line".to_string()));
    }
    Ok(Some(token.as_bytes().to_vec()))
}
