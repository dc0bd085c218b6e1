//! The sampling thread: reads at its interval, tells the scheduler what changed.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::reading::{Meminfo, Resident, Statm};
use crate::core::governor::MemorySample;
use crate::core::ids::WorkerId;
use crate::scheduler::Watch;
use crate::scheduler::call::Control;
use crate::sys::clock::Clock;

/// A reading that says the same as the last is passed on this often all the same, so that figures are never old.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The daemon gives its own spare memory back once it has had no worker for so long, after the start and after work.
const SETTLE_AFTER: Duration = Duration::from_secs(5);

/// A change that is worth waking the scheduler for: half a percent of a ratio, 1 MiB of memory.
const RATIO_STEP: f64 = 0.005;
const BYTES_STEP: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonitorSettings {
    /// The longest time between two readings.
    pub interval: Duration,
    pub uses_budget: bool,
    pub uses_host: bool,
}

#[derive(Debug)]
pub enum Message {
    Watch(Watch),
    Settings(MonitorSettings),
    Stop,
}

pub struct Monitor {
    settings: MonitorSettings,
    messages_rx: Receiver<Message>,
    control_tx: Sender<Control>,
    clock: Clock,
    meminfo: Meminfo,
    daemon: Statm,
    /// The daemon's own memory at the last look.
    own: Resident,
    workers: BTreeMap<WorkerId, Statm>,
    told: Option<(Duration, MemorySample)>,
    /// When to settle; `None`: done, or there are workers.
    settle_at: Option<Duration>,
}

impl Monitor {
    pub fn new(
        settings: MonitorSettings,
        messages_rx: Receiver<Message>,
        control_tx: Sender<Control>,
        clock: Clock,
    ) -> io::Result<Monitor> {
        let (meminfo, daemon) = (Meminfo::open()?, Statm::open(None)?);
        let workers = BTreeMap::new();
        let settle_at = Some(clock.now() + SETTLE_AFTER);
        let own = daemon.read()?;
        Ok(Monitor { settings, messages_rx, control_tx, clock, meminfo, daemon, own, workers, told: None, settle_at })
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let mut next = self.clock.now();
        loop {
            match self.messages_rx.recv_timeout(next.saturating_sub(self.clock.now())) {
                Ok(Message::Watch(Watch::Started { worker, pid })) => self.watch(worker, pid),
                Ok(Message::Watch(Watch::Ended { worker })) => self.forget(worker),
                Ok(Message::Settings(settings)) => {
                    self.settings = settings;
                    next = self.clock.now();
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.sample();
                    self.settle();
                    next = self.clock.now() + self.settings.interval;
                }
            }
        }
    }

    fn watch(&mut self, worker: WorkerId, pid: u32) {
        // A process that is gone already has no memory to watch; its exit is reported elsewhere.
        if let Ok(statm) = Statm::open(Some(pid)) {
            self.workers.insert(worker, statm);
        }
        self.settle_at = None;
    }

    fn forget(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        if self.workers.is_empty() {
            self.settle_at = Some(self.clock.now() + SETTLE_AFTER);
        }
    }

    /// After the start, and after a burst of work, the daemon is as small as before.
    fn settle(&mut self) {
        if self.settle_at.is_some_and(|at| at <= self.clock.now()) {
            self.settle_at = None;
            crate::sys::footprint::settle();
        }
    }

    fn sample(&mut self) {
        let now = self.clock.now();
        let is_old = self.told.as_ref().is_none_or(|(at, _)| now >= *at + TELL_EVERY);
        let sample = match self.read(is_old) {
            Ok(sample) => sample,
            Err(error) => return log::warn!("cannot read the memory: {error}; the last figures stay"),
        };
        if !is_old && self.told.as_ref().is_some_and(|(_, told)| !differs(told, &sample)) {
            return;
        }
        log::debug!(
            usageBytes = sample.usage_bytes, daemonRssBytes = sample.daemon_rss_bytes, workers = sample.workers.len(),
            availableBytes = sample.available_bytes;
            "MEMORY_SNAPSHOT"
        );
        match self.control_tx.try_send(Control::Memory(Box::new(sample.clone()))) {
            Ok(()) => self.told = Some((now, sample)),
            Err(TrySendError::Full(_)) => log::warn!("the scheduler is behind; a memory reading is dropped"),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn read(&mut self, is_old: bool) -> io::Result<MemorySample> {
        let host = self.meminfo.read()?;
        // Why: each file read costs more than all else here, and a daemon without workers hardly changes.
        if is_old || !self.workers.is_empty() {
            self.own = self.daemon.read()?;
        }
        let daemon = self.own;
        let workers: Vec<(WorkerId, Resident)> = self
            .workers
            .iter()
            .filter_map(|(worker, statm)| statm.read().ok().map(|resident| (*worker, resident)))
            .collect();
        let all = || workers.iter().map(|(_, resident)| *resident).chain([daemon]);
        // Why: two workers running the same program share its text, which must not be charged twice.
        let private: u64 = all().map(|resident| resident.rss.saturating_sub(resident.shared)).sum();
        let shared = all().map(|resident| resident.shared).max().unwrap_or(0);
        let host_ratio = 1.0 - host.available as f64 / host.total.max(1) as f64;
        Ok(MemorySample {
            usage_bytes: private + shared,
            daemon_rss_bytes: daemon.rss,
            workers: workers.iter().map(|(worker, resident)| (*worker, resident.rss)).collect(),
            total_bytes: host.total,
            available_bytes: host.available,
            cgroup: None,
            host: (self.settings.uses_host && host.total > 0).then_some(host_ratio),
            budget_counts: self.settings.uses_budget,
        })
    }
}

/// Whether somebody who knows `told` has to be told of `new`.
fn differs(told: &MemorySample, new: &MemorySample) -> bool {
    let ratio = |told: Option<f64>, new: Option<f64>| match (told, new) {
        (Some(told), Some(new)) => (told - new).abs() >= RATIO_STEP,
        (told, new) => told != new,
    };
    let bytes = |told: u64, new: u64| told.abs_diff(new) >= BYTES_STEP;
    let same_workers = told.workers.len() == new.workers.len()
        && told.workers.iter().zip(&new.workers).all(|(told, new)| told.0 == new.0 && !bytes(told.1, new.1));
    !same_workers
        || bytes(told.usage_bytes, new.usage_bytes)
        || ratio(told.host, new.host)
        || ratio(told.cgroup, new.cgroup)
        || told.budget_counts != new.budget_counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_that_matters_wakes_the_scheduler() {
        let told = MemorySample { usage_bytes: 10 << 20, host: Some(0.5), ..MemorySample::default() };
        assert!(!differs(&told, &told.clone()));
        assert!(!differs(&told, &MemorySample { usage_bytes: (10 << 20) + 4096, host: Some(0.501), ..told.clone() }));
        for new in [
            MemorySample { usage_bytes: 12 << 20, ..told.clone() },
            MemorySample { host: Some(0.51), ..told.clone() },
            MemorySample { host: None, ..told.clone() },
            MemorySample { workers: vec![(WorkerId(1), 5)], ..told.clone() },
        ] {
            assert!(differs(&told, &new), "{new:?}");
        }
    }
}
