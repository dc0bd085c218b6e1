//! The loop: one thread that starts, hears, tells, signals and reaps every worker.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use crate::core::ids::WorkerId;
use crate::core::order::{Order, Report, WorkerReport};
use crate::memory::cgroup::Cgroups;
use crate::spool::Files;
use crate::sys::clock::Clock;
use crate::sys::eventfd::EventFd;
use crate::sys::limits;
use crate::sys::poll::PollSet;
use crate::sys::process::{self, Child, Signal};

use super::guardian::Instance;
use super::process::Worker;
use super::room::Room;
use super::tree;

/// The dead among what living workers left to us are reaped this often at most, and only when something else woke us.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// A tree that KILL has not ended in this time (a process stuck in the kernel) is given up, loudly.
const TREE_PATIENCE: Duration = Duration::from_secs(10);
/// When a tree could not be looked at (no descriptors, no memory), the next try is after this.
const TREE_RETRY: Duration = Duration::from_millis(200);
/// A limit of open files that is too low is told of again after this, as long as it is.
const LIMIT_REMINDER: Duration = Duration::from_secs(60);

pub struct SupervisorSettings {
    pub files: Files,
    /// The largest result, in bytes: `spool.retention_mb`.
    pub result_max_bytes: u64,
    pub clock: Clock,
    /// How long [`SupervisorHandle::stop`] waits for killed processes to be gone, and for somebody to hear of it.
    pub stop_grace: Duration,
    pub instance: Instance,
    pub cgroups: Cgroups,
}

/// The order did not fit: more are in flight than the scheduler promised. Nothing was done about it.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the supervisor's queue of orders is full or its thread has ended")]
pub struct QueueFull(pub Order);

/// Makes a supervisor and the handle to it. `capacity` is the most orders that can be in flight. Fails where the kernel
/// lacks what it rests on: pidfd_open(2), Linux 5.3.
pub fn supervisor(
    settings: SupervisorSettings,
    reports_tx: Sender<WorkerReport>,
    capacity: usize,
) -> io::Result<(Supervisor, SupervisorHandle)> {
    process::open_pidfd(std::process::id())?;
    let guardian = settings.instance.guardian.map(|pid| Ok::<_, io::Error>((pid, process::open_pidfd(pid)?)));
    let (orders_tx, orders_rx) = bounded(capacity);
    let shared = Arc::new(Shared { bell: EventFd::new()?, must_stop: AtomicBool::new(false) });
    let SupervisorSettings { files, result_max_bytes, clock, stop_grace, instance, cgroups } = settings;
    let supervisor = Supervisor {
        room: Room::new(files, result_max_bytes, instance.mark, cgroups, clock, reports_tx),
        shared: Arc::clone(&shared),
        orders_rx,
        workers: Vec::new(),
        guardian: guardian.transpose()?,
        stop_grace,
        next_reap: Duration::ZERO,
        next_look: None,
        next_reminder: Duration::ZERO,
        set: PollSet::for_any_limit()?,
    };
    Ok((supervisor, SupervisorHandle { orders_tx, shared: WakeOnDrop(shared) }))
}

#[derive(Debug)]
struct Shared {
    bell: EventFd,
    must_stop: AtomicBool,
}

/// The way to the supervisor. When the last one is dropped, it stops as if told to.
#[derive(Debug, Clone)]
pub struct SupervisorHandle {
    // INVARIANT: declared, and so dropped, before the bell: the woken supervisor must find the channel closed.
    orders_tx: Sender<(WorkerId, Order)>,
    shared: WakeOnDrop,
}

#[derive(Debug, Clone)]
struct WakeOnDrop(Arc<Shared>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.bell.ring();
    }
}

impl SupervisorHandle {
    /// Never blocks. Orders are carried out in the order in which they were sent.
    pub fn send(&self, worker: WorkerId, order: Order) -> Result<(), QueueFull> {
        match self.orders_tx.try_send((worker, order)) {
            Ok(()) => {
                // INVARIANT: after the order is in the channel, which the supervisor empties after it has heard.
                self.shared.0.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full((_, order)) | TrySendError::Disconnected((_, order))) => Err(QueueFull(order)),
        }
    }

