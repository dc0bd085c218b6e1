//! What a random walk walks through: clients that ask, processes that do anything, a disk that fails, a daemon that
//! dies between any two of its steps; and the invariants that hold whatever happens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::governed::{MemoryWalk, Watch};
use super::processes::Process;
use super::{settled, words};
use crate::core::event::{BreakerAnswer, BreakerRequest, CancelAnswer, Event, Now, Record};
use crate::core::ids::{PermitId, TaskId, WorkerId};
use crate::core::ledger::FinishedTask;
use crate::core::order::{Order, Report, WorkerReport};
use crate::core::settings::{AgentMode, Settings};
use crate::core::task::{Outcome, Priority, TaskSpec, TaskState};
use crate::simulation::desk::{Answer, Caller, Desk, Said};
use crate::simulation::dice::Dice;
use crate::simulation::spool::{Crash, Remembered, Spool};

/// What happens in one step.
#[derive(Debug, Clone)]
pub enum Input {
    Event(Event),
    Submit {
        spec: Box<TaskSpec>,
        wait: Duration,
    },
    Cancel(TaskId),
    Breaker(Arc<str>, BreakerRequest),
    /// A preemption that is not the governor's.
    Preempt(WorkerId),
    Gone(Caller),
    Wake,
    Sync {
        works: bool,
    },
    DiskFails(bool),
    Rewrite,
    Fuse(u32),
}

/// Lines of the past that a failure shows.
const TRACE: usize = 60;

pub struct World {
    pub desk: Desk,
    pub now: Duration,
    /// By how much the wall clock was set forward or back, in milliseconds.
    pub wall_shift: i64,
    pub dice: Dice,
    pub processes: BTreeMap<WorkerId, Process>,
    /// What all records together say, written or not.
    pub remembered: Remembered,
    pub permits: Vec<PermitId>,
    pub is_draining: bool,
    pub drained: usize,
    pub memory: MemoryWalk,
    pub watch: Watch,
    pub events: u64,
    pub crashes: usize,
    /// Requests that were not replied to.
    pub open: BTreeSet<Caller>,
    /// Tasks that somebody was told are safe.
    promised: BTreeSet<TaskId>,
    /// Tasks that have ended, and how; without those that a crash brought back.
    ended: BTreeMap<TaskId, TaskState>,
    /// Tasks that a client wanted cancelled, ever; and those accepted in this step.
    unwanted: BTreeSet<TaskId>,
    new: BTreeSet<TaskId>,
    /// Ends that somebody was told of when they were on the disk.
    told: BTreeMap<TaskId, TaskState>,
    /// Running tasks of which somebody was told that they are cancelled, when that was on the disk.
    cancelled: BTreeSet<TaskId>,
    last_worker: u64,
    last_caller: u64,
    /// Pool sizes above a lowered maximum are legal until they have shrunk.
    allowed_workers: usize,
    allowed_depth: usize,
    trace: Option<VecDeque<String>>,
}

impl World {
    /// `is_traced`: the last of what happens is kept in words; costs time.
    pub fn new(settings: Settings, dice: Dice, is_traced: bool) -> World {
        let now = Now { at: Duration::ZERO, wall_ms: wall_ms(Duration::ZERO, 0) };
        World {
            desk: Desk::open(settings, now, Spool::default()),
            now: Duration::ZERO,
            wall_shift: 0,
            dice,
            processes: BTreeMap::new(),
            remembered: Remembered::default(),
            permits: Vec::new(),
            is_draining: false,
            drained: 0,
            memory: MemoryWalk::new(),
            watch: Watch::default(),
            events: 0,
            crashes: 0,
            open: BTreeSet::new(),
            promised: BTreeSet::new(),
            ended: BTreeMap::new(),
            unwanted: BTreeSet::new(),
            new: BTreeSet::new(),
            told: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            last_worker: 0,
            last_caller: 0,
            allowed_workers: 0,
            allowed_depth: 0,
            trace: is_traced.then(VecDeque::new),
        }
    }

    pub fn clock(&self) -> Now {
        Now { at: self.now, wall_ms: wall_ms(self.now, self.wall_shift) }
    }

    pub fn last_task(&self) -> u64 {
        let live = self.remembered.unfinished.keys().next_back();
        live.into_iter().chain(self.ended.keys().next_back()).map(|task| task.0).max().unwrap_or(0)
    }

