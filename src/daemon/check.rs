//! What `--check` cannot tell from the configuration alone: whether this host has the users, the group and the programs
//! that it names.

use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::settings::agent_settings;
use crate::config::{Loaded, Problem};
use crate::core::settings::AgentSettings;
use crate::sys::user;
use crate::worker::programs_of;

/// In the order of the file, those of the environment last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HostCheck {
    /// The daemon would not start, or an agent never.
    pub problems: Vec<Problem>,
    /// What may be mended before it is needed.
    pub warnings: Vec<Problem>,
}

pub fn check_host(loaded: &Loaded) -> HostCheck {
    let config = &loaded.config;
    let mut found = HostCheck::default();
    let mut named = |key: &str, kind: &str, name: &str, looked_up: io::Result<bool>| {
        let (what, fix) = match looked_up {
            Ok(true) => return,
            Ok(false) => (
                format!("there is no {kind} {name:?}"),
                format!("create it with add{kind} --system, or correct the name"),
            ),
            Err(error) => (
                format!("the {kind} {name:?} cannot be looked up: {error}"),
                "look into nsswitch.conf and what it names".to_string(),
            ),
        };
        found.problems.push(loaded.origins.problem(&[key], what, fix));
    };
    let is_user = |name: &str| user::lookup(name).map(|user| user.is_some());
    if !config.daemon.user.is_empty() {
        named("daemon.user", "user", &config.daemon.user, is_user(&config.daemon.user));
    }
    let group = &config.gateway.socket_group;
    if !group.is_empty() {
        named("gateway.socket_group", "group", group, user::group(group).map(|group| group.is_some()));
    }
    for (name, agent) in &config.agents {
        if let Some(user) = &agent.user {
            named(&format!("agents.{name}.user"), "user", user, is_user(user));
        }
    }
    for (name, agent) in &config.agents {
        if let Some((what, fix)) = missing_program(&agent_settings(config, name, agent)) {
            found.warnings.push(loaded.origins.problem(&[&format!("agents.{name}.command")], what, fix));
        }
    }
    for list in [&mut found.problems, &mut found.warnings] {
        list.sort_by_key(|problem| (problem.file != loaded.origins.file(), problem.line));
    }
    found
}

/// What is wrong with an agent's program, and what to do; `None` where it is there, or cannot be seen from here.
fn missing_program(agent: &AgentSettings) -> Option<(String, String)> {
    let program = &agent.command[0];
    let looked_at = match programs_of(agent) {
        Ok(paths) => paths,
        Err(what) => return Some((what, "correct the name".to_string())),
    };
    let mut is_there = false;
    for path in &looked_at {
        match is_executable(path) {
            Ok(true) => return None,
            Ok(false) => is_there = true,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // Why: who checks may see less than the daemon, which may be root.
            Err(_) => return None,
        }
    }
    Some(if is_there {
        (format!("{program:?} is no file that can be executed"), "make it one with chmod +x".to_string())
    } else if program.contains('/') {
        (format!("there is no program {program:?}"), "install it, or correct the path".to_string())
    } else {
        let directories: Vec<_> = looked_at.iter().filter_map(|path| path.parent()?.to_str()).collect();
        (
            format!("there is no program {program:?} in {}", directories.join(":")),
            "install it, give its full path, or pass a PATH on that has it".to_string(),
        )
    })
}

fn is_executable(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
