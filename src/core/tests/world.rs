//! What a random walk walks through: processes that do anything the protocol allows, by a seeded generator, and the
//! invariants that hold whatever they do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::governed::{MemoryWalk, Watch};
use super::model::Remembered;
use super::sim::{clock, result};
use crate::core::Core;
use crate::core::event::{Action, Answer, BreakerAnswer, Event, Record};
use crate::core::governor::Level;
use crate::core::health::Availability;
use crate::core::ids::{PermitId, TaskId, Ticket, WorkerId};
use crate::core::ledger::Phase;
use crate::core::order::{Exit, HeapReading, Order, Report, WorkerReport};
use crate::core::settings::{AgentMode, ScheduleSettings, Settings};
use crate::core::task::{Priority, TaskSpec};

/// splitmix64 (Steele, Lea and Flood 2014).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A process as its supervisor sees it.
#[derive(Debug)]
pub struct Process {
    mode: AgentMode,
    is_ready: bool,
    task: Option<TaskId>,
    is_preempting: bool,
    is_cancelling: bool,
    is_stopping: bool,
    is_killed: bool,
}

pub struct World {
    pub core: Core,
    pub now: Duration,
    pub dice: Dice,
    pub processes: BTreeMap<WorkerId, Process>,
    pub remembered: Remembered,
    pub beats: Vec<Arc<ScheduleSettings>>,
    pub permits: Vec<PermitId>,
    pub last_task: u64,
    pub is_draining: bool,
    pub drained: usize,
    pub events: usize,
    last_worker: u64,
    last_ticket: u64,
    /// Pool sizes above a lowered maximum are legal until they have shrunk.
    allowed_workers: usize,
    allowed_depth: usize,
    pub memory: MemoryWalk,
    pub watch: Watch,
}

impl World {
    pub fn new(settings: Settings, seed: u64) -> World {
        World {
            core: Core::new(settings, clock(Duration::ZERO)),
            now: Duration::ZERO,
            dice: Dice(seed),
            processes: BTreeMap::new(),
            remembered: Remembered::default(),
            beats: Vec::new(),
            permits: Vec::new(),
            last_task: 0,
            is_draining: false,
            drained: 0,
            events: 0,
            last_worker: 0,
            last_ticket: 0,
            allowed_workers: 0,
            allowed_depth: 0,
            memory: MemoryWalk::new(),
            watch: Watch::default(),
        }
    }

    /// The daemon dies and comes back: all that is left of it is what it remembered.
    pub fn restart(&mut self, settings: Settings) {
        self.check_shortest_records();
        self.core = Core::new(settings, clock(self.now));
        self.processes.clear();
        self.permits.clear();
        self.beats.clear();
        (self.last_worker, self.is_draining, self.drained, self.allowed_workers) = (0, false, 0, 0);
        self.watch.restart();
        let finished = self.remembered.finished.values().map(|task| (**task).clone()).collect();
        let mut unfinished: Vec<_> = self.remembered.unfinished.values().cloned().collect();
        for task in &mut unfinished {
            task.has_checkpoint = self.dice.one_in(4);
        }
        for action in self.core.restore(finished, unfinished) {
            self.perform(action, None);
        }
        self.feed(Event::DeadlinePassed);
    }

    /// The shortest list of records says the same as all of them.
    fn check_shortest_records(&self) {
        let mut shortest = Remembered::default();
        let records = self.core.records();
        for record in records.iter().filter(|record| !matches!(record, Record::Finished(_))) {
            shortest.replay(record);
        }
        assert_eq!(shortest.unfinished, self.remembered.unfinished);
    }

    pub fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    pub fn feed(&mut self, event: Event) {
        self.events += 1;
        let ticket = match &event {
            Event::Submitted { ticket, .. } | Event::CancelRequested { ticket, .. } | Event::Breaker { ticket, .. } => {
                Some(*ticket)
            }
            Event::Worker(_)
            | Event::MemorySampled(_)
            | Event::Reconfigured(_)
            | Event::DrainRequested { .. }
            | Event::DeadlinePassed => None,
        };
        self.watch.begin(&self.core, &event);
        let actions = self.core.handle(clock(self.now), event);
        self.watch.check(&self.core, &actions);
        let answers = actions.iter().filter(|action| matches!(action, Action::Answer(..))).count();
        assert_eq!(answers, usize::from(ticket.is_some()), "one answer a ticket");
        for action in actions {
            self.perform(action, ticket);
        }
        self.check();
    }

    fn perform(&mut self, action: Action, ticket: Option<Ticket>) {
        match action {
            Action::Worker(worker, order) => self.order(worker, order),
            Action::Record(record) => self.remembered.replay(&record),
            Action::Answer(to, answer) => {
                assert_eq!(Some(to), ticket, "a stranger was answered");
                if let Answer::Breaker(BreakerAnswer::Permit(permit)) = answer {
                    self.permits.push(permit);
                }
            }
            Action::Finished(task) => {
                assert!(self.remembered.finished.contains_key(&task.id), "{} ended before it was recorded", task.id);
            }
            Action::Notice(_) => {}
            Action::Beat(beat) => {
                assert!(!self.is_draining, "a beat during a drain");
                self.beats.push(beat);
            }
            Action::Drained => {
                assert!(self.is_draining && self.processes.is_empty(), "drained too early");
                self.drained += 1;
            }
        }
    }