    /// One step, and all that must hold after it.
    pub fn feed(&mut self, input: Input) {
        self.events += 1;
        self.new.clear();
        // Why: something may come after a deadline and before anybody has woken up for it.
        let reaches_core = match &input {
            Input::Event(_) | Input::Cancel(_) | Input::Breaker(..) | Input::Preempt(_) => true,
            Input::Submit { spec, .. } => {
                let is_known = spec.idempotency_key.as_ref().is_some_and(|key| self.desk.core.knows_key(key));
                !self.desk.has_trouble() || is_known
            }
            Input::Gone(_)
            | Input::Wake
            | Input::Sync { .. }
            | Input::DiskFails(_)
            | Input::Rewrite
            | Input::Fuse(_) => false,
        };
        if reaches_core && self.dice.one_in(8) {
            self.now += Duration::from_millis(self.dice.below(300));
        }
        self.note(|| words::of_input(&input));
        let is_reading = matches!(input, Input::Event(Event::MemorySampled(_)));
        let is_sync = matches!(input, Input::Sync { works: true });
        self.watch.begin(&self.desk.core, is_reading);
        self.act(input);
        let said = self.desk.take();
        if !self.desk.is_dead() {
            self.watch.check(&self.desk.core, &said);
        }
        for said in said {
            self.hear(said, is_sync);
        }
        if self.desk.has_trouble() {
            // What is new could not be written and is taken back, though it may have begun.
            self.unwanted.append(&mut self.new);
        }
        if self.desk.is_dead() {
            let settings = self.desk.core.settings.clone();
            let crash = if self.dice.one_in(2) {
                Crash::Daemon
            } else {
                Crash::Power { kept: self.dice.below(self.desk.spool.unsynced() as u64 + 1) as usize }
            };
            self.crash(settings, crash);
        }
        self.check();
    }

    fn act(&mut self, input: Input) {
        let now = self.clock();
        match input {
            Input::Event(event) => self.desk.hear(now, event),
            Input::Submit { spec, wait } => {
                let caller = self.caller();
                self.desk.submit(now, caller, *spec, wait);
            }
            Input::Cancel(task) => {
                let caller = self.caller();
                self.unwanted.insert(task);
                self.desk.cancel(now, caller, task);
            }
            Input::Breaker(name, request) => {
                let caller = self.caller();
                self.desk.breaker(now, caller, name, request);
            }
            Input::Preempt(worker) => {
                self.desk.core.preempt(worker, crate::core::order::PreemptReason::Priority);
                self.desk.hear(now, Event::DeadlinePassed);
            }
            Input::Gone(caller) => {
                self.desk.gone(caller);
                // What is on its way to a client that is gone is lost.
                if !self.desk.owes(caller) {
                    self.open.remove(&caller);
                }
            }
            Input::Wake => self.desk.wake(now),
            Input::Sync { works } => self.desk.sync(works),
            Input::DiskFails(fails) => self.desk.spool.is_failing = fails,
            Input::Rewrite => self.desk.rewrite(),
            Input::Fuse(steps) => self.desk.light_fuse(steps),
        }
    }

    fn caller(&mut self) -> Caller {
        self.last_caller += 1;
        self.open.insert(Caller(self.last_caller));
        Caller(self.last_caller)
    }

    /// The daemon dies, all its workers with it, and comes back with what it finds.
    pub fn crash(&mut self, settings: Settings, crash: Crash) {
        self.note(|| format!("the daemon ends: {crash:?}"));
        self.crashes += 1;
        self.check_shortest_records();
        let mut spool = std::mem::take(&mut self.desk.spool);
        self.remembered = spool.recover(crash).clone();
        self.check_promises();
        self.processes.clear();
        self.permits.clear();
        // Nobody is at the other end any more.
        self.open.clear();
        (self.last_worker, self.is_draining, self.drained, self.allowed_workers) = (0, false, 0, 0);
        self.allowed_depth = self.remembered.unfinished.len();
        self.watch.restart();
        self.desk = Desk::recover(settings, self.clock(), spool, Crash::Daemon);
        for said in self.desk.take() {
            self.hear(said, false);
        }
    }

