//! What the monitor hears of workers: that they come, what they are held to, whether they work, that they go.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::ids::WorkerId;
use crate::core::order::{Order, Report, WorkerReport};
use crate::core::settings::AgentMode;
use crate::memory::{Activity, MonitorHandle};

/// What the monitor has to look at.
#[derive(Debug, Clone)]
pub enum Watch {
    Started { worker: WorkerId, pid: u32, soft_limit_bytes: u64, hard_limit_bytes: u64, activity: Arc<Activity> },
    Ended { worker: WorkerId },
}

/// All workers that were ordered and have not ended.
pub struct Watching {
    monitor: MonitorHandle,
    workers: BTreeMap<WorkerId, Worker>,
}

struct Worker {
    soft_limit_bytes: u64,
    hard_limit_bytes: u64,
    mode: AgentMode,
    activity: Arc<Activity>,
}

impl Watching {
    pub fn new(monitor: MonitorHandle) -> Watching {
        Watching { monitor, workers: BTreeMap::new() }
    }

    pub fn ordered(&mut self, worker: WorkerId, order: &Order) {
        match order {
            Order::Spawn { agent, .. } => {
                let activity = self.monitor.activity();
                // A start is work.
                activity.begin();
                let (soft_limit_bytes, hard_limit_bytes) = (agent.soft_limit_bytes, agent.hard_limit_bytes);
                self.workers.insert(worker, Worker { soft_limit_bytes, hard_limit_bytes, mode: agent.mode, activity });
            }
            Order::Assign(_) => self.activity(worker, Activity::begin),
            Order::Cancel { .. }
            | Order::Preempt { .. }
            | Order::CollectGarbage
            | Order::BreakerState { .. }
            | Order::Shutdown
            | Order::Kill => {}
        }
    }

    pub fn reported(&mut self, report: &WorkerReport) {
        let worker = report.worker;
        match &report.report {
            Report::Spawned { pid } => {
                let Some(known) = self.workers.get(&worker) else { return };
                self.monitor.watch(Watch::Started {
                    worker,
                    pid: *pid,
                    soft_limit_bytes: known.soft_limit_bytes,
                    hard_limit_bytes: known.hard_limit_bytes,
                    activity: Arc::clone(&known.activity),
                });
            }
            Report::Exited(_) => {
                self.workers.remove(&worker);
                self.monitor.watch(Watch::Ended { worker });
            }
            Report::SpawnFailed { .. } => drop(self.workers.remove(&worker)),
            Report::Ready { .. } | Report::Completed { .. } | Report::Failed { .. } | Report::Preempted { .. } => {
                self.activity(worker, Activity::end);
            }
            Report::Progress { .. } | Report::Memory(_) | Report::Breaker { .. } | Report::ProtocolError { .. } => {}
        }
    }

    /// A oneshot worker is at work from its start to its end.
    fn activity(&self, worker: WorkerId, change: fn(&Activity)) {
        if let Some(Worker { mode: AgentMode::Persistent, activity, .. }) = self.workers.get(&worker) {
            change(activity);
        }
    }
}
