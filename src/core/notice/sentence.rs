//! A notice in words.

use super::Notice;

impl Notice {
    /// One sentence for a person who asks why.
    pub fn sentence(&self) -> String {
        match self {
            Notice::TaskAccepted { priority, waiting, .. } => {
                format!("accepted at priority {}; {waiting} were waiting", priority.name())
            }
            Notice::TaskRejected { code, text, .. } => format!("refused ({code}): {text}"),
            Notice::TaskWaiting { text, .. } => format!("waits: {text}"),
            Notice::TaskStarted { worker, attempt, waited, .. } => {
                format!("started on worker {worker}, attempt {attempt}, after waiting {} ms", waited.as_millis())
            }
            Notice::TaskProgress { percent, .. } => format!("{percent} % done"),
            Notice::TaskCompleted { run_time, .. } => format!("completed in {} ms", run_time.as_millis()),
            Notice::TaskFailed { code, text, .. } => format!("failed ({}): {text}", code.name()),
            Notice::TaskRetried { code, text, retries, max_retries, .. } => {
                format!("goes back to wait for retry {retries} of {max_retries} after {}: {text}", code.name())
            }
            Notice::TaskCancelled { .. } => "cancelled by request".to_string(),
            Notice::TaskPreempted { has_checkpoint, preemptions, .. } => format!(
                "preempted {}, for time {preemptions}; it runs again before the queued tasks of its level",
                if *has_checkpoint { "with a checkpoint" } else { "without a checkpoint" }
            ),
            Notice::TaskEvicted { made_room_for, .. } => {
                format!("evicted: the queue was full and critical task {made_room_for} needed its place")
            }
            Notice::TaskKilled { code, text, .. } => format!("its worker was killed ({}): {text}", code.name()),
            Notice::HeartbeatSkipped { text, .. } => format!("skipped: {text}"),
            Notice::WorkerSpawned { worker, pid, .. } => format!("worker {worker} started as process {pid}"),
            Notice::WorkerExited { worker, reason, text, .. } => {
                format!("worker {worker} ended ({}){}{text}", reason.name(), if text.is_empty() { "" } else { ": " })
            }
            Notice::WorkerKilled { worker, text, .. } => format!("worker {worker} was killed: {text}"),
            Notice::AgentUnavailable { agent, failures, retry_after } => format!(
                "agent {agent} failed {failures} times within the hour; it is started again in {} s",
                retry_after.as_secs()
            ),
            Notice::Circuit { breaker, to, .. } => format!("circuit breaker {breaker} is now {}", to.name()),
            Notice::WorkerSoftLimit { worker, rss_bytes, soft_limit_bytes, .. } => format!(
                "worker {worker} uses {} MiB, over its soft limit of {} MiB: it is asked to free memory, and replaced after its task if it does not",
                rss_bytes >> 20,
                soft_limit_bytes >> 20
            ),
            Notice::MemoryAction { action, text, .. } => format!("memory ({action}): {text}"),
            Notice::StorageFull { text, .. } => format!("new tasks are refused for want of disk: {text}"),
            Notice::StorageCleared { .. } => "the disk has room again, and new tasks are taken".to_string(),
            Notice::ConfigReloaded { changed, needs_restart } => {
                let named = |keys: &str| if keys.is_empty() { "nothing".to_string() } else { keys.to_string() };
                format!(
                    "the configuration was read again: changed {}; needs a restart: {}",
                    named(changed),
                    named(needs_restart)
                )
            }
            Notice::ConfigRejected { text } => format!("the configuration was not taken, the old one stays: {text}"),
            Notice::MemoryLevel { from, to, pressure, .. } => {
                format!(
                    "memory level went from {} to {} at {:.1} % of the limit",
                    from.name(),
                    to.name(),
                    pressure * 100.0
                )
            }
        }
    }
}
