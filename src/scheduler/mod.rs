//! The loop around the core: it alone holds the core, hands it events and performs its actions.
//!
//! May import core, channels, the spool, the supervisor's handle and metrics. Must never know why an action was chosen,
//! nor who waits for an answer. What it tells without being asked stands on the [`board`].

mod beats;
pub mod board;
pub mod call;
mod calls;
mod held;
pub mod history;
mod probe;
mod report;
mod storage;
mod streams;
mod sync;
mod waiting;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, at, never, select_biased};

use crate::core::Core;
use crate::core::event::{Action, CancelAnswer, Event, Now, Record, take_starts};
use crate::core::governor;
use crate::core::ids::{TaskId, Ticket};
use crate::core::notice::Notice;
use crate::core::order::WorkerReport;
use crate::metrics::Metrics;
use crate::spool::{Files, Spool, TaskIds};
use crate::sys::clock::{Clock, wall_ms};
use crate::sys::eventfd::EventFd;
use crate::worker::SupervisorHandle;
use board::HealthBoard;
use call::{Answer, Call, ConfigStatus, Control, Decision, Enforcement, Reply};
use held::Held;
use history::History;
use storage::Storage;
pub use streams::StreamPort;
use streams::Streams;
use sync::{SyncFailed, Unneeded};
pub use sync::{SyncThread, Syncer};
use waiting::{Gone, Waiting};
pub use watch::Watch;
use watch::Watching;

/// Decisions that are remembered for `/v1/decisions` and `/why`.
const DECISIONS_MAX: usize = 256;

/// Events of one lane that are taken before the next lane has its turn: a flooding worker cannot starve submissions.
const TURN_MAX: usize = 32;

/// What the scheduler hears from and speaks to; ends named by direction.
pub struct Ports<W> {
    pub control_rx: Receiver<Control>,
    pub reports_rx: Receiver<WorkerReport>,
    pub calls_rx: Receiver<Call<W>>,
    pub replies_tx: Sender<Reply<W>>,
    pub supervisor: SupervisorHandle,
    /// `None` with `durability = "none"`: nothing waits for the disk.
    pub syncer: Option<Syncer<W>>,
    pub streams: StreamPort,
    /// Told once, when draining is over.
    pub drained: DrainedPort,
    /// Worker processes come, work and go: for the monitor.
    pub monitor: crate::memory::MonitorHandle,
}

/// The way to the main thread: a queue of one and a bell.
pub struct DrainedPort {
    pub tx: Sender<()>,
    pub bell: Arc<EventFd>,
}

pub struct Scheduler<W> {
    core: Core,
    ports: Ports<W>,
    spool: Spool,
    files: Files,
    ids: TaskIds,
    clock: Clock,
    metrics: Metrics,
    decisions: VecDeque<Decision>,
    history: History,
    streams: Streams,
    watching: Watching,
    config: ConfigStatus,
    enforcement: Arc<Enforcement>,
    board: Arc<HealthBoard>,
    /// Callers that wait for a task to end.
    waiting: Vec<Waiting<W>>,
    gone: Gone,
    /// The caller of the event being handled; answered within the same turn.
    caller: Option<Caller<W>>,
    /// Actions of this turn, performed together: one write for all their records.
    actions: Vec<Action>,
    storage: Storage,
    /// Files that wait for records to be on the disk.
    unneeded: Vec<Unneeded>,
    held: Held,
    /// The journal could not be synced.
    sync_failed_rx: Receiver<SyncFailed>,
    is_stopping: bool,
}

struct Caller<W> {
    from: u64,
    waiter: W,
    wait: Option<Duration>,
    breaker: Option<Arc<str>>,
    task: Option<TaskId>,
}

const NOBODY: Ticket = Ticket(0);
const CALLER: Ticket = Ticket(1);

