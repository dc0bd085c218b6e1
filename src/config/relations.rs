//! What values must be to each other, and what is allowed but probably not meant.
//!
//! Owns the rules between keys. May import the configuration's types and std. Must never know TOML or JSON.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::schedule_path;
use super::problem::{Origin, Origins, Problem, nearest};
use super::{Agent, Config};

/// Below this there is no room for a worker beside the daemon, which takes some megabytes, more while it is busy.
const DAEMON_MB: u64 = 16;

#[derive(Default)]
pub(super) struct Found {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

/// `bad` are paths that already have a problem: nothing is concluded from their values.
pub(super) fn check(
    config: &Config,
    origins: &Origins,
    bad: &BTreeSet<String>,
    host_memory_bytes: Option<u64>,
) -> Found {
    let mut check = Check { config, origins, bad, found: Found::default() };
    check.gateway();
    check.memory(host_memory_bytes);
    check.queue();
    check.workers();
    for (name, agent) in &config.agents {
        check.agent(name, agent);
    }
    check.schedules();
    check.found
}

struct Check<'a> {
    config: &'a Config,
    origins: &'a Origins,
    bad: &'a BTreeSet<String>,
    found: Found,
}

impl Check<'_> {
    fn problem(&mut self, paths: &[&str], what: String, fix: &str) {
        if !paths.iter().any(|path| self.bad.contains(*path)) {
            self.found.problems.push(self.origins.problem(paths, what, fix.to_string()));
        }
    }

    fn warning(&mut self, paths: &[&str], what: String, fix: &str) {
        if !paths.iter().any(|path| self.bad.contains(*path)) {
            self.found.warnings.push(self.origins.problem(paths, what, fix.to_string()));
        }
    }

    fn gateway(&mut self) {
        let gateway = &self.config.gateway;
        let beyond = gateway.listen_address().is_some_and(|address| !address.ip().to_canonical().is_loopback());
        if beyond && gateway.token_file.is_empty() {
            self.problem(
                &["gateway.token_file", "gateway.listen"],
                format!("{} is reached from beyond this host, and there is no token", gateway.listen),
                "set gateway.token_file, or listen on 127.0.0.1",
            );
        }
    }

    fn memory(&mut self, host_memory_bytes: Option<u64>) {
        let memory = &self.config.memory;
        let levels = [
            ("memory.warning", memory.warning),
            ("memory.critical", memory.critical),
            ("memory.reject", memory.reject),
            ("memory.emergency", memory.emergency),
        ];
        for pair in levels.windows(2) {
            let [(lower, low), (upper, high)] = [pair[0], pair[1]];
            if low >= high {
                self.problem(
                    &[lower, upper],
                    format!("{lower} ({low}) is not below {upper} ({high})"),
                    "order them warning < critical < reject < emergency",
                );
            }
        }
        if memory.hysteresis >= memory.warning {
            self.problem(
                &["memory.warning", "memory.hysteresis"],
                format!("memory.hysteresis ({}) is not below memory.warning ({})", memory.hysteresis, memory.warning),
                "lower memory.hysteresis, or no level ever clears",
            );
        }
        if memory.limit_mb < DAEMON_MB {
            self.warning(
                &["memory.limit_mb"],
                format!("{} MB may not hold the daemon itself, which the limit counts as well", memory.limit_mb),
                &format!("give it {DAEMON_MB} MB and what the workers need, or tasks may be refused for ever"),
            );
        }
        let Some(host_mb) = host_memory_bytes.map(|bytes| bytes / (1024 * 1024)) else { return };
        if memory.limit_mb > host_mb {
            self.warning(
                &["memory.limit_mb"],
                format!("{} MB is more than the {host_mb} MB this machine has", memory.limit_mb),
                "lower it, or rely on the host and cgroup sources",
            );
        }
        if memory.min_free_mb >= host_mb {
            self.warning(
                &["memory.min_free_mb"],
                format!("{} MB is never free on a machine with {host_mb} MB", memory.min_free_mb),
                "lower it, or every moment is an emergency",
            );
        }
    }

    fn queue(&mut self) {
        let queue = &self.config.queue;
        let limits = queue.priority_limits.in_order();
        let keys = ["queue.max_depth", "queue.priority_limits"];
        let limits_set = *self.origins.of(keys[1]) != Origin::Default;
        let highest = limits.into_iter().max().unwrap_or(0);
        if highest == 0 {
            let what = "every limit is 0, so that no task is ever accepted".to_string();
            self.problem(&[keys[1]], what, "give at least one priority room");
        } else if limits.iter().sum::<usize>() < queue.max_depth {
            self.warning(
                &keys,
                format!("the limits leave room for {} of {} tasks", limits.iter().sum::<usize>(), queue.max_depth),
                "raise queue.priority_limits or lower queue.max_depth",
            );
        } else if !limits_set && highest < queue.max_depth {
            self.warning(
                &keys,
                format!("of {} tasks, at most {highest} may wait at one priority", queue.max_depth),
                "set queue.priority_limits as well, if one priority should fill the queue",
            );
        } else if limits_set && highest > queue.max_depth {
            self.warning(
                &keys,
                format!("a limit of {highest} is above queue.max_depth ({}) and never reached", queue.max_depth),
                "raise queue.max_depth or lower the limit",
            );
        }
    }

    fn workers(&mut self) {
        let (workers, limit_mb) = (&self.config.workers, self.config.memory.limit_mb);
        if workers.soft_limit_mb > workers.hard_limit_mb {
            self.problem(
                &["workers.hard_limit_mb", "workers.soft_limit_mb"],
                format!(
                    "workers.soft_limit_mb ({}) is above workers.hard_limit_mb ({})",
                    workers.soft_limit_mb, workers.hard_limit_mb
                ),
                "lower the soft limit or raise the hard one",
            );
        }
        if workers.task_timeout_s > workers.max_task_timeout_s {
            self.problem(
                &["workers.max_task_timeout_s", "workers.task_timeout_s"],
                format!(
                    "workers.task_timeout_s ({}) is above workers.max_task_timeout_s ({})",
                    workers.task_timeout_s, workers.max_task_timeout_s
                ),
                "lower the first or raise the second",
            );
        }
        let most_mb = workers.hard_limit_mb * workers.max as u64;
        if most_mb > limit_mb {
            self.warning(
                &["memory.limit_mb", "workers.hard_limit_mb", "workers.max"],
                format!(
                    "{} workers of up to {} MB are {most_mb} MB, above memory.limit_mb ({limit_mb})",
                    workers.max, workers.hard_limit_mb
                ),
                "tasks will wait for headroom; lower workers.max or workers.hard_limit_mb to avoid it",
            );
        }
    }

    fn agent(&mut self, name: &str, agent: &Agent) {
        let config = self.config;
        let path = |field: &str| format!("agents.{name}.{field}");
        let (soft_path, hard_path, timeout_path) =
            (path("soft_limit_mb"), path("hard_limit_mb"), path("task_timeout_s"));
        let hard_mb = config.hard_limit_mb(agent);
        if let Some(soft_mb) = agent.soft_limit_mb.filter(|soft_mb| *soft_mb > hard_mb) {
            self.problem(
                &["workers.hard_limit_mb", &hard_path, &soft_path],
                format!("the soft limit ({soft_mb}) is above this agent's hard limit ({hard_mb})"),
                "lower the soft limit or raise hard_limit_mb",
            );
        }
        if agent.hard_limit_mb.is_some_and(|hard_mb| hard_mb > config.memory.limit_mb) {
            self.warning(
                &["memory.limit_mb", &hard_path],
                format!("{hard_mb} MB is more than memory.limit_mb ({}) allows in all", config.memory.limit_mb),
                "lower it or raise memory.limit_mb",
            );
        }
        let most_s = config.workers.max_task_timeout_s;
        if let Some(timeout_s) = agent.task_timeout_s.filter(|timeout_s| *timeout_s > most_s) {
            self.problem(
                &["workers.max_task_timeout_s", &timeout_path],
                format!("{timeout_s} is above workers.max_task_timeout_s ({most_s})"),
                "lower the first or raise the second",
            );
        }
        if !agent.breaker.is_empty() && !config.breakers.contains_key(&agent.breaker) {
            let fix = match nearest(&agent.breaker, config.breakers.keys().map(String::as_str)) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("add [breakers.{}]", agent.breaker),
            };
            self.problem(&["breakers", &path("breaker")], format!("there is no breaker {:?}", agent.breaker), &fix);
        }
    }

    fn schedules(&mut self) {
        let config = self.config;
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, schedule) in config.schedules.iter().enumerate() {
            let path = schedule_path(index, &schedule.name);
            if !schedule.name.is_empty() && seen.insert(&schedule.name, index).is_some() {
                let what = format!("there are two schedules {:?}", schedule.name);
                self.problem(&[&format!("{path}.name")], what, "rename one of them");
            }
            if !config.agents.contains_key(&schedule.agent) {
                let fix = match nearest(&schedule.agent, config.agents.keys().map(String::as_str)) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => format!("add [agents.{}]", schedule.agent),
                };
                self.problem(
                    &["agents", &format!("{path}.agent")],
                    format!("there is no agent {:?}", schedule.agent),
                    &fix,
                );
            }
        }
    }
}
