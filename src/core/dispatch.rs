//! Which waiting task starts next, and on which worker.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::breaker::Holder;
use super::event::{Action, Record};
use super::governor::Level;
use super::headroom::Shortage;
use super::health::Availability;
use super::ids::{AgentName, TaskId, WorkerId};
use super::ledger::{HeldPermit, Phase, Task};
use super::notice::Notice;
use super::order::Order;
use super::pool::{Stage, Worker, WorkerState};
use super::schedule::Schedule;
use super::settings::{AgentMode, AgentSettings};
use super::task::{Assignment, Failure, FailureCode, Outcome, Priority};

/// Workers that will be free soon, so that one waiting task does not call for two.
struct Promised {
    /// Starting workers nobody waits for yet, by agent.
    starting: Vec<(AgentName, usize)>,
    /// Places in the pool that are about to be free.
    ending: usize,
    /// A task that goes before waits for memory.
    is_out_of_memory: bool,
}

impl Promised {
    fn take_starting(&mut self, agent: &AgentName) -> bool {
        match self.starting.iter_mut().find(|(name, count)| name == agent && *count > 0) {
            Some((_, count)) => {
                *count -= 1;
                true
            }
            None => false,
        }
    }

    fn take_ending(&mut self) -> bool {
        let is_any = self.ending > 0;
        self.ending = self.ending.saturating_sub(1);
        is_any
    }
}

impl Core {
    /// Starts whatever can be started, in the order of service.
    pub(super) fn dispatch(&mut self) {
        if self.draining.is_some() || !self.is_journal_writable || self.queue.is_empty() {
            return;
        }
        let mut promised = self.promised();
        let mut place = self.queue.first();
        while let Some((here, task)) = self.queue.at(place) {
            if self.has_no_place(&promised) {
                return;
            }
            place = if self.try_start(task, &mut promised) { here } else { self.queue.after(here) };
        }
    }

    fn promised(&self) -> Promised {
        let mut starting: Vec<(AgentName, usize)> = Vec::new();
        for (_, worker) in self.pool.iter().filter(|(_, worker)| worker.is_starting() && !worker.retiring) {
            match starting.iter_mut().find(|(name, _)| *name == worker.agent.name) {
                Some((_, count)) => *count += 1,
                None => starting.push((worker.agent.name.clone(), 1)),
            }
        }
        Promised { starting, ending: self.pool.count(Worker::is_ending), is_out_of_memory: false }
    }

    /// Nothing can start whatever waits. Keeps a turn cheap when every worker is busy and the queue is long.
    fn has_no_place(&self, promised: &Promised) -> bool {
        self.pool.len() >= self.settings.workers.max && self.pool.idle() == 0 && promised.ending == 0
    }

    /// Whether the task left the queue.
    fn try_start(&mut self, id: TaskId, promised: &mut Promised) -> bool {
        let Some(task) = self.ledger.get(id) else { return self.queue_lost(id) };
        let name = task.spec.agent.clone();
        let Some(agent) = self.settings.agents.get(&name).cloned() else {
            let failure = Failure::new(
                FailureCode::SpawnFailed,
                format!("agent {name} is no longer configured: add it again and submit the task again"),
            );
            self.fail_attempt(id, failure, false, None);
            return true;
        };
        if self.retry_pause(id).is_some() || !self.may_start_now(id) || self.breaker_forbids(id, &agent) {
            return false;
        }
        let idle = self.pool.warmest_idle(&agent);
        // Why first: who waits for a worker and not for memory holds up nobody else.
        if idle.is_none() && (promised.take_starting(&name) || !self.may_spawn(&agent)) {
            return false;
        }
        if self.must_wait_for_memory(id, &agent, idle, promised) {
            return false;
        }
        match idle {
            Some(worker) => {
                self.start_on(id, worker);
                true
            }
            None => self.start_on_new(id, agent, promised),
        }
    }

    /// How long a task that has failed still pauses before it is tried again.
    pub(super) fn retry_pause(&self, id: TaskId) -> Option<Duration> {
        let until = self.ledger.get(id)?.retry_at?;
        Some(until.saturating_sub(self.now.at)).filter(|pause| !pause.is_zero())
    }

    /// Whether the agent's own state allows one more worker.
    fn may_spawn(&self, agent: &AgentSettings) -> bool {
        let is_available = self
            .health
            .get(&agent.name)
            .is_none_or(|health| health.availability(self.now.at, &self.settings.workers) == Availability::Available);
        let of_agent = self.pool.count(|worker| worker.agent.name == agent.name);
        is_available && agent.max_workers.is_none_or(|max| of_agent < max)
    }

