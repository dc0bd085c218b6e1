//! The scheduler's part without threads: records before answers, one reply per request, waits, beats, and what happens
//! when nothing can be written. It follows `crate::scheduler` step by step, so that what holds here holds there.

use std::sync::Arc;
use std::time::Duration;

use super::spool::{Crash, Spool};
use crate::core::Core;
use crate::core::event::{
    Action, Answer as CoreAnswer, BreakerAnswer, BreakerRequest, CancelAnswer, Event, Now, Record, take_starts,
};
use crate::core::ids::{TaskId, Ticket, WorkerId};
use crate::core::ledger::FinishedTask;
use crate::core::notice::Notice;
use crate::core::order::Order;
use crate::core::refusal::Refusal;
use crate::core::settings::{ScheduleSettings, Settings};
use crate::core::task::{Payload, PayloadKind, TaskSpec, TaskState};

/// Somebody who asks; a number of its own for every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller(pub u64);

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Taken and durable; with a wait, finished or not finished in time.
    Submitted {
        task: TaskId,
        state: TaskState,
        is_duplicate: bool,
    },
    Refused(Refusal),
    StorageFull,
    /// A wait is over, and the task is not known any more.
    Forgotten(TaskId),
    Cancelled(TaskId, CancelAnswer),
    Breaker(BreakerAnswer),
}

/// What comes out of a turn, in its order.
#[derive(Debug)]
pub enum Said {
    Order(WorkerId, Order),
    /// Written, or to be written once that is possible.
    Record(Record),
    Reply(Caller, Answer),
    Finished(Arc<FinishedTask>),
    Notice(Notice),
    Drained,
}

/// After a failed write, the whole journal is written anew at this interval until that works.
const RETRY: Duration = Duration::from_secs(2);

const NOBODY: Ticket = Ticket(0);
const CALLER: Ticket = Ticket(1);

pub struct Desk {
    pub core: Core,
    pub spool: Spool,
    now: Now,
    last_task: u64,
    caller: Option<Request>,
    waiting: Vec<Waiting>,
    actions: Vec<Action>,
    /// When writing is tried again; `None`: all is well.
    trouble: Option<Duration>,
    /// The core knows of it.
    is_core_told: bool,
    /// Replies that wait for the disk.
    unsynced: Vec<(Caller, Answer)>,
    said: Vec<Said>,
    /// Steps left until the daemon dies, each a record written or an action performed; `None`: it does not.
    fuse: Option<u32>,
}

#[derive(Debug)]
struct Request {
    caller: Caller,
    wait: Duration,
    task: TaskId,
}

#[derive(Debug)]
struct Waiting {
    task: TaskId,
    until: Duration,
    caller: Caller,
    is_duplicate: bool,
}

impl Desk {
    /// Starts with what the spool holds after a clean stop, or with nothing.
    pub fn open(settings: Settings, now: Now, spool: Spool) -> Desk {
        Desk::recover(settings, now, spool, Crash::Daemon)
    }

    /// Starts after a crash.
    pub fn recover(settings: Settings, now: Now, mut spool: Spool, crash: Crash) -> Desk {
        let mut core = Core::new(settings, now);
        let known = spool.recover(crash);
        let last_task = known.last_task;
        let finished = known.finished.values().map(|task| FinishedTask::clone(task)).collect();
        let unfinished = known.unfinished.values().cloned().collect();
        core.restore_footprints(known.footprints.iter().map(|(agent, peak)| (agent.clone(), *peak)).collect());
        core.restore_breakers(known.breakers.iter().map(|(name, memory)| (name.clone(), *memory)).collect());
        let actions = core.restore(finished, unfinished);
        // A start writes the journal anew.
        let trouble = spool.is_failing.then_some(now.at + RETRY);
        let mut desk = Desk {
            core,
            spool,
            now,
            last_task,
            caller: None,
            waiting: Vec::new(),
            actions,
            trouble,
            is_core_told: false,
            unsynced: Vec::new(),
            said: Vec::new(),
            fuse: None,
        };
        desk.tell_journal_failed();
        desk.hear(now, Event::DeadlinePassed);
        desk
    }

    /// An event that nobody waits for.
    pub fn hear(&mut self, now: Now, event: Event) {
        self.turn(now, event);
    }

    pub fn submit(&mut self, now: Now, caller: Caller, spec: TaskSpec, wait: Duration) {
        let is_known = spec.idempotency_key.as_ref().is_some_and(|key| self.core.knows_key(key));
        if self.trouble.is_some() && !is_known {
            return self.said.push(Said::Reply(caller, Answer::StorageFull));
        }
        let task = self.next_task();
        self.caller = Some(Request { caller, wait, task });
        self.turn(now, Event::Submitted { ticket: CALLER, task, spec: Box::new(spec) });
    }

