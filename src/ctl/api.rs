//! The API's objects as the client reads them, and requests that answer with them.
//!
//! Owns the reading of answers and of refusals. Every field may be missing: a client of one version reads a daemon of
//! another. May import serde and the HTTP client. Must never know how an object is shown.

use super::body::AnswerBody;
use super::error::CtlError;
use super::http::{Answer, Client, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io;

/// The largest JSON object read into memory; a thousand tasks are well below.
const JSON_LIMIT_BYTES: u64 = 32 * 1024 * 1024;
const ERROR_LIMIT_BYTES: u64 = 256 * 1024;

pub struct Api {
    client: Client,
}

/// An answer's text, and what it says.
pub struct Reply<T> {
    pub raw: Vec<u8>,
    pub value: T,
}

impl Api {
    pub fn new(client: Client) -> Api {
        Api { client }
    }

    pub fn get<T: DeserializeOwned>(&self, path: impl Into<String>) -> Result<Reply<T>, CtlError> {
        self.ask(Request::get(path))
    }

    pub fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<Reply<T>, CtlError> {
        let mut body = self.stream(request)?;
        let raw = body.read_whole(JSON_LIMIT_BYTES).map_err(|source| self.lost(source))?;
        let value = serde_json::from_slice(&raw)
            .map_err(|error| self.client.bad_answer(format!("its JSON is not as expected: {error}")))?;
        Ok(Reply { raw, value })
    }

    /// The body of a request that was granted; a refusal becomes an error.
    pub fn stream(&self, request: Request) -> Result<AnswerBody, CtlError> {
        let answer = self.client.send(request)?;
        if (200..300).contains(&answer.status) { Ok(answer.body) } else { Err(self.refusal(answer)) }
    }

    /// What an error while reading a body means.
    pub fn lost(&self, source: io::Error) -> CtlError {
        self.client.lost(source)
    }

    /// An answer that is not what it should be.
    pub fn bad_answer(&self, what: impl Into<String>) -> CtlError {
        self.client.bad_answer(what)
    }

    fn refusal(&self, mut answer: Answer) -> CtlError {
        let status = answer.status;
        let raw = match answer.body.read_whole(ERROR_LIMIT_BYTES) {
            Ok(raw) => raw,
            Err(source) => return self.lost(source),
        };
        let Refusal { code, message, retry_after_s } = serde_json::from_slice::<Refused>(&raw)
            .map_or_else(|_| Refusal::foreign(status, &raw), |refused| refused.error);
        match status {
            401 | 403 => CtlError::Denied { status, code, message },
            429 | 503 => CtlError::TryLater { code, message, retry_after_s: retry_after_s.or(answer.retry_after_s) },
            _ => CtlError::Refused { status, code, message },
        }
    }
}

#[derive(Deserialize)]
struct Refused {
    error: Refusal,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    code: String,
    #[serde(default)]
    message: String,
    retry_after_s: Option<u64>,
}

impl Refusal {
    /// An answer that is not the API's own, such as a proxy's.
    fn foreign(status: u16, raw: &[u8]) -> Refusal {
        let text = String::from_utf8_lossy(raw);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
        Refusal { code: format!("http_{status}"), message: line.chars().take(200).collect(), retry_after_s: None }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    pub id: String,
    pub agent: String,
    pub priority: String,
    pub state: String,
    pub created_at: Option<String>,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    pub attempt: Option<u64>,
    pub max_retries: Option<u64>,
    pub preemptions: Option<u64>,
    pub progress: Option<Progress>,
    pub queue_position: Option<u64>,
    pub request_id: Option<String>,
    pub worker_id: Option<String>,
    pub peak_rss_bytes: Option<u64>,
    /// With the fraction that a microsecond is.
    pub duration_ms: Option<f64>,
    pub payload_bytes: Option<u64>,
    pub result: Option<serde_json::Value>,
    pub result_bytes: Option<u64>,
    pub error: Option<TaskError>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub percent: Option<f64>,
    pub message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskError {
    pub code: String,
    pub message: String,
    pub stack: Option<String>,
    pub exit_status: Option<i64>,
    /// A number or a name.
    pub signal: Option<serde_json::Value>,
    pub stderr_tail: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Tasks {
    pub tasks: Vec<Task>,
}

/// One line of a task's events.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskEvent {
    pub at: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub state: Option<String>,
    pub attempt: Option<u64>,
    pub percent: Option<f64>,
    pub message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Why {
    pub task: String,
    pub state: String,
    pub waits_for: Option<WaitsFor>,
    pub decisions: Vec<Decision>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WaitsFor {
    pub text: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Decision {
    pub at: String,
    pub event: String,
    pub worker: Option<String>,
    pub incident: Option<String>,
    pub text: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub version: String,
    pub state: String,
    pub pid: Option<u64>,
    pub uptime_s: Option<f64>,
    pub config: ConfigStatus,
    pub memory: Memory,
    pub queue: Queue,
    pub workers: Workers,
    pub breakers: Vec<Breaker>,
    pub schedules: Vec<Schedule>,
    pub features: Features,
    pub storage: Storage,
}

/// How the disk of the state directory stands.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Storage {
    /// Why new tasks are refused.
    pub error: Option<String>,
    /// What was found damaged since the daemon's start.
    pub damaged: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigStatus {
    pub file: Option<String>,
    pub loaded_at: Option<String>,
    pub reload: Option<Reload>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reload {
    pub at: Option<String>,
    pub result: String,
    pub error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Features {
    pub memory_governance: Option<bool>,
    pub worker_pool: Option<bool>,
    pub circuit_breakers: Option<bool>,
    pub rollout_percent: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    pub level: String,
    pub mode: String,
    pub incident: Option<String>,
    pub usage_bytes: u64,
    pub limit_bytes: u64,
    pub pressure: Pressure,
    pub thresholds: Thresholds,
    pub daemon: DaemonMemory,
    pub host: Option<HostMemory>,
    pub enforcement: Option<Enforcement>,
    pub sampled_at: Option<String>,
}

/// What holds a worker's limits, as the daemon found it at its start.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Enforcement {
    /// `v2`, `v1` or `none`.
    pub cgroup: String,
    pub detail: String,
    pub psi: bool,
    /// `realtime`, `nice` or `ordinary`.
    pub watchdog: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pressure {
    pub budget: Option<f64>,
    pub cgroup: Option<f64>,
    pub host: Option<f64>,
}

impl Pressure {
    pub fn sources(&self) -> impl Iterator<Item = (&'static str, f64)> {
        [("budget", self.budget), ("cgroup", self.cgroup), ("host", self.host)]
            .into_iter()
            .filter_map(|(source, ratio)| Some((source, ratio?)))
    }

    /// The pressure that counts: the highest of the sources.
    pub fn highest(&self) -> f64 {
        self.sources().map(|(_, ratio)| ratio).fold(0.0, f64::max)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Thresholds {
    pub warning: f64,
    pub critical: f64,
    pub reject: f64,
    pub emergency: f64,
}

impl Thresholds {
    pub fn named(&self) -> [(&'static str, f64); 4] {
        [("warning", self.warning), ("critical", self.critical), ("reject", self.reject), ("emergency", self.emergency)]
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonMemory {
    pub rss_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostMemory {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Queue {
    pub depth: u64,
    pub max_depth: u64,
    pub parked: u64,
    pub by_priority: ByPriority,
    pub limits: ByPriority,
    pub tasks: Vec<Waiting>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ByPriority {
    pub critical: u64,
    pub high: u64,
    pub normal: u64,
    pub low: u64,
    pub heartbeat: u64,
}

impl ByPriority {
    pub fn named(&self) -> [(&'static str, u64); 5] {
        [
            ("critical", self.critical),
            ("high", self.high),
            ("normal", self.normal),
            ("low", self.low),
            ("heartbeat", self.heartbeat),
        ]
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Waiting {
    pub id: String,
    pub agent: String,
    pub priority: String,
    pub position: Option<u64>,
    pub state: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Workers {
    pub max: u64,
    pub active: u64,
    pub idle: u64,
    pub workers: Vec<Worker>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Worker {
    pub id: String,
    pub agent: String,
    pub mode: String,
    pub pid: Option<u64>,
    pub state: String,
    pub task: Option<String>,
    pub started_at: Option<String>,
    pub tasks_done: Option<u64>,
    pub rss_bytes: Option<u64>,
    pub heap_used_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Breakers {
    pub breakers: Vec<Breaker>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Breaker {
    pub name: String,
    pub state: String,
    pub failures: u64,
    pub successes: u64,
    pub openings: u64,
    pub retry_after_ms: Option<u64>,
    pub forced: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Schedule {
    pub name: String,
    pub agent: String,
    pub every_s: Option<u64>,
    pub next_at: Option<String>,
    pub skipped: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reloaded {
    pub result: String,
    pub changed: Vec<String>,
    pub needs_restart: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Drained {
    pub state: String,
}
