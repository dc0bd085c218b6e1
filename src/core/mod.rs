//! Every decision of the daemon, as a pure state machine: `handle(now, event)` gives actions, `next_deadline()` says
//! when it wants to be asked again.
//!
//! Owns the rules: queue, pool, governor, breakers, schedules, retries. May import std's collections; time comes in as
//! a value. Must never know a clock, files, sockets, channels, what a pid is, or JSON. The same code runs in the daemon
//! and in the simulation tests.

pub mod admission;
pub mod attempts;
pub mod breaker;
mod deadlines;
mod dispatch;
pub mod estimate;
pub mod event;
mod exits;
pub mod footprint;
pub mod governor;
pub mod headroom;
pub mod health;
pub mod ids;
mod ladder;
pub mod ledger;
pub mod limits;
pub mod notice;
pub mod order;
pub mod pool;
pub mod queue;
pub mod refusal;
mod reports;
pub mod restore;
pub mod schedule;
pub mod settings;
pub mod task;
#[cfg(test)]
mod tests;
pub mod view;
pub mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use attempts::Attempt;
use breaker::{Breaker, BreakerMemory, BreakerState, RememberedPhase};
use estimate::RunTimes;
use event::{Action, Answer, BreakerAnswer, BreakerRequest, Event, Now, Record};
use footprint::Footprints;
use governor::Governor;
use health::Health;
use ids::{AgentName, PermitId, TaskId, Ticket, WorkerId};
use ledger::{HeldPermit, Ledger, Phase};
use notice::Notice;
use order::Order;
use pool::{Pool, WorkerState};
use queue::Queue;
use schedule::Schedule;
use settings::Settings;
use task::{Failure, FailureCode, Outcome};

