//! The one table of keys: what kurultai.toml(5) documents, and all that reading, checking, printing and reloading know.
//!
//! Owns paths, kinds, bounds, defaults, reload marks and the environment's names. Imports nothing. Must never know how
//! a value is read or who uses it.

/// One key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// `section.key`, or `section.NAME.key` for what every agent, schedule and breaker has.
    pub path: &'static str,
    pub kind: Kind,
    /// What holds where the key is left out.
    pub absent: Absent,
    /// A value as TOML; the default where there is one.
    pub example: &'static str,
    /// A reload changes it in a running daemon.
    pub reload: bool,
    /// Its name in the v2.1 plan, for the environment.
    pub v21: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// The [`Key::example`].
    Default,
    /// It must be there.
    Required,
    /// Something that depends on the rest of the configuration, in words.
    Means(&'static str),
}

/// What a key takes. Bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Flag,
    Integer {
        min: i64,
        max: i64,
    },
    Ratio {
        min: f64,
        max: f64,
    },
    Choice(&'static [&'static str]),
    /// 0 to 4, or a name in any case.
    Priority,
    Text(Rule),
    /// Every text by the rule; never empty if `some`.
    Texts {
        rule: Rule,
        some: bool,
    },
    /// Never empty, none twice.
    Choices(&'static [&'static str]),
    /// Never empty.
    Integers {
        min: i64,
        max: i64,
    },
    /// A table with an integer a priority; one left out is `absent`.
    Levels {
        min: i64,
        max: i64,
        absent: i64,
    },
    /// A table of texts by environment names.
    Environment,
    /// Any value that JSON can hold.
    Payload,
}

/// What a text must look like. None may hold a NUL: no path, argument or variable can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Any,
    Filled,
    AbsolutePath,
    /// An absolute path that leaves room for a socket's name in `sun_path`, which has 108 bytes (unix(7)).
    SocketDirectory,
    /// An absolute path, or `""`.
    OptionalPath,
    /// `[A-Za-z0-9._-]{1,64}`, neither `.` nor `..`: it becomes a part of URLs, file and metric labels.
    Name,
    /// A [`Rule::Name`], or `""`.
    OptionalName,
    /// `address:port` with a numeric address, or `""`.
    Listen,
    /// What a `Host` header may hold.
    Host,
    /// The name of an environment variable.
    Variable,
}

impl Key {
    /// The first part of the path.
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(section, _)| section)
    }

    /// The last part of the path.
    pub fn field(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, field)| field)
    }

    /// It belongs to every agent, schedule or breaker, not to a section.
    pub fn is_pattern(&self) -> bool {
        self.path.contains(".NAME.")
    }

    /// The variable that sets it; `None` for patterns, which only the file has.
    pub fn env_name(&self) -> Option<String> {
        (!self.is_pattern()).then(|| format!("KURULTAI_{}_{}", self.section(), self.field()).to_ascii_uppercase())
    }

    /// An integer key that takes `value`.
    pub(super) fn allows(&self, value: i64) -> bool {
        matches!(self.kind, Kind::Integer { min, max } if (min..=max).contains(&value))
    }

    const fn reload(mut self) -> Key {
        self.reload = true;
        self
    }

    const fn v21(mut self, name: &'static str) -> Key {
        self.v21 = Some(name);
        self
    }
}

/// The key of that name in a section, or in every agent, schedule or breaker.
pub(super) fn find(section: &str, field: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section() == section && key.field() == field)
}

pub(super) fn of_section(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section() == section)
}

/// All sections in the order of kurultai.toml(5).
pub(super) const SECTIONS: [&str; 10] =
    ["daemon", "gateway", "memory", "queue", "workers", "spool", "agents", "schedules", "breakers", "features"];

pub(super) const PRIORITIES: [&str; 5] = ["critical", "high", "normal", "low", "heartbeat"];

/// `every_s` of all schedules at heartbeat priority, in milliseconds.
pub(super) const HEARTBEAT_INTERVAL: &str = "KURULTAI_HEARTBEAT_INTERVAL_MS";
/// [`super::Config::gc_on_pressure`].
pub(super) const GC_ON_PRESSURE: &str = "KURULTAI_GC_ON_PRESSURE";

/// Variables of the v2.1 plan that stand for no single key.
pub const ENV_ONLY: [&str; 2] = [HEARTBEAT_INTERVAL, GC_ON_PRESSURE];

/// Variables the daemon gives to workers and `kurultaictl` reads; they may be around when the daemon starts.
pub(super) const NOT_OURS: [&str; 9] = [
    "KURULTAI_WORKER_ID",
    "KURULTAI_AGENT",
    "KURULTAI_TASK_ID",
    "KURULTAI_REQUEST_ID",
    "KURULTAI_ATTEMPT",
    "KURULTAI_PRIORITY",
    "KURULTAI_SOCKET",
    "KURULTAI_URL",
    "KURULTAI_TOKEN_FILE",
];

