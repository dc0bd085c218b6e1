//! The worker processes of a random walk: some do what they are told, some do not, and some lie about it.

use crate::core::ids::TaskId;
use crate::core::order::{Exit, HeapReading, Order, Report};
use crate::core::settings::AgentMode;
use crate::core::task::{ResultPlace, ResultRef};
use crate::simulation::dice::Dice;
use std::sync::Arc;

/// What a program is like; for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    Decent,
    /// Does not hear PREEMPT, CANCEL or SHUTDOWN, nor a TERM.
    Deaf,
    /// Does nothing at all, not even get ready.
    Hung,
    /// Speaks of tasks that are not its own, says everything twice, and gets ready again and again.
    Liar,
    /// Takes more memory with every look at it.
    Leaking,
}

const TEMPERS: [Temper; 8] = [
    Temper::Decent,
    Temper::Decent,
    Temper::Decent,
    Temper::Decent,
    Temper::Deaf,
    Temper::Hung,
    Temper::Liar,
    Temper::Leaking,
];

/// A process as its supervisor sees it.
#[derive(Debug)]
pub struct Process {
    pub mode: AgentMode,
    pub temper: Temper,
    pub task: Option<TaskId>,
    /// The one it let go of last.
    last: Option<TaskId>,
    pub is_ready: bool,
    pub is_preempting: bool,
    pub is_cancelling: bool,
    pub is_stopping: bool,
    pub is_killed: bool,
}

impl Process {
    pub fn new(mode: AgentMode, task: Option<TaskId>, dice: &mut Dice) -> Process {
        Process {
            mode,
            temper: dice.pick(&TEMPERS),
            task,
            last: None,
            is_ready: false,
            is_preempting: false,
            is_cancelling: false,
            is_stopping: false,
            is_killed: false,
        }
    }

    /// What it is ordered, held against what may be ordered.
    pub fn hear(&mut self, order: &Order) {
        assert!(!self.is_killed || matches!(order, Order::BreakerState { .. }), "{order:?} to a killed {self:?}");
        match order {
            Order::Spawn { .. } => panic!("spawned twice: {self:?}"),
            Order::Assign(assignment) => {
                assert!(self.is_ready && self.task.is_none() && !self.is_stopping, "a task for {self:?}");
                self.task = Some(assignment.task);
            }
            Order::Cancel { task, .. } => {
                assert_eq!(self.task, Some(*task));
                self.is_cancelling = true;
            }
            Order::Preempt { task, .. } => {
                assert_eq!(self.task, Some(*task));
                self.is_preempting = true;
            }
            Order::CollectGarbage | Order::BreakerState { .. } => {}
            Order::Shutdown => {
                assert!(self.task.is_none() && !self.is_stopping, "a second end for {self:?}");
                self.is_stopping = true;
            }
            Order::Kill => self.is_killed = true,
        }
    }