    /// What was promised is there after a crash, and what had ended on the disk has not come back.
    fn check_promises(&mut self) {
        let found = &self.remembered;
        for task in &self.promised {
            let is_known = found.unfinished.contains_key(task) || found.finished.contains_key(task);
            assert!(is_known || self.ended.contains_key(task), "{task} was accepted and is lost");
        }
        for (task, unfinished) in &found.unfinished {
            assert_eq!(self.told.get(task), None, "{task} had ended on the disk and came back");
            assert!(
                unfinished.is_cancelled || !self.cancelled.contains(task),
                "{task} was cancelled and would run again"
            );
            self.ended.remove(task);
        }
        // Nobody was told of what came after the last that is there: its numbers are given out again.
        let unknown = self.ended.split_off(&TaskId(found.last_task + 1));
        self.unwanted.split_off(&TaskId(found.last_task + 1));
        assert!(unknown.keys().all(|task| !self.promised.contains(task)), "accepted and lost: {unknown:?}");
    }

    /// The shortest list of records says the same as all of them.
    fn check_shortest_records(&self) {
        if self.desk.is_dead() {
            return;
        }
        let shortest = Remembered::from_shortest(&self.desk.core.records().collect::<Vec<_>>());
        let without_files = |remembered: &Remembered| {
            let mut unfinished = remembered.unfinished.clone();
            unfinished.values_mut().for_each(|task| task.has_checkpoint = false);
            unfinished
        };
        assert_eq!(without_files(&shortest), without_files(&self.remembered));
        let names = |remembered: &Remembered| remembered.breakers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&shortest), names(&self.remembered), "breakers that are not closed");
    }

    fn hear(&mut self, said: Said, is_sync: bool) {
        if self.trace.is_some()
            && let Some(words) = words::of_said(&said)
        {
            self.note(|| format!("    {words}"));
        }
        match said {
            Said::Order(worker, order) => self.order(worker, order),
            Said::Record(record) => {
                match &record {
                    Record::Accepted { task, .. } => drop(self.new.insert(*task)),
                    Record::Finished(task) => self.end(task),
                    Record::Started { .. }
                    | Record::Returned { .. }
                    | Record::CancelRequested { .. }
                    | Record::Breaker { .. }
                    | Record::Footprint { .. }
                    | Record::Forgotten { .. } => {}
                }
                self.remembered.replay(&record);
            }
            Said::Reply(caller, answer) => self.reply(caller, &answer, is_sync),
            Said::Finished(task) => assert!(self.ended.contains_key(&task.id), "{} was not recorded", task.id),
            Said::Notice(_) => {}
            Said::Drained => {
                assert!(self.is_draining && self.processes.is_empty(), "drained too early");
                self.drained += 1;
            }
        }
    }

    /// A task ends once, and by nobody's whim.
    fn end(&mut self, task: &FinishedTask) {
        let before = self.ended.insert(task.id, task.outcome.state());
        assert_eq!(before, None, "{} ended twice", task.id);
        let spec = &task.spec;
        match &task.outcome {
            Outcome::Cancelled => {
                let is_taken_back = self.new.contains(&task.id);
                assert!(is_taken_back || self.unwanted.contains(&task.id), "{} was cancelled by nobody", task.id);
            }
            Outcome::Skipped => assert!(spec.schedule.is_some(), "{} is no beat and was skipped", task.id),
            Outcome::Evicted => {
                assert!(spec.skippable && spec.priority == Priority::Heartbeat, "{} was evicted: {spec:?}", task.id);
            }
            Outcome::Completed(_) | Outcome::Failed(_) => {}
        }
    }

    fn reply(&mut self, caller: Caller, answer: &Answer, is_sync: bool) {
        assert!(self.open.remove(&caller), "{caller:?} was answered {answer:?} and had not asked, or twice");
        match answer {
            Answer::Submitted { task, state, .. } => {
                // Why: an end is told though the disk fails, so that a result that is there is not withheld.
                if !state.is_terminal() || is_sync {
                    self.promised.insert(*task);
                }
                self.tell(*task, *state, is_sync);
            }
            Answer::Cancelled(task, CancelAnswer::Accepted) if is_sync && !self.desk.has_trouble() => {
                self.cancelled.insert(*task);
            }
            Answer::Cancelled(task, CancelAnswer::AlreadyFinished(state)) => self.tell(*task, *state, false),
            Answer::Breaker(BreakerAnswer::Permit(permit)) => self.permits.push(*permit),
            Answer::Refused(_)
            | Answer::StorageFull
            | Answer::Forgotten(_)
            | Answer::Cancelled(..)
            | Answer::Breaker(_) => {}
        }
    }

    /// Somebody hears how a task stands: an end is for ever once it was on the disk.
    fn tell(&mut self, task: TaskId, state: TaskState, is_sync: bool) {
        if let Some(told) = self.told.get(&task) {
            assert_eq!(*told, state, "{task} changed after its end");
        }
        if state.is_terminal() && is_sync && !self.desk.has_trouble() {
            self.told.insert(task, state);
        }
    }

    fn order(&mut self, worker: WorkerId, order: Order) {
        if let Order::Spawn { agent, task } = order {
            assert!(!self.is_draining, "a spawn during a drain");
            assert!(worker.0 > self.last_worker, "{worker} is no new number");
            assert_eq!(task.is_some(), agent.mode == AgentMode::Oneshot);
            self.last_worker = worker.0;
            let process = Process::new(agent.mode, task.map(|assignment| assignment.task), &mut self.dice);
            self.processes.insert(worker, process);
            return;
        }
        assert!(!self.is_draining || !matches!(order, Order::Assign(_)), "a task given out during a drain");
        let process = self.processes.get_mut(&worker).unwrap_or_else(|| panic!("{order:?} to {worker}, which is gone"));
        process.hear(&order);
    }

    /// A process does something.
    pub fn stir(&mut self, worker: WorkerId, wild: bool) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(report) = process.stir(&mut self.dice, wild) else { return };
        match &report {
            Report::Exited(_) | Report::SpawnFailed { .. } => {
                self.processes.remove(&worker);
            }
            Report::Progress { task, checkpoint: true, .. } | Report::Preempted { task, checkpoint: true }
                if self.remembered.unfinished.contains_key(task) =>
            {
                self.desk.spool.checkpoints.insert(*task);
            }
            Report::Progress { .. }
            | Report::Preempted { .. }
            | Report::Spawned { .. }
            | Report::Ready { .. }
            | Report::Completed { .. }
            | Report::Failed { .. }
            | Report::Memory(_)
            | Report::Breaker { .. }
            | Report::ProtocolError { .. } => {}
        }
        self.feed(Input::Event(Event::Worker(WorkerReport { worker, report })));
    }

    pub fn reconfigured(&mut self, settings: &Settings) {
        let core = &self.desk.core;
        self.allowed_workers = core.pool.len().max(settings.workers.max);
        self.allowed_depth = core.queue.depth().max(settings.queue.max_depth);
    }

    fn check(&mut self) {
        let core = &self.desk.core;
        if let Some(deadline) = core.next_deadline() {
            assert!(deadline > self.now, "the daemon would spin: {deadline:?} at {:?}", self.now);
        }
        for caller in &self.open {
            assert!(self.desk.owes(*caller), "{caller:?} was forgotten");
        }
        self.allowed_workers = self.allowed_workers.min(core.pool.len()).max(core.settings.workers.max);
        assert!(core.pool.len() <= self.allowed_workers, "{} processes", core.pool.len());
        assert!(core.pool.iter().map(|(id, _)| id).eq(self.processes.keys().copied()), "other processes");
        self.allowed_depth = self.allowed_depth.min(core.queue.depth()).max(core.settings.queue.max_depth);
        assert!(core.queue.depth() <= self.allowed_depth, "{} queued", core.queue.depth());
        settled::check(core, &self.remembered, self.now, self.is_draining);
        // Much is finished, and little of it changes: a look now and then is enough.
        if self.events.is_multiple_of(64) {
            let known = core.ledger.finished_all().map(|task| &task.id);
            assert!(self.remembered.finished.keys().eq(known), "the ended differ");
        }
    }

    /// Everything that was promised has ended.
    pub fn check_all_ended(&self) {
        for task in &self.promised {
            assert!(self.ended.contains_key(task), "{task} was accepted and has no end");
        }
        assert!(self.open.is_empty(), "never answered: {:?}", self.open);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let (events, now) = (self.events, self.now);
        let Some(trace) = &mut self.trace else { return };
        if trace.len() == TRACE {
            trace.pop_front();
        }
        trace.push_back(format!("{events:>6} {:>9.3} s  {}", now.as_secs_f64(), line()));
    }

    /// What happened last, a line each.
    pub fn last_words(&self) -> impl Iterator<Item = &String> {
        self.trace.iter().flatten()
    }
}

fn wall_ms(at: Duration, shift: i64) -> u64 {
    1_700_000_000_000_u64.saturating_add_signed(at.as_millis() as i64 + shift)
}
