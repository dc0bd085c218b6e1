//! The sampling thread: reads what may soon matter, tells the scheduler what did.
//!
//! Every worker, and the host, has its own time of the next reading ([`super::pace`]); the thread sleeps until the first
//! of them, until a message or a task of an idle worker rings its bell, or until the kernel tells of a stall.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use super::activity::Activity;
use super::cgroup::{Groups, Hold, OwnCgroup};
use super::pace::{self, Cost, Growth, IDLE_GROWTH, Limits, Line, PLAUSIBLE_GROWTH, RAISED_CEILING, Rates};
use super::reading::{Host, Meminfo, Resident, Statm};
use super::stall::Stall;
use super::tell;
use super::tree::{Orphans, Tree, TreeMemory};
use crate::core::governor::{DaemonMemory, Fill, MemorySample};
use crate::core::ids::WorkerId;
use crate::scheduler::Watch;
use crate::scheduler::call::Control;
use crate::sys::clock::{Clock, thread_time};
use crate::sys::eventfd::EventFd;
use crate::sys::footprint;
use crate::sys::mark;
use crate::sys::poll::PollSet;

/// The daemon gives its own spare memory back once it has had no worker for so long, after the start and after work.
const SETTLE_AFTER: Duration = Duration::from_secs(5);

/// Readings that are due within this time of another one are made with it: once awake, one more costs next to nothing.
const TOGETHER: Duration = Duration::from_millis(4);

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MonitorSettings {
    /// The longest time between two readings.
    pub interval: Duration,
    pub sources: Sources,
    pub limit_bytes: u64,
    pub min_free_bytes: u64,
    /// Ratios, ascending.
    pub thresholds: [f64; 4],
    pub hysteresis: f64,
}

/// What the monitor has to know of the daemon it is part of.
#[derive(Debug)]
pub struct Surroundings {
    pub clock: Clock,
    /// What its workers' processes bear.
    pub instance: mark::Instance,
    /// Where its workers' cgroups are.
    pub groups: Option<Groups>,
}

/// Which sources of pressure count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sources {
    pub budget: bool,
    pub cgroup: bool,
    pub host: bool,
}

#[derive(Debug)]
pub enum Message {
    Watch(Watch),
    Settings(MonitorSettings),
    Stop,
}

/// The way to the monitor.
#[derive(Debug, Clone)]
pub struct MonitorHandle {
    messages_tx: Sender<Message>,
    bell: Arc<EventFd>,
}

impl MonitorHandle {
    /// Blocks while the monitor is behind.
    pub fn send(&self, message: Message) {
        // Where there is no monitor any more, nobody has to be told.
        let _ = self.messages_tx.send(message);
        self.bell.ring();
    }

    /// Never blocks. A monitor that lags learns of the ended from /proc; one that it never hears of is held by its cgroup
    /// or not at all, which is logged.
    pub fn watch(&self, watch: Watch) {
        if let Err(TrySendError::Full(Message::Watch(watch))) = self.messages_tx.try_send(Message::Watch(watch)) {
            log::warn!("the monitor is behind; it does not hear of {watch:?}");
        }
        self.bell.ring();
    }

    /// For a worker that is about to be watched: it begins as one that is at work, since a start is work.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::new(Activity::new(Arc::clone(&self.bell)))
    }
}

pub struct Monitor {
    settings: MonitorSettings,
    messages_rx: Receiver<Message>,
    control_tx: Sender<Control>,
    bell: Arc<EventFd>,
    clock: Clock,
    groups: Option<Groups>,
    stall: Option<Stall>,
    meminfo: Meminfo,
    own_cgroup: Option<OwnCgroup>,
    daemon: Statm,
    workers: BTreeMap<WorkerId, Watched>,
    /// What is told of each worker's limits, for [`tell::is_news`].
    limits: BTreeMap<WorkerId, Limits>,
    orphans: Orphans,
    last: Last,
    told: Option<(Duration, MemorySample)>,
    next_host: Duration,
    /// When to settle; `None`: done, or there are workers.
    settle_at: Option<Duration>,
    cost: Cost,
    set: PollSet,
}