    /// Whether the task left the queue. In a full pool the coldest idle worker makes room.
    fn start_on_new(&mut self, id: TaskId, agent: Arc<AgentSettings>, promised: &mut Promised) -> bool {
        if self.pool.len() < self.settings.workers.max {
            return self.spawn_for(id, agent);
        }
        if !promised.take_ending()
            && let Some(coldest) = self.pool.coldest_idle(None)
        {
            self.shut_down(coldest);
        }
        false
    }

    /// INVARIANT: what waits in the queue is live in the ledger. Were it broken, the entry must not block the others.
    fn queue_lost(&mut self, id: TaskId) -> bool {
        debug_assert!(false, "{id} waits but is not in the ledger");
        Priority::ALL.into_iter().any(|priority| self.queue.remove(priority, id))
    }

    /// What the memory level lets start: no skippable heartbeats from warning, only critical tasks from critical.
    fn may_start_now(&mut self, id: TaskId) -> bool {
        let is_held = self.ledger.get(id).is_none_or(|task| self.is_held_by_level(task));
        if is_held {
            self.note_held(id);
        }
        !is_held
    }

    pub(super) fn is_held_by_level(&self, task: &Task) -> bool {
        let level = self.governor.level();
        if level == Level::Normal || !self.governs_memory() || !self.is_governed(task.id) {
            return false;
        }
        if task.is_skippable_beat() {
            return true;
        }
        let is_held = level >= Level::Critical && task.spec.priority != Priority::Critical;
        is_held && !(level < Level::Reject && self.is_forced_beat(task)) && !self.may_start_alone(task)
    }

    /// Whether it is the beat that runs after `max_skips`. Of a schedule only one beat waits.
    fn is_forced_beat(&self, task: &Task) -> bool {
        let is_its_own = |schedule: &&Schedule| Some(&schedule.settings.name) == task.spec.schedule.as_ref();
        self.schedules.iter().find(is_its_own).is_some_and(Schedule::is_forced)
    }

    /// With nothing of ours left that could give memory back, waiting for that would be for ever: tasks start one at a
    /// time. Not while memory is given time to fall, and not on a worker that still holds what its last task took.
    fn may_start_alone(&self, task: &Task) -> bool {
        let agent = self.settings.agents.get(&task.spec.agent);
        let idle = agent.and_then(|agent| self.pool.warmest_idle(agent));
        let fresh = idle.filter(|id| self.pool.get(*id).is_some_and(|worker| worker.tasks_done == 0));
        !self.is_settling() && self.is_alone(fresh)
    }

    /// A queued heartbeat waits until memory is there again; said once. Of the others the crossing itself has told.
    fn note_held(&mut self, id: TaskId) {
        let incident = self.governor.incident();
        let Some(task) = self.ledger.get(id).filter(|task| task.is_skippable_beat()) else { return };
        let (schedule, agent) = (task.spec.schedule.clone(), task.spec.agent.clone());
        let text = "memory is short; it waits until that is over";
        if self.is_first_word(id) {
            self.notice(Notice::HeartbeatSkipped { schedule, task: Some(id), agent, text, incident });
        }
    }

    fn note_shortage(&mut self, id: TaskId, shortage: Shortage) {
        let incident = self.governor.incident();
        let Some(agent) = self.ledger.get(id).map(|task| task.spec.agent.clone()) else { return };
        if self.is_first_word(id) {
            self.notice(Notice::TaskWaiting { task: id, agent, text: shortage.to_string(), incident });
        }
    }

    /// That a task waits for memory is said once each time it waits.
    fn is_first_word(&mut self, id: TaskId) -> bool {
        self.ledger.get_mut(id).is_some_and(|task| !std::mem::replace(&mut task.is_wait_told, true))
    }

    /// Headroom: idle workers make room for a task that does not fit, and what comes after it in the order must not
    /// take the memory it waits for.
    fn must_wait_for_memory(
        &mut self,
        id: TaskId,
        agent: &AgentSettings,
        idle: Option<WorkerId>,
        promised: &mut Promised,
    ) -> bool {
        if !self.governs_memory() || !self.is_governed(id) {
            return false;
        }
        if promised.is_out_of_memory {
            return true;
        }
        let shortage = self.ledger.get(id).and_then(|task| self.shortage(task, agent, idle));
        let Some(shortage) = shortage.filter(|_| !self.is_alone(idle)) else { return false };
        self.note_shortage(id, shortage);
        promised.is_out_of_memory = true;
        if promised.ending == 0
            && let Some(coldest) = self.pool.coldest_idle(idle)
        {
            self.retire_for_memory(coldest);
            promised.ending += 1;
        }
        true
    }

    /// Whether there is no worker process, but for this one.
    pub(super) fn is_alone(&self, idle: Option<WorkerId>) -> bool {
        self.pool.iter().all(|(id, _)| Some(id) == idle)
    }

    fn breaker_forbids(&self, id: TaskId, agent: &AgentSettings) -> bool {
        self.breaker_wait(id, agent).is_some()
    }