impl<W: Send + 'static> Scheduler<W> {
    /// `actions`: what the core wanted done when it took over what the spool remembered.
    pub fn new(
        core: Core,
        actions: Vec<Action>,
        spool: Spool,
        ports: Ports<W>,
        clock: Clock,
        config: ConfigStatus,
    ) -> Self {
        let mut metrics = Metrics::default();
        let gone = Gone::new(ports.calls_rx.capacity().unwrap_or_default());
        metrics.know_agents(core.settings().agents.keys());
        let storage = Storage::new(spool.files());
        let held = Held::new(ports.syncer.as_ref().map(Syncer::kept));
        Scheduler {
            core,
            files: spool.files(),
            ids: spool.ids(),
            spool,
            storage,
            unneeded: Vec::new(),
            held,
            sync_failed_rx: ports.syncer.as_ref().map_or_else(never, |syncer| syncer.failed_rx.clone()),
            streams: Streams::new(ports.streams.clone()),
            watching: Watching::new(ports.monitor.clone()),
            ports,
            clock,
            metrics,
            decisions: VecDeque::with_capacity(DECISIONS_MAX),
            history: History::default(),
            config,
            enforcement: Arc::default(),
            board: Arc::default(),
            waiting: Vec::new(),
            gone,
            caller: None,
            actions,
            is_stopping: false,
        }
    }

    /// For `/v1/memory` to show.
    pub fn with_enforcement(mut self, enforcement: Enforcement) -> Self {
        self.enforcement = Arc::new(enforcement);
        self
    }

    /// Kept up to date with every event.
    pub fn board(&self) -> Arc<HealthBoard> {
        self.board.clone()
    }

    /// Submissions leave this much of the disk, in bytes, to what runs.
    pub fn with_reserve(mut self, min_free: Arc<AtomicU64>) -> Self {
        self.storage.reserve(min_free);
        self
    }

    /// The journal could not be written at the start.
    pub fn with_trouble(mut self, trouble: Option<String>) -> Self {
        if let Some(error) = trouble {
            self.journal_failed(error);
        }
        self
    }

    /// Runs until [`Control::Stop`], or until nobody can send any more.
    pub fn run(mut self) {
        // Before anything starts.
        self.tell_journal_failed(Vec::new());
        self.step(Event::DeadlinePassed);
        self.perform();
        while !self.is_stopping {
            if !self.take_turn() && !self.wait() {
                break;
            }
            if self.is_due() {
                self.step(Event::DeadlinePassed);
                self.perform();
                self.time_out_waiting();
                self.retry_storage();
                self.sync_overdue();
            }
        }
        self.dismiss_waiting();
        self.settle_journal();
    }

    /// Takes what has come on each lane, the urgent ones first. Tells if there was anything.
    fn take_turn(&mut self) -> bool {
        let mut taken = 0;
        while let Ok(control) = self.ports.control_rx.try_recv() {
            self.control(control);
            taken += 1;
        }
        while let Ok(failed) = self.sync_failed_rx.try_recv() {
            self.sync_failed(failed);
            taken += 1;
        }
        while let Some(kept) = self.held.next_kept() {
            self.file_kept(kept);
            taken += 1;
        }
        for _ in 0..TURN_MAX {
            let Ok(report) = self.ports.reports_rx.try_recv() else { break };
            self.report(report);
            taken += 1;
        }
        for _ in 0..TURN_MAX {
            let Ok(call) = self.ports.calls_rx.try_recv() else { break };
            self.call(call);
            taken += 1;
        }
        taken > 0
    }

    /// Sleeps until something comes or the next deadline; `false` when no sender is left.
    fn wait(&mut self) -> bool {
        let wake_rx = match self.next_wake() {
            Some(deadline) => at(self.clock.instant(deadline)),
            None => never(),
        };
        select_biased! {
            recv(self.ports.control_rx) -> control => match control {
                Ok(control) => self.control(control),
                Err(_) => return false,
            },
            recv(self.sync_failed_rx) -> failed => match failed {
                Ok(failed) => self.sync_failed(failed),
                // The thread is gone, and another end of it is told elsewhere.
                Err(_) => self.sync_failed_rx = never(),
            },
            recv(self.held.kept_rx) -> kept => match kept {
                Ok(kept) => self.file_kept(kept),
                Err(_) => self.held.kept_rx = never(),
            },
            recv(self.ports.reports_rx) -> report => match report {
                Ok(report) => self.report(report),
                Err(_) => return false,
            },
            recv(self.ports.calls_rx) -> call => match call {
                Ok(call) => self.call(call),
                Err(_) => return false,
            },
            recv(wake_rx) -> _ => {}
        }
        true
    }

    fn next_wake(&self) -> Option<Duration> {
        let waiting = self.waiting.iter().map(|waiting| waiting.until).min();
        let syncer = self.ports.syncer.as_ref().and_then(Syncer::overdue_at);
        [self.core.next_deadline(), waiting, self.storage.next_wake(), syncer].into_iter().flatten().min()
    }

    fn is_due(&self) -> bool {
        self.next_wake().is_some_and(|deadline| deadline <= self.clock.now())
    }

    fn now(&self) -> Now {
        Now { at: self.clock.now(), wall_ms: wall_ms() }
    }

    fn step(&mut self, event: Event) {
        let now = self.now();
        let actions = self.core.handle(now, event);
        if self.actions.is_empty() {
            self.actions = actions;
        } else {
            self.actions.extend(actions);
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Memory(sample) => {
                self.metrics.note_sample();
                self.history.note(self.clock.now(), governor::pressure(&sample, &self.core.settings().memory));
                self.step(Event::MemorySampled(sample));
            }
            Control::Reconfigured { settings, status, notice } => {
                self.note(*notice);
                self.metrics.note_reload(settings.is_some());
                self.config = status;
                if let Some(settings) = settings {
                    self.metrics.know_agents(settings.agents.keys());
                    self.step(Event::Reconfigured(settings));
                }
            }
            Control::Drain { timeout } => self.step(Event::DrainRequested { timeout }),
            Control::Gone { from } => self.gone(from),
            Control::Follow { from, what } => {
                let now = self.now();
                self.streams.follow(&self.core, now, from, what);
            }
            Control::LogState => report::log_state(&self.core.snapshot(self.now())),
            Control::Stop => self.is_stopping = true,
        }
        self.perform();
    }

    /// Performs what the core wanted, records first: nobody is told of anything that is not written.
    fn perform(&mut self) {
        // INVARIANT: before anybody hears of what happened: who then asks how the daemon is gets no older answer.
        self.publish_health();
        while !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            let has_records = self.write_records(&actions);
            if self.unwritten().is_some() {
                let unstarted = take_starts(&mut actions);
                self.tell_journal_failed(unstarted);
                self.publish_health();
            }
            let mut replies = Vec::new();
            for action in actions {
                self.perform_one(action, &mut replies);
            }
            self.release(replies, has_records);
        }
        if self.spool.wants_rewrite() && self.unwritten().is_none() {
            self.rewrite_journal();
        }
    }

    /// Sends these now, or once everything written so far is durable if they rest on that. A promise always does: it may be
    /// one that another caller was given, or one that has waited, and nobody had the disk wait for it.
    fn release(&mut self, replies: Vec<Reply<W>>, has_records: bool) {
        let is_promise = |reply: &Reply<W>| {
            matches!(reply.answer, Answer::Submitted { .. } | Answer::Cancelled(CancelAnswer::Accepted, _))
        };
        let waits = replies.iter().any(is_promise) || (has_records && !replies.is_empty());
        let unneeded = if waits { self.take_unneeded() } else { Vec::new() };
        match &mut self.ports.syncer {
            Some(syncer) if waits => syncer.release(replies, unneeded),
            Some(syncer) if has_records => syncer.sync_soon(self.clock.now()),
            Some(_) => replies.into_iter().for_each(|reply| send(&self.ports.replies_tx, reply)),
            None => {
                replies.into_iter().for_each(|reply| send(&self.ports.replies_tx, reply));
                self.unneeded.extend(unneeded);
                self.remove_unneeded();
            }
        }
    }

    pub(super) fn publish_health(&self) {
        let storage = self.storage.status();
        let health = storage.error.is_none().then(|| (self.core.health(), storage.free_bytes));
        self.board.publish(self.clock.now(), health.as_ref());
    }

    fn perform_one(&mut self, action: Action, replies: &mut Vec<Reply<W>>) {
        match action {
            // Why: written already, before anything else of this turn.
            Action::Record(Record::Finished(task)) => self.clear_inputs(&task),
            Action::Record(Record::Forgotten { task }) => self.clear_result(task),
            Action::Record(
                Record::Accepted { .. }
                | Record::Started { .. }
                | Record::Returned { .. }
                | Record::CancelRequested { .. }
                | Record::Breaker { .. }
                | Record::Footprint { .. },
            ) => {}
            Action::Worker(worker, order) => {
                self.watching.ordered(worker, &order);
                if let Err(refused) = self.ports.supervisor.send(worker, order) {
                    // INVARIANT: its capacity is the most orders that can be in flight.
                    log::error!("the supervisor does not take an order for {worker}: {refused:?}");
                }
            }
            Action::Notice(notice) => self.note(notice),
            Action::Answer(ticket, answer) => replies.extend(self.answer(ticket, answer)),
            Action::Finished(task) => self.finished(&task, replies),
            Action::Beat(schedule) => self.beat(&schedule),
            Action::Drained => {
                let _ = self.ports.drained.tx.try_send(());
                self.ports.drained.bell.ring();
            }
        }
    }

    fn note(&mut self, notice: Notice) {
        self.metrics.note(&notice);
        let incident = self.core.incident();
        report::log_notice(&notice, incident);
        let notice = Arc::new(notice);
        let now = self.now();
        self.streams.notice(&self.core, now, &notice);
        if notice.is_decision() {
            if self.decisions.len() == DECISIONS_MAX {
                self.decisions.pop_front();
            }
            self.decisions.push_back(Decision { at_ms: now.wall_ms, incident, notice });
        }
    }

    fn reply(&self, waiter: W, answer: Answer) {
        send(&self.ports.replies_tx, Reply { waiter, answer });
    }
}

/// Blocks only as long as the gateway's queue is full, which holds an answer for every connection there can be.
fn send<W>(replies_tx: &Sender<Reply<W>>, reply: Reply<W>) {
    if replies_tx.send(reply).is_err() {
        log::debug!("the gateway is gone; an answer is dropped");
    }
}