    /// Kills every worker with its tree, reports their ends, and lets [`Supervisor::run`] return. Until then somebody must
    /// go on receiving reports, or drop the receiver.
    pub fn stop(&self) {
        self.shared.0.must_stop.store(true, Ordering::Release);
        self.shared.0.bell.ring();
    }
}

pub struct Supervisor {
    room: Room,
    shared: Arc<Shared>,
    orders_rx: Receiver<(WorkerId, Order)>,
    workers: Vec<Worker>,
    /// The guardian's pid, known for as long as it is our child, and a handle until it has ended.
    guardian: Option<(u32, OwnedFd)>,
    stop_grace: Duration,
    next_reap: Duration,
    /// When trees are to be looked at again though nothing happened.
    next_look: Option<Duration>,
    next_reminder: Duration,
    set: PollSet,
}

impl Supervisor {
    /// Runs until it is stopped. On a thread that lives as long as the daemon: workers die with the thread that
    /// started them (prctl(2), PR_SET_PDEATHSIG).
    pub fn run(mut self) {
        if let Err(error) = process::become_subreaper() {
            log::error!("cannot adopt the orphans of workers: {error}; those that leave their session may stay behind");
        }
        loop {
            self.take_orders();
            self.bury();
            self.pass();
            if let Some(stop_by) = self.room.stop_by
                && (self.workers.is_empty() || self.room.now >= stop_by)
            {
                break;
            }
            self.watch();
            let timeout = self.deadline().map(|deadline| deadline.saturating_sub(self.room.clock.now()));
            // It fails for want of kernel memory or by our own fault; either way nobody could be watched any more.
            self.set.wait(timeout).expect("poll(2) of the workers' descriptors failed");
            self.room.now = self.room.clock.now();
            self.check_limit();
            self.serve();
        }
        for worker in &self.workers {
            log::error!(worker:% = worker.id; "process {} was killed and is still there", worker.pid());
        }
    }

    fn take_orders(&mut self) {
        loop {
            match self.orders_rx.try_recv() {
                Ok((worker, order)) if self.room.stop_by.is_none() => self.obey(worker, order),
                Ok(_) => {}
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return self.stop(),
            }
        }
        if self.shared.must_stop.load(Ordering::Acquire) || self.room.is_unheard {
            self.stop();
        }
    }