    fn order(&mut self, worker: WorkerId, order: Order) {
        if let Order::Spawn { agent, task } = order {
            assert!(!self.is_draining, "a spawn during a drain");
            assert!(worker.0 > self.last_worker, "{worker} is no new number");
            assert_eq!(task.is_some(), agent.mode == AgentMode::Oneshot);
            self.last_worker = worker.0;
            let process = Process {
                mode: agent.mode,
                is_ready: false,
                task: task.map(|assignment| assignment.task),
                is_preempting: false,
                is_cancelling: false,
                is_stopping: false,
                is_killed: false,
            };
            self.processes.insert(worker, process);
            return;
        }
        let process = self.processes.get_mut(&worker).unwrap_or_else(|| panic!("{order:?} to {worker}, which is gone"));
        assert!(!process.is_killed || matches!(order, Order::BreakerState { .. }), "{order:?} to a killed {process:?}");
        match order {
            Order::Spawn { .. } => {}
            Order::Assign(assignment) => {
                assert!(!self.is_draining, "a task given out during a drain");
                assert!(process.is_ready && process.task.is_none() && !process.is_stopping, "{process:?}");
                process.task = Some(assignment.task);
            }
            Order::Cancel { task, .. } => {
                assert_eq!(process.task, Some(task));
                process.is_cancelling = true;
            }
            Order::Preempt { task, .. } => {
                assert_eq!(process.task, Some(task));
                process.is_preempting = true;
            }
            Order::CollectGarbage | Order::BreakerState { .. } => {}
            Order::Shutdown => {
                assert!(process.task.is_none() && !process.is_stopping, "{process:?}");
                process.is_stopping = true;
            }
            Order::Kill => process.is_killed = true,
        }
    }

