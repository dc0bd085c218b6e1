//! A world of scripted workers on virtual time. Workers do at once what they are ordered to, unless told otherwise;
//! how their tasks go is what a test says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::core::Core;
use crate::core::event::{Action, Answer, BreakerAnswer, BreakerRequest, CancelAnswer, Event, Now, Submission};
use crate::core::governor::MemorySample;
use crate::core::ids::{PermitId, TaskId, Ticket, WorkerId};
use crate::core::ledger::FinishedTask;
use crate::core::notice::Notice;
use crate::core::order::{Exit, Order, Report, WorkerReport};
use crate::core::refusal::Refusal;
use crate::core::settings::{
    AgentMode, AgentSettings, BreakerSettings, Features, MemorySettings, Mode, QueueSettings, RetentionSettings,
    Runtime, ScheduleSettings, Settings, WorkerSettings,
};
use crate::core::task::{
    Failure, FailureCode, Outcome, Payload, PayloadKind, Priority, ResultPlace, ResultRef, TaskSpec, TaskState,
};

pub const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Two persistent agents, `calm` and `warm`, a oneshot one, `once`, and `guarded`, a oneshot bound to breaker `net`.
pub fn settings() -> Settings {
    let agents = [
        agent("calm", AgentMode::Persistent),
        agent("warm", AgentMode::Persistent),
        agent("once", AgentMode::Oneshot),
        AgentSettings { breaker: Some(Arc::from("net")), ..agent("guarded", AgentMode::Oneshot) },
    ];
    Settings {
        queue: QueueSettings { max_depth: 5, priority_limits: [5; Priority::COUNT] },
        workers: WorkerSettings {
            max: 2,
            idle_timeout: s(300),
            max_task_timeout: s(1800),
            spawn_timeout: s(30),
            recycle_after_tasks: 0,
            max_restarts_per_hour: 10,
            restart_backoff: [1, 2, 4, 8].map(s).to_vec(),
            cancel_grace: s(5),
            checkpoint_timeout: s(5),
        },
        memory: MemorySettings {
            mode: Mode::Hard,
            limit_bytes: 1000,
            min_free_bytes: 10,
            thresholds: [0.70, 0.85, 0.90, 0.95],
            hysteresis: 0.10,
            settle: s(2),
        },
        agents: agents.into_iter().map(|agent| (agent.name.clone(), Arc::new(agent))).collect(),
        breakers: BTreeMap::from([(Arc::from("net"), breaker())]),
        schedules: Vec::new(),
        features: Features {
            memory_governance: true,
            worker_pool: true,
            circuit_breakers: true,
            rollout_percent: 100,
            gc_on_pressure: true,
        },
        retention: RetentionSettings { age: s(36_000), result_bytes: 1 << 28 },
    }
}

pub fn agent(name: &str, mode: AgentMode) -> AgentSettings {
    AgentSettings {
        name: Arc::from(name),
        command: vec![name.to_string()],
        mode,
        runtime: Runtime::Generic,
        cwd: None,
        user: None,
        env: BTreeMap::new(),
        env_pass: Vec::new(),
        soft_limit_bytes: 300,
        hard_limit_bytes: 500,
        task_timeout: s(600),
        max_retries: 0,
        preemptible: true,
        breaker: None,
        max_workers: None,
        max_oom_kills: 2,
        oom_score_adj: 500,
        data_limit_bytes: None,
        has_kernel_limit: true,
    }
}

pub fn breaker() -> BreakerSettings {
    BreakerSettings { failure_threshold: 3, window: s(60), success_threshold: 2, backoff: [1, 2, 4, 8].map(s).to_vec() }
}

pub fn schedule(name: &str, every: Duration) -> ScheduleSettings {
    ScheduleSettings {
        name: Arc::from(name),
        agent: Arc::from("once"),
        every,
        priority: Priority::Heartbeat,
        skippable: true,
        max_skips: 3,
        payload: Arc::from(*b"{}"),
    }
}

pub fn task(agent: &str) -> TaskSpec {
    TaskSpec {
        agent: Arc::from(agent),
        priority: Priority::Normal,
        payload: Payload::Inline(Arc::from(*b"{}")),
        payload_kind: PayloadKind::Json,
        timeout: s(600),
        max_retries: 0,
        preemptible: true,
        skippable: false,
        idempotency_key: None,
        request_id: Arc::from("r"),
        schedule: None,
    }
}

