//! How many descriptors the daemon needs at most, which follows from the configuration, and whether it may have them.

use super::threads::HANDLERS;
use crate::config::Config;
use crate::gateway::{LISTENERS_MAX, Places, sockets_max};
use crate::sys;

/// Three pipes, a pidfd, what the monitor reads of its tree and cgroup, and files at the moment of its start.
const PER_WORKER: usize = 16;

/// A payload that is being written, and its directory.
const PER_HANDLER: usize = 2;

/// The journal, the log, epoll instances, eventfds, /proc and cgroup files, the reserve; with room for a library's own.
const BASE: usize = 64;

/// The most there can be.
pub fn needed(config: &Config) -> usize {
    let connections = config.gateway.max_connections;
    // Each of them may be sent a result from a file.
    sockets_max(connections)
        + Places::most(connections)
        + config.workers.max * PER_WORKER
        + HANDLERS * PER_HANDLER
        + LISTENERS_MAX
        + BASE
}

/// Gets them, or says what will be missing. Without enough, the daemon goes on: it survives running out.
pub fn provide(config: &Config) {
    let needed = needed(config);
    match sys::limits::raise_descriptors(needed as u64) {
        Ok(limit) if limit >= needed as u64 => {}
        Ok(limit) => log::warn!(
            "the limit of open files is {limit}, and gateway.max_connections = {} with workers.max = {} may need {needed}: \
             raise it (LimitNOFILE= of systemd, ulimit -Hn), or lower gateway.max_connections",
            config.gateway.max_connections,
            config.workers.max
        ),
        Err(error) => log::warn!("the limit of open files cannot be raised to {needed}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_need_grows_with_connections_and_workers_and_is_modest_by_default() {
        let default = crate::config::Config::default();
        let mut large = default.clone();
        large.gateway.max_connections += 100;
        large.workers.max += 1;
        assert!(needed(&default) < 512, "{}", needed(&default));
        assert_eq!(needed(&large) - needed(&default), 200 + PER_WORKER);
    }
}