    /// Something a process of this kind, in this state, may do; `wild`: also what no decent one does.
    pub fn stir(&mut self, worker: WorkerId, wild: bool) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let dice = &mut self.dice;
        let trouble = if wild { dice.below(16) } else { 16 };
        let exit = |status: Option<i32>, signal: Option<i32>| {
            let result = (status == Some(0)).then(result);
            Report::Exited(Box::new(Exit { status, signal, result, ..Exit::default() }))
        };
        let checkpoint = dice.one_in(2);
        let report = match (process.mode, process.task, trouble) {
            _ if process.is_killed => exit(None, Some(9)),
            (_, _, 0) => exit(None, Some(11)),
            (_, _, 1) => exit(Some(1), None),
            (AgentMode::Persistent, task, 2) if process.is_ready || task.is_none() => {
                process.is_killed = true;
                Report::ProtocolError { message: "hello".to_string() }
            }
            (AgentMode::Oneshot, _, 2 | 3) | (AgentMode::Persistent, None, 3) if !process.is_ready => {
                Report::SpawnFailed { error: "no such file".to_string() }
            }
            (AgentMode::Persistent, Some(task), 4) => {
                Report::Progress { task, percent: 10.0, message: None, checkpoint }
            }
            (AgentMode::Persistent, Some(task), 5 | 6) => {
                Report::Failed { task, error: "no luck".to_string(), stack: None, retryable: checkpoint }
            }
            (AgentMode::Persistent, Some(task), 7) if !process.is_preempting => Report::Preempted { task, checkpoint },
            (AgentMode::Persistent, _, 8) if process.is_ready => {
                Report::Memory(HeapReading { rss: dice.below(100), ..HeapReading::default() })
            }
            (AgentMode::Oneshot, Some(_), _) => exit(Some(0), None),
            (AgentMode::Persistent, _, _) if process.is_stopping => exit(Some(0), None),
            (AgentMode::Persistent, None, _) if !process.is_ready => {
                process.is_ready = true;
                Report::Ready { can_checkpoint: checkpoint, can_cancel: true }
            }
            (AgentMode::Persistent, Some(task), _) if process.is_preempting && checkpoint => {
                Report::Preempted { task, checkpoint }
            }
            (AgentMode::Persistent, Some(task), _) => Report::Completed { task, result: result() },
            (AgentMode::Persistent | AgentMode::Oneshot, None, _) => return,
        };
        match &report {
            Report::Exited(_) | Report::SpawnFailed { .. } => {
                self.processes.remove(&worker);
            }
            Report::Completed { .. } | Report::Failed { .. } => process.lets_go(),
            // Unasked for, it is a breach of the protocol: the core kills it, and its task is its own till then.
            Report::Preempted { .. } if process.is_preempting || process.is_cancelling => process.lets_go(),
            Report::Preempted { .. }
            | Report::Spawned { .. }
            | Report::Ready { .. }
            | Report::Progress { .. }
            | Report::Memory(_)
            | Report::Breaker { .. }
            | Report::ProtocolError { .. } => {}
        }
        self.feed(Event::Worker(WorkerReport { worker, report }));
    }

    pub fn reconfigured(&mut self, settings: &Settings) {
        self.allowed_workers = self.core.pool.len().max(settings.workers.max);
        self.allowed_depth = self.core.queue.depth().max(settings.queue.max_depth);
    }

    fn check(&mut self) {
        let core = &self.core;
        if let Some(deadline) = core.next_deadline() {
            assert!(deadline > self.now, "the daemon would spin: {deadline:?} at {:?}", self.now);
        }
        self.remembered.check(core);
        self.allowed_workers = self.allowed_workers.min(core.pool.len()).max(core.settings.workers.max);
        assert!(core.pool.len() <= self.allowed_workers, "{} processes", core.pool.len());
        assert!(core.pool.iter().map(|(id, _)| id).eq(self.processes.keys().copied()), "other processes");
        let busy: Vec<(TaskId, WorkerId)> =
            core.pool.iter().filter_map(|(id, worker)| worker.task().map(|task| (task, id))).collect();
        assert_eq!(busy.iter().map(|(task, _)| task).collect::<BTreeSet<_>>().len(), busy.len(), "run twice: {busy:?}");
        let waiting: Vec<TaskId> = core.queue.iter().collect();
        let mut held = BTreeSet::new();
        for task in core.ledger.live() {
            let places = waiting.iter().filter(|waiting| **waiting == task.id).count();
            assert_eq!(places, usize::from(!matches!(task.phase, Phase::Running { .. })), "places of {task:?}");
            if let Phase::Running { worker, .. } = task.phase {
                let is_left = self.is_draining && core.pool.get(worker).is_none();
                assert!(is_left || busy.contains(&(task.id, worker)), "nobody runs {task:?}");
                held.extend(task.permit.as_ref().map(|held| held.permit));
            } else {
                assert!(task.permit.is_none(), "{task:?} waits and holds a permit");
            }
            assert!(core.ledger.finished(task.id).is_none(), "{} came back from its end", task.id);
        }
        assert!(waiting.iter().all(|task| core.ledger.get(*task).is_some()), "a ghost waits");
        for breaker in core.breakers.values() {
            assert!(breaker.held_by_tasks().all(|permit| held.contains(&permit)), "a permit leaked from {breaker:?}");
        }
        self.allowed_depth = self.allowed_depth.min(core.queue.depth()).max(core.settings.queue.max_depth);
        assert!(core.queue.depth() <= self.allowed_depth, "{} queued", core.queue.depth());
        if !self.is_draining {
            self.check_nothing_waits_for_nothing(&waiting);
        }
    }

    fn check_nothing_waits_for_nothing(&self, waiting: &[TaskId]) {
        let core = &self.core;
        if core.pool.len() >= core.settings.workers.max {
            return;
        }
        for task in waiting.iter().filter_map(|task| core.ledger.get(*task)) {
            let Some(agent) = core.settings.agents.get(&task.spec.agent) else { panic!("{task:?} waits for nobody") };
            let of_agent = core.pool.count(|worker| worker.agent.name == agent.name);
            let is_coming = core.pool.iter().any(|(_, worker)| worker.agent.name == agent.name && worker.is_starting());
            let is_available = core
                .health
                .get(&agent.name)
                .is_none_or(|health| health.availability(self.now, &core.settings.workers) == Availability::Available);
            if core.retry_pause(task.id).is_some() {
                continue;
            }
            let is_governed = core.governs_memory() && core.is_governed(task.id);
            if is_governed && is_held(core, &task.spec) {
                continue;
            }
            let has_breakers = core.settings.features.circuit_breakers && core.is_governed(task.id);
            let is_guarded = agent.breaker.as_ref().and_then(|name| core.breakers.get(name)).filter(|_| has_breakers);
            if is_guarded.is_some_and(|breaker| breaker.refusal(self.now).is_some()) {
                continue;
            }
            let idle = core.pool.warmest_idle(agent);
            if is_governed && !core.pool.is_empty() && core.shortage(task, agent, idle).is_some() {
                // It waits for memory that others hold, and what comes after it lets it have that.
                return;
            }
            let may_run = is_available || idle.is_some();
            let is_at_its_most = agent.max_workers.is_some_and(|max| of_agent >= max);
            assert!(!may_run || is_coming || is_at_its_most, "{task:?} waits, and nothing is in its way");
        }
    }
}

/// Whether the level keeps a task like this waiting: even at the highest one starts when nothing else is left.
fn is_held(core: &Core, spec: &TaskSpec) -> bool {
    let level = core.governor.level();
    let is_beat = level >= Level::Warning && spec.priority == Priority::Heartbeat && spec.skippable;
    let is_alone = core.pool.is_empty() && !core.is_settling();
    is_beat || (level >= Level::Critical && spec.priority != Priority::Critical && !is_alone)
}

impl Process {
    fn lets_go(&mut self) {
        self.task = None;
        (self.is_preempting, self.is_cancelling) = (false, false);
    }
}