pub fn at(priority: Priority) -> TaskSpec {
    TaskSpec { priority, ..task("once") }
}

/// A client's heartbeat, skippable as they are by default.
pub fn heartbeat() -> TaskSpec {
    TaskSpec { skippable: true, ..at(Priority::Heartbeat) }
}

pub fn retried(agent: &str, max_retries: u32) -> TaskSpec {
    TaskSpec { max_retries, ..task(agent) }
}

/// A reading at which the level is the one a usage of so many of the 1000 bytes stands for.
pub fn memory(usage_bytes: u64) -> MemorySample {
    MemorySample {
        usage_bytes,
        total_bytes: 10_000,
        available_bytes: 5_000,
        budget_counts: true,
        ..MemorySample::default()
    }
}

pub fn holding(sample: MemorySample, workers: &[(u64, u64)]) -> MemorySample {
    MemorySample { workers: workers.iter().map(|(worker, rss)| (WorkerId(*worker), *rss)).collect(), ..sample }
}

pub fn result() -> ResultRef {
    ResultRef { place: ResultPlace::Inline(Arc::from(*b"1")), is_json: true }
}

pub fn status(status: i32) -> Exit {
    Exit { status: Some(status), result: (status == 0).then(result), ..Exit::default() }
}

pub fn signal(signal: i32) -> Exit {
    Exit { signal: Some(signal), ..Exit::default() }
}

pub struct Sim {
    pub core: Core,
    pub now: Duration,
    /// Persistent workers do not get ready by themselves.
    pub holds_ready: bool,
    /// Workers do not end when told to, nor when killed.
    pub holds_exit: bool,
    /// What the core has said since the last [`Sim::take`], in its order.
    said: Vec<Action>,
    /// Orders nobody has followed yet.
    orders: Vec<(WorkerId, Order)>,
    last_number: u64,
}

impl Sim {
    pub fn new() -> Sim {
        Sim::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Sim {
        let mut settings = settings();
        change(&mut settings);
        Sim {
            core: Core::new(settings, clock(Duration::ZERO)),
            now: Duration::ZERO,
            holds_ready: false,
            holds_exit: false,
            said: Vec::new(),
            orders: Vec::new(),
            last_number: 0,
        }
    }

    /// One event, and whatever willing workers do because of it.
    pub fn feed(&mut self, event: Event) {
        self.hear(event);
        let mut followed = 0;
        while let Some((worker, order)) = self.next_followed() {
            followed += 1;
            assert!(followed < 1000, "there is no end to the orders: {order:?} to {worker}");
            match order {
                Order::Spawn { agent, .. } => {
                    self.hear_of(worker, Report::Spawned { pid: 100 + worker.0 as u32 });
                    if agent.mode == AgentMode::Persistent {
                        self.hear_of(worker, Report::Ready { can_checkpoint: true, can_cancel: true });
                    }
                }
                Order::Shutdown => self.hear_of(worker, Report::Exited(Box::new(status(0)))),
                Order::Kill => self.hear_of(worker, Report::Exited(Box::new(signal(9)))),
                Order::Assign(_)
                | Order::Cancel { .. }
                | Order::Preempt { .. }
                | Order::CollectGarbage
                | Order::BreakerState { .. } => {}
            }
        }
    }

    fn next_followed(&mut self) -> Option<(WorkerId, Order)> {
        let (holds_ready, holds_exit) = (self.holds_ready, self.holds_exit);
        let is_followed = |order: &Order| match order {
            Order::Spawn { agent, .. } => !(holds_ready && agent.mode == AgentMode::Persistent),
            Order::Shutdown | Order::Kill => !holds_exit,
            Order::Assign(_)
            | Order::Cancel { .. }
            | Order::Preempt { .. }
            | Order::CollectGarbage
            | Order::BreakerState { .. } => true,
        };
        let index = self.orders.iter().position(|(_, order)| is_followed(order))?;
        Some(self.orders.remove(index))
    }

    fn hear_of(&mut self, worker: WorkerId, report: Report) {
        // What a worker was ordered before its end concerns nobody any more.
        if matches!(report, Report::Exited(_) | Report::SpawnFailed { .. }) {
            self.orders.retain(|(other, _)| *other != worker);
        }
        self.hear(Event::Worker(WorkerReport { worker, report }));
    }

    fn hear(&mut self, event: Event) {
        let actions = self.core.handle(clock(self.now), event);
        if let Some(deadline) = self.core.next_deadline() {
            assert!(deadline > self.now, "the core wants to be asked at {deadline:?}, and it is {:?}", self.now);
        }
        for action in &actions {
            if let Action::Worker(worker, order) = action {
                self.orders.push((*worker, order.clone()));
            }
        }
        self.said.extend(actions);
    }

    pub fn report(&mut self, worker: WorkerId, report: Report) {
        if matches!(report, Report::Exited(_) | Report::SpawnFailed { .. }) {
            self.orders.retain(|(other, _)| *other != worker);
        }
        self.feed(Event::Worker(WorkerReport { worker, report }));
    }

    /// Lets time pass as the daemon does: from deadline to deadline.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.core.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = deadline;
            self.feed(Event::DeadlinePassed);
        }
        self.now = end;
        self.feed(Event::DeadlinePassed);
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub fn try_submit(&mut self, spec: TaskSpec) -> Result<Submission, Refusal> {
        let number = self.number();
        let (ticket, task) = (Ticket(number), TaskId(number));
        self.feed(Event::Submitted { ticket, task, spec: Box::new(spec) });
        match self.answer(ticket) {
            Answer::Submitted(answer) => answer,
            other => panic!("a submission was answered by {other:?}"),
        }
    }