/// Agents, schedules and breakers each; they are labels of metrics, whose number has a limit as everything has.
pub(super) const ITEMS_MAX: usize = 256;
/// A schedule's payload as JSON, in bytes: it stays in memory.
pub(super) const PAYLOAD_MAX: usize = 64 * 1024;
/// Entries of a list or table.
pub(super) const LIST_MAX: usize = 256;

const WEEK_S: i64 = 7 * 86_400;
const YEAR_S: i64 = 365 * 86_400;
/// 1 TiB: beyond that somebody wrote bytes.
const MEMORY_MAX_MB: i64 = 1024 * 1024;
const HOUR_MS: i64 = 3_600_000;

const fn key(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { path, kind, absent: Absent::Default, example: default, reload: false, v21: None }
}

const fn required(path: &'static str, kind: Kind, example: &'static str) -> Key {
    Key { path, kind, absent: Absent::Required, example, reload: true, v21: None }
}

const fn optional(path: &'static str, kind: Kind, means: &'static str, example: &'static str) -> Key {
    Key { path, kind, absent: Absent::Means(means), example, reload: true, v21: None }
}

const fn integer(path: &'static str, (min, max): (i64, i64), default: &'static str) -> Key {
    key(path, Kind::Integer { min, max }, default)
}

const fn ratio(path: &'static str, (min, max): (f64, f64), default: &'static str) -> Key {
    key(path, Kind::Ratio { min, max }, default)
}

const fn flag(path: &'static str, default: &'static str) -> Key {
    key(path, Kind::Flag, default)
}

const fn text(path: &'static str, rule: Rule, default: &'static str) -> Key {
    key(path, Kind::Text(rule), default)
}

