//! The configuration as plain data: one field a key of kurultai.toml(5), under the same name and in the same unit.
//!
//! Owns the types and what a value means where it is left out. May import serde and std. Must never know defaults,
//! bounds or TOML: those are `keys` and `value`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything an operator decided. 1 MB in a field's name is 1,048,576 bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub daemon: Daemon,
    pub gateway: Gateway,
    pub memory: Memory,
    pub queue: Queue,
    pub workers: Workers,
    pub spool: Spool,
    pub agents: BTreeMap<String, Agent>,
    /// In the order of the file; names are unique.
    pub schedules: Vec<Schedule>,
    pub breakers: BTreeMap<String, Breaker>,
    pub features: Features,
    /// Whether `GC` goes to the workers when the memory level rises. Not a key of the file: only
    /// `KURULTAI_GC_ON_PRESSURE`, a name of the v2.1 plan, turns it off.
    pub gc_on_pressure: bool,
}

impl Config {
    /// The hard limit of the agent's workers: its own, else `workers.hard_limit_mb`.
    pub fn hard_limit_mb(&self, agent: &Agent) -> u64 {
        agent.hard_limit_mb.unwrap_or(self.workers.hard_limit_mb)
    }

    /// The soft limit of the agent's workers: its own, else `workers.soft_limit_mb`, but never above its hard limit.
    pub fn soft_limit_mb(&self, agent: &Agent) -> u64 {
        agent.soft_limit_mb.unwrap_or(self.workers.soft_limit_mb).min(self.hard_limit_mb(agent))
    }

    /// The time the agent's tasks have unless they ask for another: its own, else `workers.task_timeout_s`.
    pub fn task_timeout_s(&self, agent: &Agent) -> u64 {
        agent.task_timeout_s.unwrap_or(self.workers.task_timeout_s)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Daemon {
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    /// `""` = stay who we are.
    pub user: String,
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    /// `""` = standard error.
    pub log_file: String,
    pub drain_timeout_s: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// `""` = Unix socket only; see [`Gateway::listen_address`].
    pub listen: String,
    /// `""` = no token.
    pub token_file: String,
    pub allowed_hosts: Vec<String>,
    /// A name or number; `""` = the daemon's own.
    pub socket_group: String,
    pub max_connections: usize,
    pub max_body_mb: u64,
    pub head_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    /// Per client; 0 = off.
    pub submit_rate_per_s: u32,
}

impl Gateway {
    /// The TCP address to listen on; `None` = Unix socket only.
    pub fn listen_address(&self) -> Option<SocketAddr> {
        self.listen.parse().ok()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub mode: Mode,
    /// Daemon plus all worker trees.
    pub limit_mb: u64,
    /// Never empty, none twice.
    pub sources: Vec<Source>,
    pub cgroup: CgroupUse,
    /// 0 = off.
    pub min_free_mb: u64,
    pub check_interval_ms: u64,
    pub warning: f64,
    pub critical: f64,
    pub reject: f64,
    pub emergency: f64,
    pub hysteresis: f64,
    pub settle_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    pub max_depth: usize,
    pub priority_limits: PriorityLimits,
}

/// Most tasks waiting at each level; 0 = none are accepted there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorityLimits {
    pub critical: usize,
    pub high: usize,
    pub normal: usize,
    pub low: usize,
    pub heartbeat: usize,
}

impl PriorityLimits {
    /// From `critical` to `heartbeat`.
    pub fn in_order(&self) -> [usize; 5] {
        [self.critical, self.high, self.normal, self.low, self.heartbeat]
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    pub max: usize,
    pub idle_timeout_s: u64,
    pub task_timeout_s: u64,
    pub max_task_timeout_s: u64,
    pub spawn_timeout_s: u64,
    pub soft_limit_mb: u64,
    pub hard_limit_mb: u64,
    /// 0 = never.
    pub recycle_after_tasks: u64,
    pub max_restarts_per_hour: usize,
    /// Never empty.
    pub restart_backoff_ms: Vec<u64>,
    pub cancel_grace_ms: u64,
    pub checkpoint_timeout_ms: u64,
    pub oom_score_adj: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spool {
    pub durability: Durability,
    pub retention_s: u64,
    pub retention_mb: u64,
    pub min_free_mb: u64,
}

/// An agent. What is `None` follows the rest of the configuration: [`Config::hard_limit_mb`] and its neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    pub mode: AgentMode,
    pub runtime: Runtime,
    /// Absolute; `None` = `/`.
    pub cwd: Option<PathBuf>,
    /// `None` = the daemon's own.
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub env_pass: Vec<String>,
    pub soft_limit_mb: Option<u64>,
    pub hard_limit_mb: Option<u64>,
    /// `None` = no limit.
    pub data_limit_mb: Option<u64>,
    pub task_timeout_s: Option<u64>,
    pub max_retries: u32,
    pub preemptible: bool,
    /// `""` = none; otherwise a key of [`Config::breakers`].
    pub breaker: String,
    /// `None` = as many as the pool has.
    pub max_workers: Option<usize>,
    pub max_oom_kills: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub name: String,
    /// A key of [`Config::agents`].
    pub agent: String,
    pub every_s: u64,
    pub priority: Priority,
    /// Where the file is silent: true at heartbeat priority, false elsewhere.
    pub skippable: bool,
    pub max_skips: u32,
    /// JSON text; a TOML date is a JSON string.
    pub payload: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    pub failure_threshold: usize,
    pub window_s: u64,
    pub success_threshold: u32,
    /// Never empty.
    pub backoff_ms: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    pub memory_governance: bool,
    pub worker_pool: bool,
    pub circuit_breakers: bool,
    pub rollout_percent: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Observe,
    Soft,
    Hard,
}

/// Whether workers get cgroups of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupUse {
    /// Where the host lets us.
    Auto,
    Off,
}

/// Where memory pressure is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Budget,
    Cgroup,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    Fsync,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentMode {
    Oneshot,
    Persistent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    Generic,
    Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Critical,
    High,
    Normal,
    Low,
    Heartbeat,
}