#[derive(Debug)]
pub struct Core {
    settings: Settings,
    ledger: Ledger,
    queue: Queue,
    pool: Pool,
    breakers: BTreeMap<Arc<str>, Breaker>,
    schedules: Vec<Schedule>,
    governor: Governor,
    health: BTreeMap<AgentName, Health>,
    run_times: RunTimes,
    footprints: Footprints,
    draining: Option<Draining>,
    /// Starts are kept through a crash.
    is_journal_writable: bool,
    last_permit: u64,
    /// Of the event being handled.
    now: Now,
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Draining {
    /// When those that can are asked to checkpoint.
    checkpoint_at: Duration,
    /// When what still runs is killed.
    deadline: Duration,
    /// The stage reached, so that each step is taken once.
    stage: DrainStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum DrainStage {
    Finishing,
    Checkpointing,
    Killing,
    Done,
}

impl Core {
    pub fn new(settings: Settings, now: Now) -> Core {
        let mut core = Core {
            settings,
            ledger: Ledger::default(),
            queue: Queue::default(),
            pool: Pool::default(),
            breakers: BTreeMap::new(),
            schedules: Vec::new(),
            governor: Governor::default(),
            health: BTreeMap::new(),
            run_times: RunTimes::default(),
            footprints: Footprints::default(),
            draining: None,
            is_journal_writable: true,
            last_permit: 0,
            now,
            actions: Vec::new(),
        };
        core.adopt_breakers_and_schedules();
        core
    }

    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        self.now = now;
        // Why first: whoever asks once a breaker's pause is over is not to be refused for nobody having looked.
        self.pass_breakers();
        // Why first: a key whose task is forgotten in this moment stands for nothing any more.
        self.pass_retention();
        match event {
            Event::Submitted { ticket, task, spec } => self.submit(ticket, task, *spec),
            Event::CancelRequested { ticket, task } => self.cancel(ticket, task),
            Event::Breaker { ticket, name, request } => self.breaker_request(ticket, &name, request),
            Event::Worker(report) => self.report(report),
            Event::MemorySampled(sample) => self.memory_sampled(*sample),
            Event::Reconfigured(settings) => self.reconfigure(*settings),
            Event::DrainRequested { timeout } => self.drain(timeout),
            Event::DeadlinePassed => {}
            Event::JournalFailed { unstarted } => {
                self.is_journal_writable = false;
                unstarted.into_iter().for_each(|(worker, task)| self.unstart(task, worker));
            }
            Event::JournalWorks => self.is_journal_writable = true,
        }
        self.pass_deadlines();
        self.dispatch();
        // Why last: who has just got ready, or is wanted as its time ends, is given work rather than sent away.
        self.retire_idle();
        self.tell_if_drained();
        std::mem::take(&mut self.actions)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn reconfigure(&mut self, mut settings: Settings) {
        // Why: an agent that did not change keeps its identity, and its idle workers and its failures with it.
        let mut unchanged = BTreeSet::new();
        for (name, agent) in &mut settings.agents {
            if let Some(old) = self.settings.agents.get(name)
                && old == agent
            {
                *agent = old.clone();
                unchanged.insert(name.clone());
            }
        }
        self.settings = settings;
        self.adopt_breakers_and_schedules();
        let agents = &self.settings.agents;
        self.health.retain(|agent, _| unchanged.contains(agent));
        self.run_times.retain(|agent| agents.contains_key(agent));
        self.footprints.retain(|agent| agents.contains_key(agent));
        self.retire_outdated_workers();
        self.retire_surplus_workers();
    }

    fn adopt_breakers_and_schedules(&mut self) {
        let is_gone = |name: &&Arc<str>| !self.settings.breakers.contains_key(*name);
        for name in self.breakers.keys().filter(is_gone).cloned().collect::<Vec<_>>() {
            self.breakers.remove(&name);
            self.forget_breaker(name);
        }
        let settings = &self.settings;
        for (name, breaker) in &settings.breakers {
            match self.breakers.get_mut(name) {
                Some(known) => known.reconfigure(breaker.clone()),
                None => {
                    self.breakers.insert(name.clone(), Breaker::new(breaker.clone()));
                }
            }
        }
        let mut old = std::mem::take(&mut self.schedules);
        for settings in &settings.schedules {
            let known = old.iter().position(|schedule| schedule.settings.name == settings.name);
            self.schedules.push(match known {
                Some(index) => {
                    let mut schedule = old.swap_remove(index);
                    schedule.reconfigure(settings.clone(), self.now.at);
                    schedule
                }
                None => Schedule::new(settings.clone(), self.now.at),
            });
        }
    }

    fn retire_outdated_workers(&mut self) {
        let mut idle = Vec::new();
        for (id, worker) in self.pool.iter_mut() {
            let current = self.settings.agents.get(&worker.agent.name);
            if !current.is_some_and(|agent| Arc::ptr_eq(agent, &worker.agent)) {
                worker.retiring = true;
                idle.extend(worker.is_idle().then_some(id));
            }
        }
        for worker in idle {
            self.shut_down(worker);
        }
    }

    /// After a maximum was lowered or the pool turned off: idle workers end now, busy ones after their task.
    fn retire_surplus_workers(&mut self) {
        while let Some(coldest) = self.pool.coldest_idle(None)
            && (self.has_surplus() || !self.settings.features.worker_pool)
        {
            self.shut_down(coldest);
        }
    }

    fn has_surplus(&self) -> bool {
        self.pool.count(|worker| !worker.is_ending()) > self.settings.workers.max
    }

    fn breaker_request(&mut self, ticket: Ticket, name: &Arc<str>, request: BreakerRequest) {
        let permit = self.next_permit();
        let now = self.now.at;
        let Some(breaker) = self.breakers.get_mut(name) else {
            return self.answer(ticket, Answer::Breaker(BreakerAnswer::UnknownBreaker));
        };
        let reported = |known: Option<Option<BreakerState>>| match known {
            Some(transition) => (BreakerAnswer::Done, transition),
            None => (BreakerAnswer::UnknownPermit, None),
        };
        let (answer, transition) = match request {
            BreakerRequest::Acquire => match breaker.acquire(now, permit, breaker::Holder::Outside(now)) {
                Ok(()) => (BreakerAnswer::Permit(permit), None),
                Err(retry_after) => (BreakerAnswer::Open { retry_after }, None),
            },
            BreakerRequest::Success(permit) | BreakerRequest::Failure(permit) if !breaker.is_outside(permit) => {
                (BreakerAnswer::UnknownPermit, None)
            }
            BreakerRequest::Success(permit) => reported(breaker.success(permit)),
            BreakerRequest::Failure(permit) => reported(breaker.failure(now, permit)),
            BreakerRequest::ForceOpen => {
                let transition = breaker.force_open();
                if transition.is_none() {
                    // It was open, and is for good now.
                    self.record_breaker(name);
                }
                (BreakerAnswer::Done, transition)
            }
            BreakerRequest::ForceClose => (BreakerAnswer::Done, breaker.force_close()),
        };
        self.note_transition(name, transition);
        self.answer(ticket, Answer::Breaker(answer));
    }

    fn note_transition(&mut self, name: &Arc<str>, transition: Option<BreakerState>) {
        let (Some(to), Some(breaker)) = (transition, self.breakers.get(name)) else { return };
        let view = breaker.view(self.now.at);
        self.record_breaker(name);
        self.notice(Notice::Circuit {
            breaker: name.clone(),
            to,
            openings: view.openings,
            retry_after: view.retry_after,
        });
    }

    /// One that is not configured any more does not come back as it was.
    fn forget_breaker(&mut self, name: Arc<str>) {
        let memory = BreakerMemory { phase: RememberedPhase::Closed, openings: 0 };
        self.actions.push(Action::Record(Record::Breaker { name, memory }));
    }

    fn record_breaker(&mut self, name: &Arc<str>) {
        let Some(breaker) = self.breakers.get(name) else { return };
        let memory = breaker.memory(self.now);
        self.actions.push(Action::Record(Record::Breaker { name: name.clone(), memory }));
    }

    /// Ends a task that is waiting or whose worker is done with it.
    fn finish(&mut self, id: TaskId, outcome: Outcome, peak_rss_bytes: Option<u64>) {
        let Some(mut task) = self.ledger.take(id) else { return };
        self.queue.remove(task.spec.priority, id);
        self.settle_permit(task.permit.take(), &outcome);
        let finished = Arc::new(ledger::finished(&task, outcome, self.now, peak_rss_bytes));
        if let (Outcome::Completed(_), Some(run_time)) = (&finished.outcome, finished.run_time) {
            self.run_times.learn(&finished.spec.agent, run_time);
        }
        self.actions.push(Action::Record(Record::Finished(finished.clone())));
        self.note_finished(&finished);
        self.actions.push(Action::Finished(finished.clone()));
        self.ledger.finish(self.now.at, finished);
    }

    fn note_finished(&mut self, finished: &ledger::FinishedTask) {
        let (task, agent, request) = (finished.id, finished.spec.agent.clone(), finished.spec.request_id.clone());
        match &finished.outcome {
            Outcome::Completed(result) => self.notice(Notice::TaskCompleted {
                task,
                worker: finished.worker,
                agent,
                run_time: finished.run_time.unwrap_or_default(),
                result_bytes: result.bytes(),
                request,
            }),
            Outcome::Failed(failure) => self.notice(Notice::TaskFailed {
                task,
                worker: finished.worker,
                agent,
                code: failure.code,
                text: brief(&failure.message),
                run_time: finished.run_time,
                request,
            }),
            Outcome::Cancelled => self.notice(Notice::TaskCancelled { task, agent, request }),
            // Why: what skipped or evicted it has said so, with its reason.
            Outcome::Skipped | Outcome::Evicted => {}
        }
    }

    /// One attempt of a task has failed: another one, or the end.
    fn fail_attempt(&mut self, id: TaskId, failure: Failure, retryable: bool, peak_rss_bytes: Option<u64>) {
        let Some(task) = self.ledger.get_mut(id) else { return };
        let agent = self.settings.agents.get(&task.spec.agent);
        let started_ms = match task.phase {
            Phase::Running { since, .. } => {
                Some(self.now.wall_ms.saturating_sub(self.now.at.saturating_sub(since).as_millis() as u64))
            }
            Phase::Queued | Phase::Preempted => None,
        };
        let attempt = Attempt::of(task.attempt(), started_ms, self.now.wall_ms, &failure);
        task.memory_deaths += u32::from(failure.code.is_for_memory());
        task.was_stopped_by_memory |= failure.code.is_for_memory();
        // Deaths by memory have a budget of their own: a task that cannot live on this host is not tried for ever.
        let oom_kills = agent.map_or(u32::MAX, |agent| agent.max_oom_kills);
        let is_too_large = failure.code.is_for_memory() && task.memory_deaths > oom_kills;
        if !retryable || is_too_large || task.retries >= task.spec.max_retries {
            let limit = if is_too_large {
                format!("max_oom_kills = {oom_kills}")
            } else {
                format!("maxRetries = {}", task.spec.max_retries)
            };
            if task.retries > 0 {
                task.attempts.push(attempt);
            }
            let is_exhausted = retryable && task.retries > 0;
            let failure = if is_exhausted { exhausted(task.retries + 1, &limit, failure) } else { failure };
            return self.finish(id, Outcome::Failed(Box::new(failure)), peak_rss_bytes);
        }
        task.retries += 1;
        task.attempts.push(attempt);
        let pause = health::backoff(&self.settings.workers.restart_backoff, task.retries as usize);
        task.retry_at = Some(self.now.at + pause);
        task.phase = Phase::Queued;
        let permit = task.permit.take();
        let (spec, retries) = (task.spec.clone(), task.retries);
        self.put_back(id);
        self.notice(Notice::TaskRetried {
            task: id,
            agent: spec.agent.clone(),
            code: failure.code,
            text: brief(&failure.message),
            retries,
            max_retries: spec.max_retries,
            request: spec.request_id.clone(),
        });
        self.settle_permit(permit, &Outcome::Failed(Box::new(failure)));
    }

    /// Back to waiting, before the queued tasks of its level; its phase says as what.
    fn put_back(&mut self, id: TaskId) {
        let Some(task) = self.ledger.get_mut(id) else { return };
        task.waiting_since = self.now.at;
        let priority = task.spec.priority;
        let record = Record::Returned {
            task: id,
            retries: task.retries,
            memory_deaths: task.memory_deaths,
            by_memory: task.was_stopped_by_memory,
            preemptions: task.preemptions,
            preempted: task.phase == Phase::Preempted,
            attempts: task.attempts.clone(),
        };
        self.queue.remove(priority, id);
        self.queue.put_back(priority, id, |other| id < other);
        self.actions.push(Action::Record(record));
    }

    fn settle_permit(&mut self, held: Option<HeldPermit>, outcome: &Outcome) {
        let Some(HeldPermit { breaker: name, permit }) = held else { return };
        let Some(breaker) = self.breakers.get_mut(&name) else { return };
        let transition = match outcome {
            Outcome::Completed(_) => breaker.success(permit).flatten(),
            Outcome::Failed(_) => breaker.failure(self.now.at, permit).flatten(),
            Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted => {
                breaker.release(permit);
                None
            }
        };
        self.note_transition(&name, transition);
    }

    fn next_permit(&mut self) -> PermitId {
        self.last_permit += 1;
        PermitId(self.last_permit)
    }

    /// Asks an idle or starting worker to end by itself.
    fn shut_down(&mut self, id: WorkerId) {
        let deadline = self.now.at + self.settings.workers.cancel_grace;
        if let Some(worker) = self.pool.get_mut(id) {
            worker.state = WorkerState::Stopping { deadline };
            self.order(id, Order::Shutdown);
        }
    }

    /// Whether governance and breakers apply to this task: a share of all, by a hash of the id.
    fn is_governed(&self, task: TaskId) -> bool {
        // The finalizer of splitmix64 (Steele, Lea and Flood 2014): neighbouring ids land far apart.
        let mut hash = task.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (hash ^ (hash >> 31)) % 100 < u64::from(self.settings.features.rollout_percent)
    }

    fn order(&mut self, worker: WorkerId, order: Order) {
        self.actions.push(Action::Worker(worker, order));
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.actions.push(Action::Answer(ticket, answer));
    }

    fn notice(&mut self, notice: Notice) {
        self.actions.push(Action::Notice(notice));
    }
}

/// The most of an agent's own words that a notice carries: notices are kept in a ring, whole failures with their task.
const BRIEF_MAX: usize = 300;

fn brief(text: &str) -> String {
    cut(text, BRIEF_MAX)
}

/// At most so many characters, and a mark that there were more.
fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// `limit`: the setting that allows no further attempt.
fn exhausted(attempts: u32, limit: &str, last: Failure) -> Failure {
    let message = format!(
        "failed {attempts} times, and {limit} allows no more; the last time {}: {}",
        last.code.name(),
        last.message
    );
    Failure { code: FailureCode::RetriesExhausted, message, ..last }
}
