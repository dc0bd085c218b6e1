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
    workers: BTreeMap<WorkerId, Statm>,
    told: Option<(Duration, MemorySample)>,
}

impl Monitor {
    pub fn new(
        settings: MonitorSettings,
        messages_rx: Receiver<Message>,
        control_tx: Sender<Control>,
        clock: Clock,
    ) -> io::Result<Monitor> {
        let (meminfo, daemon) = (Meminfo::open()?, Statm::open(None)?);
        Ok(Monitor { settings, messages_rx, control_tx, clock, meminfo, daemon, workers: BTreeMap::new(), told: None })
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let mut next = self.clock.now();
        loop {
            match self.messages_rx.recv_timeout(next.saturating_sub(self.clock.now())) {
                Ok(Message::Watch(Watch::Started { worker, pid })) => self.watch(worker, pid),
                Ok(Message::Watch(Watch::Ended { worker })) => {
                    self.workers.remove(&worker);
                }
                Ok(Message::Settings(settings)) => {
                    self.settings = settings;
                    next = self.clock.now();
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.sample();
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
    }

    fn sample(&mut self) {
        let sample = match self.read() {
            Ok(sample) => sample,
            Err(error) => return log::warn!("cannot read the memory: {error}; the last figures stay"),
        };
        let now = self.clock.now();
        log::trace!(usageBytes = sample.usage_bytes, availableBytes = sample.available_bytes; "MEMORY_SNAPSHOT");
        if self.told.as_ref().is_some_and(|(at, told)| now < *at + TELL_EVERY && !differs(told, &sample)) {
            return;
        }
        match self.control_tx.try_send(Control::Memory(Box::new(sample.clone()))) {
            Ok(()) => self.told = Some((now, sample)),
            Err(TrySendError::Full(_)) => log::warn!("the scheduler is behind; a memory reading is dropped"),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn read(&self) -> io::Result<MemorySample> {
        let host = self.meminfo.read()?;
        let daemon = self.daemon.read()?;
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