/// The last readings that are not a worker's.
#[derive(Debug, Default)]
struct Last {
    daemon: Resident,
    host: Host,
    cgroup: Option<Fill>,
    host_used: Growth,
}

#[derive(Debug)]
struct Watched {
    pid: u32,
    tree: Tree,
    limits: Limits,
    hold: Option<Hold>,
    activity: Arc<Activity>,
    turns_seen: u64,
    is_busy: bool,
    growth: Growth,
    memory: TreeMemory,
    next: Duration,
}

impl Watched {
    fn rates(&self) -> Rates {
        Rates { seen: self.growth.rate(), plausible: if self.is_busy { PLAUSIBLE_GROWTH } else { IDLE_GROWTH } }
    }
}

impl Monitor {
    /// `capacity`: workers that can come and go between two looks.
    pub fn new(
        settings: MonitorSettings,
        surroundings: Surroundings,
        capacity: usize,
        control_tx: Sender<Control>,
    ) -> io::Result<(Monitor, MonitorHandle)> {
        let Surroundings { clock, instance, groups } = surroundings;
        let (messages_tx, messages_rx) = bounded(capacity);
        let bell = Arc::new(EventFd::new()?);
        let daemon = Statm::open(None)?;
        let last = Last { daemon: daemon.read()?, ..Last::default() };
        let stall = Stall::arm(Path::new("/proc/pressure/memory"));
        if let Err(error) = &stall {
            log::debug!("no wake-up by /proc/pressure/memory: {error}; readings go by the clock alone");
        }
        let monitor = Monitor {
            settings,
            messages_rx,
            control_tx,
            bell: Arc::clone(&bell),
            clock,
            groups,
            stall: stall.ok(),
            meminfo: Meminfo::open()?,
            own_cgroup: OwnCgroup::find(Path::new("/")),
            daemon,
            workers: BTreeMap::new(),
            limits: BTreeMap::new(),
            orphans: Orphans::new(instance),
            last,
            told: None,
            next_host: Duration::ZERO,
            settle_at: Some(clock.now() + SETTLE_AFTER),
            cost: Cost::default(),
            set: PollSet::for_any_limit()?,
        };
        Ok((monitor, MonitorHandle { messages_tx, bell }))
    }

    /// Whether the kernel wakes it when memory stalls.
    pub fn hears_stalls(&self) -> bool {
        self.stall.is_some()
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let mut used = thread_time();
        while self.take_messages() {
            let now = self.clock.now();
            if self.next() <= now {
                self.sample(now);
                self.settle(now);
                let used_before = std::mem::replace(&mut used, thread_time());
                self.cost.note(used.saturating_sub(used_before));
            }
            self.wait();
        }
    }

    fn next(&self) -> Duration {
        self.workers.values().map(|worker| worker.next).fold(self.next_host, Duration::min)
    }