    fn obey(&mut self, id: WorkerId, order: Order) {
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.id == id) {
            return worker.obey(&mut self.room, order);
        }
        match order {
            Order::Spawn { agent, task } => match Worker::start(&mut self.room, id, agent, task.as_deref()) {
                Ok(worker) => self.workers.push(worker),
                Err(error) => self.room.report(id, Report::SpawnFailed { error }),
            },
            // It has ended; the report of that was on its way when the order was given.
            Order::Assign(_)
            | Order::Cancel { .. }
            | Order::Preempt { .. }
            | Order::CollectGarbage
            | Order::BreakerState { .. }
            | Order::Shutdown
            | Order::Kill => {}
        }
    }

    fn stop(&mut self) {
        if self.room.stop_by.is_none() {
            self.room.stop_by = Some(self.room.clock.now() + self.stop_grace);
            self.workers.iter_mut().for_each(Worker::kill);
        }
    }

    /// Ends those workers whose process has ended and whose tree is gone.
    fn bury(&mut self) {
        self.next_look = None;
        let mut at = 0;
        while let Some(worker) = self.workers.get(at) {
            if worker.exited_at.is_some() && self.is_tree_gone(at) {
                self.workers.swap_remove(at).finish(&mut self.room);
            } else {
                at += 1;
            }
        }
        if self.room.now >= self.next_reap && !self.workers.is_empty() {
            self.next_reap = self.room.now + REAP_EVERY;
            self.reap_orphans();
        }
    }

    /// Kills what is left of a dead worker's tree. `false`: some of it is still dying.
    fn is_tree_gone(&mut self, at: usize) -> bool {
        let exited_at = self.workers[at].exited_at.unwrap_or(self.room.now);
        if self.room.now >= exited_at + TREE_PATIENCE {
            let id = self.workers[at].id;
            if self.workers[at].orphans.is_empty() {
                log::error!(worker:% = id; "nobody could look for what {id} left behind; it is given up unseen");
            } else {
                log::error!(worker:% = id; "processes of {id} do not end after KILL; it is given up with them left behind");
            }
            return true;
        }
        if self.workers[at].orphans.is_empty() {
            match self.kill_orphans(at) {
                Ok(()) => {}
                Err(error) => {
                    log::warn!(worker:% = self.workers[at].id; "cannot look for what the worker left behind: {error}; trying again");
                    self.look_by(self.room.now + TREE_RETRY);
                    return false;
                }
            }
        }
        let is_gone = self.workers[at].orphans.is_empty();
        if !is_gone {
            self.look_by(exited_at + TREE_PATIENCE);
        }
        is_gone
    }

    fn look_by(&mut self, at: Duration) {
        self.next_look = Some(self.next_look.map_or(at, |look| look.min(at)));
    }

    /// Leaves in the worker's `orphans` those that were killed and are not dead yet.
    fn kill_orphans(&mut self, at: usize) -> io::Result<()> {
        loop {
            let (id, leader) = (self.workers[at].id, self.workers[at].pid());
            let alone = self.workers.len() == 1;
            let mut found = false;
            for pid in self.orphan_pids()? {
                if !tree::examine(self.room.instance, pid)?.belongs_to(id, leader, alone) {
                    continue;
                }
                found = true;
                let mut orphan = Child::adopted(pid)?;
                orphan.signal(Signal::Kill);
                // Its children, if it had any, become ours when it is dead: hence the next look.
                if orphan.reap()?.is_none() {
                    self.workers[at].orphans.push(orphan);
                }
            }
            if !found || !self.workers[at].orphans.is_empty() {
                return Ok(());
            }
        }
    }

    /// Helpers that living workers started, disowned and outlived.
    fn reap_orphans(&self) {
        for pid in self.orphan_pids().unwrap_or_default() {
            if tree::examine(self.room.instance, pid).is_ok_and(|orphan| orphan.may_be_ours())
                && let Ok(mut orphan) = Child::adopted(pid)
            {
                // Nothing to do about one that lives: its worker does as well.
                let _ = orphan.reap();
            }
        }
    }

    fn orphan_pids(&self) -> io::Result<Vec<u32>> {
        tree::orphan_pids(|pid| {
            self.guardian.as_ref().is_some_and(|(guardian, _)| *guardian == pid)
                || self
                    .workers
                    .iter()
                    .any(|worker| worker.pid() == pid || worker.orphans.iter().any(|orphan| orphan.pid() == pid))
        })
    }

    fn pass(&mut self) {
        for worker in &mut self.workers {
            if worker.deadline().is_some_and(|deadline| deadline <= self.room.now) {
                worker.pass(&mut self.room);
            }
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let workers = self.workers.iter().filter_map(Worker::deadline);
        workers.chain(self.next_look).chain(self.room.stop_by).min()
    }

    fn watch(&mut self) {
        self.set.clear();
        self.set.readable(Some(self.shared.bell.as_fd()));
        self.set.readable(self.guardian.as_ref().map(|(_, pidfd)| pidfd.as_fd()));
        for worker in &self.workers {
            worker.watch(&mut self.set);
        }
    }

    /// The limit of open files can be lowered below what is open. What is open is served all the same.
    fn check_limit(&mut self) {
        if !self.set.is_over_limit() || self.room.now < self.next_reminder {
            return;
        }
        self.next_reminder = self.room.now + LIMIT_REMINDER;
        // It was read a moment ago by poll(2); this call has no cause to fail.
        let limit = limits::descriptors().unwrap_or(0);
        log::error!(
            "the limit of open files is {limit}, and {} are waited for on behalf of workers alone: those are served, but new \
             workers, connections and files may be refused; raise it (prlimit --pid {} --nofile=N, LimitNOFILE= of systemd)",
            self.set.count(),
            std::process::id()
        );
    }

    fn serve(&mut self) {
        if self.set.is_ready(0) {
            self.shared.bell.hear();
        }
        if self.set.is_ready(1) {
            self.guardian = None;
            log::error!(
                "the guardian process has ended: restart the daemon, or grandchildren may outlive its being killed"
            );
        }
        let mut place = 2;
        for worker in &mut self.workers {
            place += worker.serve(&mut self.room, &self.set, place);
        }
    }
}