    pub fn submit(&mut self, spec: TaskSpec) -> TaskId {
        self.try_submit(spec).expect("the submission is taken").task
    }

    pub fn refused(&mut self, spec: TaskSpec) -> Refusal {
        self.try_submit(spec).expect_err("the submission is refused")
    }

    pub fn cancel(&mut self, task: TaskId) -> CancelAnswer {
        let ticket = Ticket(self.number());
        self.feed(Event::CancelRequested { ticket, task });
        match self.answer(ticket) {
            Answer::Cancelled(answer) => answer,
            other => panic!("a cancel was answered by {other:?}"),
        }
    }

    pub fn breaker(&mut self, name: &str, request: BreakerRequest) -> BreakerAnswer {
        let ticket = Ticket(self.number());
        self.feed(Event::Breaker { ticket, name: Arc::from(name), request });
        match self.answer(ticket) {
            Answer::Breaker(answer) => answer,
            other => panic!("a breaker request was answered by {other:?}"),
        }
    }

    pub fn permit(&mut self, name: &str) -> PermitId {
        match self.breaker(name, BreakerRequest::Acquire) {
            BreakerAnswer::Permit(permit) => permit,
            other => panic!("no permit but {other:?}"),
        }
    }

    fn answer(&self, ticket: Ticket) -> Answer {
        let mut answers = self.said.iter().filter_map(|action| match action {
            Action::Answer(to, answer) if *to == ticket => Some(answer.clone()),
            Action::Answer(..)
            | Action::Worker(..)
            | Action::Record(_)
            | Action::Finished(_)
            | Action::Notice(_)
            | Action::Beat(_)
            | Action::Drained => None,
        });
        let answer = answers.next().expect("an answer");
        assert!(answers.next().is_none(), "{ticket:?} was answered twice");
        answer
    }

    pub fn memory_at(&mut self, usage_bytes: u64) {
        self.feed(Event::MemorySampled(Box::new(memory(usage_bytes))));
    }

    /// A reading with what each worker holds.
    pub fn read(&mut self, usage_bytes: u64, workers: &[(u64, u64)]) {
        self.feed(Event::MemorySampled(Box::new(holding(memory(usage_bytes), workers))));
    }