    fn take_messages(&mut self) -> bool {
        loop {
            match self.messages_rx.try_recv() {
                Ok(Message::Watch(Watch::Started { worker, pid, soft_limit_bytes, hard_limit_bytes, activity })) => {
                    let groups = self.groups.as_ref();
                    let hold = groups.and_then(|groups| Hold::of(groups, worker, hard_limit_bytes));
                    let limits = Limits { soft: soft_limit_bytes, hard: hard_limit_bytes, is_held: hold.is_some() };
                    self.watch(worker, pid, limits, hold, activity);
                }
                Ok(Message::Watch(Watch::Ended { worker })) => self.forget(worker),
                Ok(Message::Settings(settings)) => {
                    self.settings = settings;
                    self.all_due();
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn wait(&mut self) {
        self.set.clear();
        let bell = self.set.readable(Some(self.bell.as_fd()));
        let stall = self.set.urgent(self.stall.as_ref().map(AsFd::as_fd));
        let timeout = self.next().saturating_sub(self.clock.now());
        if let Err(error) = self.set.wait(Some(timeout)) {
            // It fails for want of kernel memory or by our own fault; either way nobody could be watched any more.
            panic!("poll(2) of the monitor's descriptors failed: {error}");
        }
        if self.set.is_ready(bell) {
            self.bell.hear();
            let now = self.clock.now();
            for worker in self.workers.values_mut() {
                if !worker.is_busy && worker.activity.has_changed(worker.turns_seen) {
                    worker.next = now;
                }
            }
        }
        if self.set.is_broken(stall) {
            self.stall = None;
        } else if self.set.is_ready(stall) {
            self.all_due();
        }
    }

    fn watch(&mut self, worker: WorkerId, pid: u32, limits: Limits, hold: Option<Hold>, activity: Arc<Activity>) {
        let watched = Watched {
            pid,
            tree: Tree::new(pid),
            limits,
            hold,
            activity,
            turns_seen: 0,
            is_busy: true,
            growth: Growth::default(),
            memory: TreeMemory::default(),
            next: Duration::ZERO,
        };
        self.workers.insert(worker, watched);
        self.limits.insert(worker, limits);
        self.settle_at = None;
        self.next_host = Duration::ZERO;
    }

    fn forget(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        self.limits.remove(&worker);
        // What it held is back: whoever waits for that should hear of it now.
        self.all_due();
        if self.workers.is_empty() {
            self.settle_at = Some(self.clock.now() + SETTLE_AFTER);
        }
    }

    fn all_due(&mut self) {
        self.next_host = Duration::ZERO;
        self.workers.values_mut().for_each(|worker| worker.next = Duration::ZERO);
    }

    /// After the start, and after a burst of work, the daemon is as small as before.
    fn settle(&mut self, now: Duration) {
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = None;
            footprint::settle();
        }
    }

    fn sample(&mut self, now: Duration) {
        let is_old = self.told.as_ref().is_none_or(|(at, _)| now >= *at + tell::AT_LEAST_EVERY);
        self.read_workers(now);
        if (is_old || self.next_host <= now + TOGETHER)
            && let Err(error) = self.read_host(now, is_old)
        {
            log::warn!("cannot read the memory: {error}; the last figures stay");
        }
        self.pace(now);
        self.tell(now, is_old);
    }

    fn read_workers(&mut self, now: Duration) {
        let is_due = |worker: &Watched| worker.next <= now + TOGETHER;
        if self.workers.values().any(|worker| is_due(worker) && worker.tree.is_list_due(now)) {
            self.orphans.list();
        }
        let alone = self.workers.len() == 1;
        for (id, worker) in self.workers.iter_mut().filter(|(_, worker)| is_due(worker)) {
            if worker.tree.is_list_due(now) {
                worker.tree.list(&self.orphans.of(*id, worker.pid, alone), &self.clock);
            }
            worker.memory = worker.tree.read();
            worker.growth.note(now, worker.memory.rss);
            if let Some(hold) = &mut worker.hold {
                worker.limits.is_held = hold.adjust(worker.memory.rss);
            }
            worker.is_busy = worker.activity.look(&mut worker.turns_seen);
        }
    }

    fn read_host(&mut self, now: Duration, is_old: bool) -> io::Result<()> {
        self.last.host = self.meminfo.read()?;
        let used = self.last.host.total.saturating_sub(self.last.host.available);
        self.last.host_used.note(now, used);
        if self.settings.sources.cgroup {
            self.last.cgroup = self.own_cgroup.as_ref().and_then(OwnCgroup::read);
        }
        // Why: each file read costs more than all else here, and a daemon without workers hardly changes.
        if is_old || !self.workers.is_empty() {
            self.last.daemon = self.daemon.read()?;
        }
        Ok(())
    }

    /// Says when each worker and the host are read next.
    fn pace(&mut self, now: Duration) {
        let settings = self.settings;
        let (usage, growth) = (self.usage(), self.workers.values().map(|worker| worker.rates().fastest()).sum::<u64>());
        let busy = self.workers.values().filter(|worker| worker.is_busy).count() as u64 * PLAUSIBLE_GROWTH;
        let level = |used, limit, growth| pace::level_line(used, limit, &settings.thresholds, growth);
        let Host { total, available, .. } = self.last.host;
        let host_growth = self.last.host_used.rate().max(busy);
        let budget = settings.sources.budget.then(|| level(usage, settings.limit_bytes, growth)).flatten();
        let is_raised = self.is_raised(usage);
        let ceiling = if is_raised { settings.interval.min(RAISED_CEILING) } else { settings.interval };
        for worker in self.workers.values_mut().filter(|worker| worker.next <= now + TOGETHER) {
            let lines = pace::worker_lines(worker.memory.rss, worker.limits, worker.rates(), self.cost);
            // A worker that does not grow brings nobody nearer to the budget's levels.
            let budget = budget.filter(|_| worker.rates().fastest() > IDLE_GROWTH);
            worker.next = now + pace::period(lines.chain(budget), ceiling);
        }
        if self.next_host <= now + TOGETHER {
            let cgroup = self.last.cgroup.and_then(|fill| level(fill.used, fill.limit, growth));
            let host =
                settings.sources.host.then(|| level(total.saturating_sub(available), total, host_growth)).flatten();
            let min_free = pace::min_free_line(available, settings.min_free_bytes, host_growth);
            let lines: [Option<Line>; 3] = [cgroup, host, min_free];
            self.next_host = now + pace::period(lines.into_iter().flatten(), ceiling);
        }
    }

    /// Something was asked of the workers, or is about to be.
    fn is_raised(&self, usage: u64) -> bool {
        let lowest = self.settings.thresholds[0] - self.settings.hysteresis;
        let is_over = |used: u64, limit: u64| limit > 0 && used as f64 >= lowest * limit as f64;
        let Host { total, available, .. } = self.last.host;
        !self.workers.is_empty()
            && (self.settings.sources.budget && is_over(usage, self.settings.limit_bytes)
                || self.settings.sources.host && is_over(total.saturating_sub(available), total)
                || available < self.settings.min_free_bytes.saturating_mul(2)
                || self.last.cgroup.is_some_and(|fill| is_over(fill.used, fill.limit))
                || self.workers.values().any(|worker| worker.memory.rss > worker.limits.soft))
    }

    /// Why: two processes running the same program share its text, which must not be charged twice.
    fn usage(&self) -> u64 {
        let daemon = self.last.daemon;
        let workers = || self.workers.values().map(|worker| worker.memory);
        let private = workers().map(|memory| memory.private).sum::<u64>() + daemon.rss.saturating_sub(daemon.shared);
        private + workers().map(|memory| memory.shared).fold(daemon.shared, u64::max)
    }

    fn tell(&mut self, now: Duration, is_old: bool) {
        let mut sample = self.reading();
        let is_news = self.told.as_ref().is_none_or(|(at, told)| {
            tell::is_news(told, now.saturating_sub(*at), &sample, &self.settings, &self.limits)
        });
        if !is_news {
            return;
        }
        let heap = footprint::heap();
        sample.daemon =
            DaemonMemory { heap_used: heap.used, heap_total: heap.total, external: heap.mapped, ..sample.daemon };
        if is_old {
            log::debug!(
                usageBytes = sample.usage_bytes, daemonRssBytes = sample.daemon.rss,
                daemonHeapBytes = sample.daemon.heap_used, workers = sample.workers.len(),
                availableBytes = sample.available_bytes, swapFreeBytes = sample.swap_free_bytes;
                "MEMORY_SNAPSHOT"
            );
        }
        match self.control_tx.try_send(Control::Memory(Box::new(sample.clone()))) {
            Ok(()) => self.told = Some((now, sample)),
            Err(TrySendError::Full(_)) => log::warn!("the scheduler is behind; a memory reading is dropped"),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn reading(&self) -> MemorySample {
        let Last { daemon, host, cgroup, .. } = &self.last;
        let host_ratio = 1.0 - host.available as f64 / host.total.max(1) as f64;
        MemorySample {
            usage_bytes: self.usage(),
            daemon: DaemonMemory { rss: daemon.rss, ..DaemonMemory::default() },
            workers: self.workers.iter().map(|(worker, watched)| (*worker, watched.memory.rss)).collect(),
            total_bytes: host.total,
            available_bytes: host.available,
            swap_free_bytes: host.swap_free,
            cgroup: cgroup.filter(|_| self.settings.sources.cgroup),
            host: (self.settings.sources.host && host.total > 0).then_some(host_ratio),
            budget_counts: self.settings.sources.budget,
        }
    }
}