    pub fn cancel(&mut self, now: Now, caller: Caller, task: TaskId) {
        self.caller = Some(Request { caller, wait: Duration::ZERO, task });
        self.turn(now, Event::CancelRequested { ticket: CALLER, task });
    }

    pub fn breaker(&mut self, now: Now, caller: Caller, name: Arc<str>, request: BreakerRequest) {
        self.caller = Some(Request { caller, wait: Duration::ZERO, task: TaskId(0) });
        self.turn(now, Event::Breaker { ticket: CALLER, name, request });
    }

    /// Time has passed.
    pub fn wake(&mut self, now: Now) {
        self.turn(now, Event::DeadlinePassed);
        self.time_out_waiting();
        if self.trouble.is_some_and(|retry_at| retry_at <= now.at) && !self.is_dead() {
            self.rewrite();
        }
    }

    pub fn next_wake(&self) -> Option<Duration> {
        let waiting = self.waiting.iter().map(|waiting| waiting.until).min();
        [self.core.next_deadline(), waiting, self.trouble].into_iter().flatten().min()
    }

    /// The client went away.
    pub fn gone(&mut self, caller: Caller) {
        self.waiting.retain(|waiting| waiting.caller != caller);
    }

    /// The disk has taken all that was written, or has failed to.
    pub fn sync(&mut self, works: bool) {
        if works {
            self.spool.sync();
        }
        for (caller, answer) in self.unsynced.drain(..) {
            let is_promise = match &answer {
                Answer::Submitted { state, .. } => !state.is_terminal(),
                Answer::Cancelled(_, answer) => *answer == CancelAnswer::Accepted,
                Answer::Refused(_) | Answer::StorageFull | Answer::Forgotten(_) | Answer::Breaker(_) => false,
            };
            let answer = if works || !is_promise { answer } else { Answer::StorageFull };
            self.said.push(Said::Reply(caller, answer));
        }
    }

    /// What was said since the last call.
    pub fn take(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    /// How it stands is written anew, as a long journal is from time to time.
    pub fn rewrite(&mut self) {
        let records: Vec<Record> = self.core.records().collect();
        let is_written = self.spool.rewrite(&records, self.last_task);
        self.trouble = (!is_written).then_some(self.now.at + RETRY);
        if is_written && std::mem::take(&mut self.is_core_told) {
            self.turn(self.now, Event::JournalWorks);
        } else if !is_written && !self.is_core_told {
            self.tell_journal_failed();
            self.act();
        }
    }

    /// Whether the caller goes on waiting, for a task or for the disk.
    pub fn owes(&self, caller: Caller) -> bool {
        self.waiting.iter().any(|waiting| waiting.caller == caller)
            || self.unsynced.iter().any(|(waiting, _)| *waiting == caller)
    }

    pub fn has_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// The daemon is to die after so many more steps, wherever that is.
    pub fn light_fuse(&mut self, steps: u32) {
        self.fuse = Some(steps);
    }

    pub fn is_dead(&self) -> bool {
        self.fuse == Some(0)
    }

    fn next_task(&mut self) -> TaskId {
        self.last_task += 1;
        TaskId(self.last_task)
    }

    fn turn(&mut self, now: Now, event: Event) {
        self.now = now;
        self.step(event);
        self.act();
    }

    fn act(&mut self) {
        while !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            let has_records = self.write_records(&actions);
            if self.trouble.is_some() && !self.is_dead() {
                let unstarted = take_starts(&mut actions);
                self.tell(unstarted);
            }
            for action in actions {
                if self.burns_down() {
                    return;
                }
                self.perform(action, has_records);
            }
        }
    }

    fn step(&mut self, event: Event) {
        let actions = self.core.handle(self.now, event);
        self.actions.extend(actions);
    }

    fn tell_journal_failed(&mut self) {
        if self.trouble.is_some() {
            self.tell(Vec::new());
        }
    }

    fn tell(&mut self, unstarted: Vec<(WorkerId, TaskId)>) {
        if !std::mem::replace(&mut self.is_core_told, true) {
            self.step(Event::JournalFailed { unstarted });
        }
    }

    /// Whether the daemon is dead before its next step.
    fn burns_down(&mut self) -> bool {
        match &mut self.fuse {
            None => false,
            Some(0) => true,
            Some(steps) => {
                *steps -= 1;
                *steps == 0
            }
        }
    }

    /// Whether answers have to wait for the disk.
    fn write_records(&mut self, actions: &[Action]) -> bool {
        let mut records = Vec::new();
        for action in actions {
            match action {
                Action::Record(_) if self.burns_down() => break,
                Action::Record(record) => records.push(record.clone()),
                Action::Worker(..)
                | Action::Answer(..)
                | Action::Finished(_)
                | Action::Notice(_)
                | Action::Beat(_)
                | Action::Drained => {}
            }
        }
        let is_new = !records.is_empty() && self.trouble.is_none();
        if is_new && !self.spool.append(&records) {
            self.trouble = Some(self.now.at + RETRY);
        }
        self.said.extend(records.into_iter().map(Said::Record));
        is_new
    }