    /// The same reading until shedding has climbed or come down to it.
    pub fn stay(&mut self, usage_bytes: u64, workers: &[(u64, u64)]) {
        for _ in 0..4 {
            self.read(usage_bytes, workers);
        }
    }

    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.core.settings().clone();
        // As from a file: equal agents are other allocations.
        for agent in settings.agents.values_mut() {
            *agent = Arc::new(AgentSettings::clone(agent));
        }
        change(&mut settings);
        self.feed(Event::Reconfigured(Box::new(settings)));
    }

    pub fn drain(&mut self, timeout: Duration) {
        self.feed(Event::DrainRequested { timeout });
    }

    pub fn complete(&mut self, task: TaskId) {
        let worker = self.worker(task);
        match self.core.pool.get(worker).expect("its worker lives").agent.mode {
            AgentMode::Oneshot => self.report(worker, Report::Exited(Box::new(status(0)))),
            AgentMode::Persistent => self.report(worker, Report::Completed { task, result: result() }),
        }
    }

    pub fn fail(&mut self, task: TaskId, retryable: bool) {
        let worker = self.worker(task);
        self.report(worker, Report::Failed { task, error: "no luck".to_string(), stack: None, retryable });
    }

    pub fn preempted(&mut self, task: TaskId, checkpoint: bool) {
        let worker = self.worker(task);
        self.report(worker, Report::Preempted { task, checkpoint });
    }

    pub fn exit(&mut self, worker: WorkerId, exit: Exit) {
        self.report(worker, Report::Exited(Box::new(exit)));
    }

    /// Its worker ends under it.
    pub fn exit_of(&mut self, task: TaskId, exit: Exit) {
        let worker = self.worker(task);
        self.exit(worker, exit);
    }

    pub fn ready(&mut self, worker: WorkerId) {
        self.orders.retain(|(other, order)| *other != worker || !matches!(order, Order::Spawn { .. }));
        self.report(worker, Report::Ready { can_checkpoint: true, can_cancel: true });
    }

    pub fn worker(&self, task: TaskId) -> WorkerId {
        self.core.task(task).and_then(|task| task.worker).expect("the task runs")
    }

    pub fn state(&self, task: TaskId) -> TaskState {
        self.core.task(task).expect("the task is known").state
    }

    pub fn states<const N: usize>(&self, tasks: [TaskId; N]) -> [TaskState; N] {
        tasks.map(|task| self.state(task))
    }

    pub fn finished(&self, task: TaskId) -> Arc<FinishedTask> {
        self.core.task(task).and_then(|task| task.finished).expect("the task has ended")
    }

    pub fn failure(&self, task: TaskId) -> Failure {
        match &self.finished(task).outcome {
            Outcome::Failed(failure) => Failure::clone(failure),
            other => panic!("{task} did not fail: {other:?}"),
        }
    }

    pub fn code(&self, task: TaskId) -> FailureCode {
        self.failure(task).code
    }

    pub fn running(&self) -> Vec<TaskId> {
        self.core.ledger.live().filter(|task| task.state() == TaskState::Running).map(|task| task.id).collect()
    }

    /// Every process, with what it is doing.
    pub fn processes(&self) -> Vec<(u64, &'static str)> {
        self.core.pool.iter().map(|(id, worker)| (id.0, worker.state_name())).collect()
    }

    /// What was said since the last call.
    pub fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.said)
    }

    pub fn orders(&mut self) -> Vec<(u64, Order)> {
        self.take()
            .into_iter()
            .filter_map(|action| match action {
                Action::Worker(worker, order) => Some((worker.0, order)),
                Action::Answer(..)
                | Action::Record(_)
                | Action::Finished(_)
                | Action::Notice(_)
                | Action::Beat(_)
                | Action::Drained => None,
            })
            .collect()
    }

    pub fn notices(&mut self) -> Vec<Notice> {
        self.take()
            .into_iter()
            .filter_map(|action| match action {
                Action::Notice(notice) => Some(notice),
                Action::Answer(..)
                | Action::Record(_)
                | Action::Finished(_)
                | Action::Worker(..)
                | Action::Beat(_)
                | Action::Drained => None,
            })
            .collect()
    }

    /// The names of what was said for the log since the last call.
    pub fn names(&mut self) -> Vec<&'static str> {
        self.notices().iter().map(Notice::name).collect()
    }
}

pub fn clock(at: Duration) -> Now {
    Now { at, wall_ms: 1_700_000_000_000 + at.as_millis() as u64 }
}
