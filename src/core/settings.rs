//! What the operator decided, in the form the rules use: durations and bytes, nothing of TOML.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ids::AgentName;
use super::task::Priority;

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub queue: QueueSettings,
    pub workers: WorkerSettings,
    pub memory: MemorySettings,
    pub agents: BTreeMap<AgentName, Arc<AgentSettings>>,
    pub breakers: BTreeMap<Arc<str>, BreakerSettings>,
    pub schedules: Vec<Arc<ScheduleSettings>>,
    pub features: Features,
    pub retention: RetentionSettings,
}

/// How long finished tasks and their results are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct RetentionSettings {
    pub age: Duration,
    /// All result files together.
    pub result_bytes: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct QueueSettings {
    pub max_depth: usize,
    /// Most tasks waiting at each level, indexed by [`Priority::index`].
    pub priority_limits: [usize; Priority::COUNT],
}

#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSettings {
    pub max: usize,
    pub idle_timeout: Duration,
    pub max_task_timeout: Duration,
    pub spawn_timeout: Duration,
    /// Tasks after which a persistent worker is replaced; 0 = never.
    pub recycle_after_tasks: u64,
    pub max_restarts_per_hour: usize,
    /// Pauses before the next spawn after 1, 2, … failures in a row; the last one repeats. Never empty.
    pub restart_backoff: Vec<Duration>,
    pub cancel_grace: Duration,
    pub checkpoint_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MemorySettings {
    pub mode: Mode,
    pub limit_bytes: u64,
    pub min_free_bytes: u64,
    /// Ratios at which warning, critical, reject and emergency begin; ascending.
    pub thresholds: [f64; 4],
    pub hysteresis: f64,
    pub settle: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Measure and report only.
    Observe,
    /// Skip heartbeats and refuse submissions.
    Soft,
    /// Also preempt and kill.
    Hard,
}

/// An agent as configured when its worker started; a running worker keeps the settings it began with.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSettings {
    pub name: AgentName,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    pub mode: AgentMode,
    pub runtime: Runtime,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub env_pass: Vec<String>,
    pub soft_limit_bytes: u64,
    pub hard_limit_bytes: u64,
    pub task_timeout: Duration,
    pub max_retries: u32,
    pub preemptible: bool,
    pub breaker: Option<Arc<str>>,
    /// Most processes of this agent at once; `None` = as many as the pool has.
    pub max_workers: Option<usize>,
    pub max_oom_kills: u32,
    pub oom_score_adj: i32,
    /// RLIMIT_DATA of each of its processes; `None` = none.
    pub data_limit_bytes: Option<u64>,
    /// The kernel may hold its hard limit: the mode allows killing.
    pub has_kernel_limit: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentMode {
    /// One process a task: payload on stdin, result on stdout.
    Oneshot,
    /// The process is kept and speaks the worker protocol.
    Persistent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Generic,
    /// Gets `--max-old-space-size`, which bounds the JavaScript heap (not Buffers).
    Node,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    pub failure_threshold: usize,
    pub window: Duration,
    pub success_threshold: u32,
    /// How long it stays open after the 1st, 2nd, … opening in a row; the last one repeats. Never empty.
    pub backoff: Vec<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleSettings {
    pub name: Arc<str>,
    pub agent: AgentName,
    pub every: Duration,
    pub priority: Priority,
    pub skippable: bool,
    pub max_skips: u32,
    /// JSON text.
    pub payload: Arc<[u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    pub memory_governance: bool,
    /// `false`: a fresh process for every task.
    pub worker_pool: bool,
    pub circuit_breakers: bool,
    /// Share of tasks, 0 to 100, that governance and breakers apply to.
    pub rollout_percent: u8,
    pub gc_on_pressure: bool,
}