    fn perform(&mut self, action: Action, has_records: bool) {
        match action {
            // Written already; a rewrite or a sync clears what it leaves behind.
            Action::Record(_) => {}
            Action::Worker(worker, order) => {
                let is_start = matches!(order, Order::Spawn { task: Some(_), .. } | Order::Assign(_));
                assert!(!is_start || self.trouble.is_none(), "{worker} starts what nobody would know of");
                self.said.push(Said::Order(worker, order));
            }
            Action::Notice(notice) => self.said.push(Said::Notice(notice)),
            Action::Answer(NOBODY, _) => {}
            Action::Answer(_, answer) => {
                if let Some((caller, answer)) = self.answer(answer) {
                    self.reply(caller, answer, has_records);
                }
            }
            Action::Finished(task) => {
                self.tell_waiting(&task, has_records);
                self.said.push(Said::Finished(task));
            }
            Action::Beat(schedule) => self.beat(&schedule),
            Action::Drained => self.said.push(Said::Drained),
        }
    }

    fn reply(&mut self, caller: Caller, answer: Answer, has_records: bool) {
        // Why: another caller's task may not be on the disk yet.
        let is_promise = matches!(answer, Answer::Submitted { .. } | Answer::Cancelled(_, CancelAnswer::Accepted));
        if has_records || is_promise {
            self.unsynced.push((caller, answer));
        } else {
            self.said.push(Said::Reply(caller, answer));
        }
    }

    fn answer(&mut self, answer: CoreAnswer) -> Option<(Caller, Answer)> {
        let Request { caller, wait, task: asked } = self.caller.take()?;
        let answer = match answer {
            CoreAnswer::Submitted(Err(refusal)) => Answer::Refused(refusal),
            // It is cancelled all the same.
            CoreAnswer::Cancelled(CancelAnswer::Accepted) if self.trouble.is_some() => Answer::StorageFull,
            CoreAnswer::Cancelled(answer) => Answer::Cancelled(asked, answer),
            CoreAnswer::Breaker(answer) => Answer::Breaker(answer),
            CoreAnswer::Submitted(Ok(submission)) => {
                let (task, is_duplicate) = (submission.task, submission.is_duplicate);
                if self.trouble.is_some() && !is_duplicate {
                    // Why: it was taken in memory and could not be written: it must not run after the client heard no.
                    self.core.release_key(task);
                    self.step(Event::CancelRequested { ticket: NOBODY, task });
                    return Some((caller, Answer::StorageFull));
                }
                let Some(state) = self.core.task(task).map(|task| task.state) else {
                    return Some((caller, Answer::Forgotten(task)));
                };
                if !wait.is_zero() && !state.is_terminal() {
                    self.waiting.push(Waiting { task, until: self.now.at + wait, caller, is_duplicate });
                    return None;
                }
                Answer::Submitted { task, state, is_duplicate }
            }
        };
        Some((caller, answer))
    }

    fn tell_waiting(&mut self, task: &FinishedTask, has_records: bool) {
        while let Some(index) = self.waiting.iter().position(|waiting| waiting.task == task.id) {
            let Waiting { caller, is_duplicate, .. } = self.waiting.remove(index);
            let answer = Answer::Submitted { task: task.id, state: task.outcome.state(), is_duplicate };
            self.reply(caller, answer, has_records);
        }
    }

    fn time_out_waiting(&mut self) {
        while let Some(index) = self.waiting.iter().position(|waiting| waiting.until <= self.now.at) {
            let Waiting { task, caller, is_duplicate, .. } = self.waiting.remove(index);
            let answer = match self.core.task(task) {
                Some(view) => Answer::Submitted { task, state: view.state, is_duplicate },
                None => Answer::Forgotten(task),
            };
            // Why: nobody has been answered for it, so that nobody has waited for the disk yet.
            self.reply(caller, answer, true);
        }
    }

    fn beat(&mut self, schedule: &ScheduleSettings) {
        let agent = self.core.settings().agents.get(&schedule.agent);
        let spec = TaskSpec {
            agent: schedule.agent.clone(),
            priority: schedule.priority,
            payload: Payload::Inline(schedule.payload.clone()),
            payload_kind: PayloadKind::Json,
            timeout: agent.map_or(Duration::ZERO, |agent| agent.task_timeout),
            max_retries: agent.map_or(0, |agent| agent.max_retries),
            preemptible: agent.is_none_or(|agent| agent.preemptible),
            skippable: schedule.skippable,
            idempotency_key: None,
            request_id: schedule.name.clone(),
            schedule: Some(schedule.name.clone()),
        };
        let task = self.next_task();
        self.step(Event::Submitted { ticket: NOBODY, task, spec: Box::new(spec) });
    }
}