    /// The breaker that does not let this task start now, and for how long.
    pub(super) fn breaker_wait(&self, id: TaskId, agent: &AgentSettings) -> Option<(Arc<str>, Duration)> {
        let name = self.guard(id, agent)?;
        let retry_after = self.breakers.get(name)?.refusal(self.now.at)?;
        Some((name.clone(), retry_after))
    }

    /// The breaker that guards this task.
    fn guard<'a>(&self, id: TaskId, agent: &'a AgentSettings) -> Option<&'a Arc<str>> {
        agent.breaker.as_ref().filter(|_| self.settings.features.circuit_breakers && self.is_governed(id))
    }

    /// Whether the task left the queue: a oneshot worker starts with it, a persistent one has to be ready first.
    fn spawn_for(&mut self, id: TaskId, agent: Arc<AgentSettings>) -> bool {
        let deadline = self.now.at + self.settings.workers.spawn_timeout;
        let worker = Worker {
            agent: agent.clone(),
            state: WorkerState::Starting { deadline },
            pid: None,
            started_ms: self.now.wall_ms,
            tasks_done: 0,
            can_checkpoint: false,
            retiring: false,
            heap: None,
            rss_bytes: None,
            peak_rss_bytes: 0,
            is_over_soft_limit: false,
        };
        let worker = self.pool.add(worker);
        match agent.mode {
            AgentMode::Oneshot => {
                let task = self.begin(id, worker).map(Box::new);
                self.order(worker, Order::Spawn { agent, task });
                true
            }
            AgentMode::Persistent => {
                self.order(worker, Order::Spawn { agent, task: None });
                false
            }
        }
    }

    fn start_on(&mut self, id: TaskId, worker: WorkerId) {
        if let Some(assignment) = self.begin(id, worker) {
            self.order(worker, Order::Assign(Box::new(assignment)));
        }
    }

    fn begin(&mut self, id: TaskId, worker: WorkerId) -> Option<Assignment> {
        let permit = self.permit_for(id, worker);
        let now = self.now;
        let task = self.ledger.get_mut(id)?;
        self.queue.remove(task.spec.priority, id);
        task.was_parked = task.phase == Phase::Preempted;
        task.phase = Phase::Running { worker, since: now.at };
        task.started_ms = task.started_ms.or(Some(now.wall_ms));
        task.permit = permit;
        task.progress = None;
        task.is_wait_told = false;
        task.retry_at = None;
        let assignment = Assignment {
            task: id,
            spec: task.spec.clone(),
            attempt: task.attempt(),
            has_checkpoint: task.has_checkpoint,
            worker,
        };
        let waited = now.at.saturating_sub(task.waiting_since);
        let deadline = now.at + task.spec.timeout;
        if let Some(worker) = self.pool.get_mut(worker) {
            worker.state = WorkerState::Busy { task: id, deadline, stage: Stage::Working };
        }
        self.actions.push(Action::Record(Record::Started { task: id, started_ms: now.wall_ms }));
        self.notice(Notice::TaskStarted {
            task: id,
            worker,
            agent: assignment.spec.agent.clone(),
            attempt: assignment.attempt,
            waited,
            request: assignment.spec.request_id.clone(),
        });
        Some(assignment)
    }

    /// Takes a start back that was not carried out: the task waits, first of its level, and no attempt is used up.
    pub(super) fn unstart(&mut self, id: TaskId, worker: WorkerId) {
        let Some(task) = self.ledger.get_mut(id) else { return };
        if !matches!(task.phase, Phase::Running { worker: its, .. } if its == worker) {
            return;
        }
        if task.is_cancelled {
            return self.unstart_cancelled(id, worker);
        }
        task.phase = if task.was_parked { Phase::Preempted } else { Phase::Queued };
        let permit = task.permit.take();
        self.settle_permit(permit, &Outcome::Cancelled);
        self.put_back(id);
        self.free_unstarted(worker);
    }

    fn unstart_cancelled(&mut self, id: TaskId, worker: WorkerId) {
        self.finish(id, Outcome::Cancelled, None);
        self.free_unstarted(worker);
    }

    fn free_unstarted(&mut self, worker: WorkerId) {
        match self.pool.get_mut(worker) {
            Some(process) if process.agent.mode == AgentMode::Persistent => {
                process.state = WorkerState::Idle { since: self.now.at };
            }
            Some(_) => drop(self.pool.remove(worker)),
            None => {}
        }
    }

    fn permit_for(&mut self, id: TaskId, worker: WorkerId) -> Option<HeldPermit> {
        let agent = self.pool.get(worker)?.agent.clone();
        let name = self.guard(id, &agent)?;
        let permit = self.next_permit();
        let breaker = self.breakers.get_mut(name)?;
        breaker.acquire(self.now.at, permit, Holder::Task).ok()?;
        Some(HeldPermit { breaker: name.clone(), permit })
    }
}