const fn choice(path: &'static str, among: &'static [&'static str], default: &'static str) -> Key {
    key(path, Kind::Choice(among), default)
}

#[rustfmt::skip] // Why: a table is read in columns.
pub const KEYS: &[Key] = &[
    text("daemon.state_dir", Rule::AbsolutePath, r#""/var/lib/kurultai""#),
    text("daemon.runtime_dir", Rule::SocketDirectory, r#""/run/kurultai""#),
    text("daemon.user", Rule::Any, r#""""#),
    choice("daemon.log_level", &["error", "warn", "info", "debug", "trace"], r#""info""#).reload(),
    choice("daemon.log_format", &["text", "json"], r#""text""#),
    text("daemon.log_file", Rule::OptionalPath, r#""""#),
    integer("daemon.drain_timeout_s", (0, 3600), "30").reload(),

    text("gateway.listen", Rule::Listen, r#""127.0.0.1:7700""#),
    text("gateway.token_file", Rule::OptionalPath, r#""""#),
    key("gateway.allowed_hosts", Kind::Texts { rule: Rule::Host, some: false }, "[]"),
    text("gateway.socket_group", Rule::Any, r#""""#),
    integer("gateway.max_connections", (4, 10_000), "64"),
    integer("gateway.max_body_mb", (1, 1024), "7").reload(),
    integer("gateway.head_timeout_ms", (100, 60_000), "5000"),
    integer("gateway.idle_timeout_ms", (100, HOUR_MS), "30000"),
    integer("gateway.submit_rate_per_s", (0, 100_000), "0").reload(),

    choice("memory.mode", &["observe", "soft", "hard"], r#""hard""#).reload().v21("KURULTAI_ENFORCEMENT_MODE"),
    integer("memory.limit_mb", (4, MEMORY_MAX_MB), "1024").reload().v21("KURULTAI_MEMORY_LIMIT_MB"),
    key("memory.sources", Kind::Choices(&["budget", "cgroup", "host"]), r#"["budget", "cgroup", "host"]"#),
    choice("memory.cgroup", &["auto", "off"], r#""auto""#),
    integer("memory.min_free_mb", (0, MEMORY_MAX_MB), "32").reload(),
    integer("memory.check_interval_ms", (10, 60_000), "1000").reload(),
    ratio("memory.warning", (0.01, 1.0), "0.7").reload(),
    ratio("memory.critical", (0.01, 1.0), "0.85").reload(),
    ratio("memory.reject", (0.01, 1.0), "0.9").reload(),
    ratio("memory.emergency", (0.01, 1.0), "0.95").reload(),
    ratio("memory.hysteresis", (0.001, 0.999), "0.1").reload(),
    integer("memory.settle_ms", (0, 60_000), "2000"),

    integer("queue.max_depth", (1, 10_000), "5").reload().v21("KURULTAI_QUEUE_DEPTH"),
    key("queue.priority_limits", Kind::Levels { min: 0, max: 10_000, absent: 5 },
        "{ critical = 5, high = 5, normal = 5, low = 5, heartbeat = 5 }").reload(),

    integer("workers.max", (1, 64), "2").reload().v21("KURULTAI_MAX_WORKERS"),
    integer("workers.idle_timeout_s", (1, WEEK_S), "300").reload(),
    integer("workers.task_timeout_s", (1, WEEK_S), "600").reload(),
    integer("workers.max_task_timeout_s", (1, WEEK_S), "1800"),
    integer("workers.spawn_timeout_s", (1, 600), "30"),
    integer("workers.soft_limit_mb", (4, MEMORY_MAX_MB), "300"),
    integer("workers.hard_limit_mb", (4, MEMORY_MAX_MB), "512").v21("KURULTAI_WORKER_MEMORY_MB"),
    integer("workers.recycle_after_tasks", (0, 1_000_000_000), "0").reload(),
    integer("workers.max_restarts_per_hour", (1, 3600), "10"),
    key("workers.restart_backoff_ms", Kind::Integers { min: 1, max: HOUR_MS }, "[1000, 2000, 4000, 8000]"),
    integer("workers.cancel_grace_ms", (10, 600_000), "5000"),
    integer("workers.checkpoint_timeout_ms", (10, 600_000), "5000"),
    integer("workers.oom_score_adj", (-1000, 1000), "500"),

    choice("spool.durability", &["fsync", "none"], r#""fsync""#),
    integer("spool.retention_s", (1, YEAR_S), "3600").reload(),
    integer("spool.retention_mb", (1, MEMORY_MAX_MB), "256"),
    integer("spool.min_free_mb", (0, MEMORY_MAX_MB), "32").reload(),

    required("agents.NAME.command", Kind::Texts { rule: Rule::Any, some: true }, r#"["/usr/bin/wc"]"#),
    choice("agents.NAME.mode", &["oneshot", "persistent"], r#""oneshot""#).reload(),
    choice("agents.NAME.runtime", &["generic", "node"], r#""generic""#).reload(),
    optional("agents.NAME.cwd", Kind::Text(Rule::AbsolutePath), "/", r#""/srv/agent""#),
    optional("agents.NAME.user", Kind::Text(Rule::Filled), "the daemon's own", r#""nobody""#),
    key("agents.NAME.env", Kind::Environment, "{}").reload(),
    key("agents.NAME.env_pass", Kind::Texts { rule: Rule::Variable, some: false }, r#"["PATH"]"#).reload(),
    optional("agents.NAME.soft_limit_mb", Kind::Integer { min: 4, max: MEMORY_MAX_MB },
        "workers.soft_limit_mb, or hard_limit_mb if that is lower", "300"),
    optional("agents.NAME.hard_limit_mb", Kind::Integer { min: 4, max: MEMORY_MAX_MB },
        "workers.hard_limit_mb", "512"),
    optional("agents.NAME.data_limit_mb", Kind::Integer { min: 4, max: MEMORY_MAX_MB }, "none", "400"),
    optional("agents.NAME.task_timeout_s", Kind::Integer { min: 1, max: WEEK_S }, "workers.task_timeout_s", "600"),
    integer("agents.NAME.max_retries", (0, 100), "0").reload(),
    flag("agents.NAME.preemptible", "true").reload(),
    text("agents.NAME.breaker", Rule::OptionalName, r#""""#).reload(),
    optional("agents.NAME.max_workers", Kind::Integer { min: 1, max: 64 }, "workers.max", "1"),
    integer("agents.NAME.max_oom_kills", (0, 100), "2").reload(),

    required("schedules.NAME.name", Kind::Text(Rule::Name), r#""heartbeat-main""#),
    required("schedules.NAME.agent", Kind::Text(Rule::Name), r#""heartbeat""#),
    integer("schedules.NAME.every_s", (1, YEAR_S), "300").reload(),
    key("schedules.NAME.priority", Kind::Priority, r#""heartbeat""#).reload(),
    optional("schedules.NAME.skippable", Kind::Flag, "true at heartbeat priority, else false", "true"),
    integer("schedules.NAME.max_skips", (0, 1_000_000), "10").reload(),
    key("schedules.NAME.payload", Kind::Payload, "{}").reload(),

    integer("breakers.NAME.failure_threshold", (1, 1000), "3").reload(),
    integer("breakers.NAME.window_s", (1, 86_400), "60").reload(),
    integer("breakers.NAME.success_threshold", (1, 1000), "2").reload(),
    key("breakers.NAME.backoff_ms", Kind::Integers { min: 1, max: 24 * HOUR_MS }, "[1000, 2000, 4000, 8000]").reload(),

    flag("features.memory_governance", "true").v21("FF_MEMORY_GOVERNANCE"),
    flag("features.worker_pool", "true").v21("FF_WORKER_POOL"),
    flag("features.circuit_breakers", "true").v21("FF_CIRCUIT_BREAKERS"),
    integer("features.rollout_percent", (0, 100), "100"),
];