    /// Something that it may do in its state; `wild`: also what no decent one does. `None`: it does nothing.
    pub fn stir(&mut self, dice: &mut Dice, wild: bool) -> Option<Report> {
        if self.is_killed {
            return Some(exit(None, Some(9)));
        }
        if wild {
            match self.temper {
                Temper::Hung => return None,
                Temper::Liar if dice.one_in(2) => return Some(self.lie(dice)),
                Temper::Decent | Temper::Deaf | Temper::Liar | Temper::Leaking => {}
            }
        }
        let is_deaf = wild && self.temper == Temper::Deaf;
        let trouble = if wild { dice.below(16) } else { 16 };
        let checkpoint = dice.one_in(2);
        let report = match (self.mode, self.task, trouble) {
            (_, _, 0) => exit(None, Some(11)),
            (_, _, 1) => exit(Some(1), None),
            (AgentMode::Persistent, task, 2) if self.is_ready || task.is_none() => {
                self.is_killed = true;
                Report::ProtocolError { message: "hello".to_string() }
            }
            (AgentMode::Oneshot, _, 2 | 3) | (AgentMode::Persistent, None, 3) if !self.is_ready => {
                Report::SpawnFailed { error: "no such file".to_string() }
            }
            (AgentMode::Persistent, Some(task), 4) => {
                Report::Progress { task, percent: 10.0, message: None, checkpoint }
            }
            (AgentMode::Persistent, Some(task), 5 | 6) => {
                Report::Failed { task, error: "no luck".to_string(), stack: None, retryable: checkpoint }
            }
            (AgentMode::Persistent, Some(task), 7) if !self.is_preempting => Report::Preempted { task, checkpoint },
            (AgentMode::Persistent, _, 8) if self.is_ready => {
                Report::Memory(HeapReading { rss: dice.below(100), ..HeapReading::default() })
            }
            (_, _, 9) if !self.is_ready => Report::Spawned { pid: 1 + dice.below(9) as u32 },
            (AgentMode::Oneshot, _, 10) => killed_by_kernel(),
            (AgentMode::Oneshot, Some(_), _) if self.is_cancelling && !is_deaf && checkpoint => exit(None, Some(15)),
            (AgentMode::Oneshot, Some(_), _) => exit(Some(0), None),
            (AgentMode::Persistent, _, _) if self.is_stopping => {
                if is_deaf {
                    return None;
                }
                exit(Some(0), None)
            }
            (AgentMode::Persistent, None, _) if !self.is_ready => {
                self.is_ready = true;
                Report::Ready { can_checkpoint: checkpoint, can_cancel: true }
            }
            (AgentMode::Persistent, Some(task), _) if self.is_preempting && !is_deaf && checkpoint => {
                Report::Preempted { task, checkpoint }
            }
            (AgentMode::Persistent, Some(task), _) => Report::Completed { task, result: result() },
            (AgentMode::Persistent | AgentMode::Oneshot, None, _) => return None,
        };
        match &report {
            Report::Completed { .. } | Report::Failed { .. } => self.lets_go(),
            // Unasked for, it is a breach of the protocol: the core kills it, and its task is its own till then.
            Report::Preempted { .. } if self.is_preempting || self.is_cancelling => self.lets_go(),
            Report::Preempted { .. }
            | Report::Spawned { .. }
            | Report::SpawnFailed { .. }
            | Report::Ready { .. }
            | Report::Progress { .. }
            | Report::Memory(_)
            | Report::Breaker { .. }
            | Report::ProtocolError { .. }
            | Report::Exited(_) => {}
        }
        Some(report)
    }

    /// What the supervisor would stop, and the core has to bear all the same.
    fn lie(&mut self, dice: &mut Dice) -> Report {
        let strange = TaskId(self.task.map_or(0, |task| task.0) + 1 + dice.below(3));
        // Why not: its own task it may speak of truly.
        let task = self.last.filter(|last| dice.one_in(2) && Some(*last) != self.task).unwrap_or(strange);
        match dice.below(6) {
            0 => Report::Completed { task, result: result() },
            1 => Report::Failed { task, error: "a lie".to_string(), stack: None, retryable: true },
            2 => Report::Preempted { task, checkpoint: true },
            3 => Report::Progress { task, percent: 1000.0, message: None, checkpoint: false },
            4 if self.is_ready => Report::Ready { can_checkpoint: dice.one_in(2), can_cancel: false },
            _ => Report::Memory(HeapReading { rss: dice.below(2) * (u64::MAX >> 8), ..HeapReading::default() }),
        }
    }

    fn lets_go(&mut self) {
        self.last = self.task.take();
        (self.is_preempting, self.is_cancelling) = (false, false);
    }
}

fn result() -> ResultRef {
    ResultRef { place: ResultPlace::Inline(Arc::from(*b"1")), is_json: true }
}

fn exit(status: Option<i32>, signal: Option<i32>) -> Report {
    let result = (status == Some(0)).then(result);
    Report::Exited(Box::new(Exit { status, signal, result, ..Exit::default() }))
}

fn killed_by_kernel() -> Report {
    Report::Exited(Box::new(Exit { signal: Some(9), oom_killed: true, peak_rss_bytes: 400, ..Exit::default() }))
}
