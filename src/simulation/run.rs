//! One simulation from the first submission to the last end: clients, daemon, workers and monitor on one virtual clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::agenda::Agenda;
use super::desk::{Answer, Caller, Desk, Said};
use super::dice::Dice;
use super::figures::{Counts, Figures, Point};
use super::fleet::{Fleet, Moment, seconds};
use super::load::Load;
use super::spool::Spool;
use crate::core::event::{Event, Now, Record};
use crate::core::governor::{self, Level, MemorySample};
use crate::core::ids::{AgentName, TaskId, WorkerId};
use crate::core::ledger::FinishedTask;
use crate::core::notice::Notice;
use crate::core::order::WorkerReport;
use crate::core::refusal::Refusal;
use crate::core::settings::Settings;
use crate::core::task::{Outcome, Payload, PayloadKind, Priority, TaskSpec};

/// What is read of memory, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Monitor {
    /// The longest time between two readings.
    pub interval: Duration,
    pub watches_budget: bool,
    pub watches_host: bool,
}

/// What has not ended this long after the last submission is not waited for.
pub const PATIENCE: Duration = Duration::from_secs(3600);

/// The shortest time between two readings, and the longest while memory is short: as the daemon's own monitor.
const SHORTEST: Duration = Duration::from_millis(20);
const RAISED: Duration = Duration::from_millis(250);

/// Points of the series at most.
const POINTS: u32 = 3600;

/// Something that is to happen.
#[derive(Debug, Clone)]
pub enum Due {
    Phase(usize),
    Submission { phase: usize },
    Again(Box<Attempt>),
    Moment(WorkerId, Moment),
    Reading { number: u64 },
    Point,
}

/// A submission that may have been refused before.
#[derive(Debug, Clone)]
pub struct Attempt {
    phase: usize,
    agent: AgentName,
    priority: Priority,
    retries_left: u32,
}

struct Run<'a> {
    load: &'a Load,
    monitor: Monitor,
    now: Duration,
    agenda: Agenda<Due>,
    desk: Desk,
    fleet: Fleet,
    dice: Dice,
    figures: Figures,
    outside_bytes: u64,
    /// The reading that is to come; another one has been overtaken.
    reading: (u64, Duration),
    /// Of submitters, not of schedules; with the phase each came in and when it was accepted.
    open: BTreeMap<TaskId, (usize, Duration)>,
    started: BTreeSet<TaskId>,
    asking: Option<Box<Attempt>>,
    callers: u64,
    again: u64,
    /// The most within this step.
    usage_in_step: u64,
    pressure_in_step: f64,
    level: (Level, Duration),
}

/// The same settings, load and seed give the same figures.
///
/// # Panics
///
/// If an agent that has tasks or a schedule has no entry in `load.agents`.
pub fn simulate(settings: Settings, monitor: Monitor, load: &Load, seed: u64) -> Figures {
    let mut dice = Dice::new(seed);
    let fleet = Fleet::new(load.agents.clone(), dice.split());
    let mut agenda = Agenda::default();
    let mut begins = Duration::ZERO;
    for (index, phase) in load.phases.iter().enumerate() {
        agenda.put(begins, Due::Phase(index));
        begins += phase.duration;
    }
    let step = Duration::from_secs((load.duration().as_secs() as u32).div_ceil(POINTS).max(1).into());
    agenda.put(Duration::ZERO, Due::Reading { number: 0 });
    agenda.put(step, Due::Point);
    let agents = load.agents.keys().map(|agent| (agent.clone(), Counts::default())).collect();
    let phases = vec![Counts::default(); load.phases.len()];
    let mut run = Run {
        load,
        monitor,
        now: Duration::ZERO,
        agenda,
        desk: Desk::open(settings, clock(Duration::ZERO), Spool::default()),
        fleet,
        dice,
        figures: Figures { agents, phases, step, ..Figures::default() },
        outside_bytes: 0,
        reading: (0, Duration::ZERO),
        open: BTreeMap::new(),
        started: BTreeSet::new(),
        asking: None,
        callers: 0,
        again: 0,
        usage_in_step: 0,
        pressure_in_step: 0.0,
        level: (Level::Normal, Duration::ZERO),
    };
    run.listen();
    run.go();
    run.figures
}

impl Run<'_> {
    fn go(&mut self) {
        let last_submission = self.load.duration();
        while let Some(at) = self.next_at() {
            let is_over = self.open.is_empty() && self.again == 0;
            if (self.now >= last_submission && is_over) || at > last_submission + PATIENCE {
                break;
            }
            self.now = at;
            self.note_usage();
            if self.agenda.next_at() == Some(at) {
                if let Some((_, due)) = self.agenda.take() {
                    self.pass(due);
                }
            } else {
                self.desk.wake(self.clock());
            }
            self.listen();
            self.pace();
        }
        self.finish();
    }

    fn next_at(&self) -> Option<Duration> {
        let wake = self.desk.next_wake().map(|wake| wake.max(self.now));
        [self.agenda.next_at(), wake].into_iter().flatten().min()
    }

    fn clock(&self) -> Now {
        clock(self.now)
    }

    fn pass(&mut self, due: Due) {
        match due {
            Due::Phase(index) => self.begin_phase(index),
            Due::Submission { phase } => self.submission(phase),
            Due::Again(attempt) => {
                self.again -= 1;
                self.submit(attempt);
            }
            Due::Moment(worker, moment) => {
                if let Some(report) = self.fleet.live(self.now, worker, moment) {
                    self.desk.hear(self.clock(), Event::Worker(WorkerReport { worker, report }));
                }
            }
            Due::Reading { number } if number == self.reading.0 => self.read(),
            Due::Reading { .. } => {}
            Due::Point => self.point(),
        }
    }

    fn begin_phase(&mut self, index: usize) {
        let phase = &self.load.phases[index];
        self.outside_bytes = phase.outside_bytes;
        for _ in 0..phase.submitters {
            // Why: real ones do not begin all in the same moment.
            let first = self.now + phase.interval.mul_f64(self.dice.share());
            if first < self.now + phase.duration {
                self.agenda.put(first, Due::Submission { phase: index });
            }
        }
    }

    fn submission(&mut self, index: usize) {
        let phase = &self.load.phases[index];
        let ends: Duration = self.load.phases[..=index].iter().map(|phase| phase.duration).sum();
        let next = self.now + phase.interval;
        if next < ends {
            self.agenda.put(next, Due::Submission { phase: index });
        }
        let shares: Vec<u64> = self.load.agents.values().map(|work| work.share).collect();
        let chosen = self.dice.weighted(&shares);
        let Some(agent) = self.load.agents.keys().nth(chosen).cloned() else { return };
        let priority = Priority::ALL[self.dice.weighted(&phase.priorities)];
        self.count(index, &agent, |counts| &mut counts.submitted);
        self.submit(Box::new(Attempt { phase: index, agent, priority, retries_left: phase.retries }));
    }

    fn submit(&mut self, attempt: Box<Attempt>) {
        let Attempt { agent, priority, .. } = &*attempt;
        let settings = self.desk.core.settings().agents.get(agent);
        let spec = TaskSpec {
            agent: agent.clone(),
            priority: *priority,
            payload: Payload::Inline(Arc::from(*b"{}")),
            payload_kind: PayloadKind::Json,
            timeout: settings.map_or(Duration::ZERO, |agent| agent.task_timeout),
            max_retries: self.load.agents[agent].max_retries.unwrap_or(settings.map_or(0, |agent| agent.max_retries)),
            preemptible: settings.is_none_or(|agent| agent.preemptible),
            skippable: *priority == Priority::Heartbeat,
            idempotency_key: None,
            request_id: Arc::from("simulated"),
            schedule: None,
        };
        self.callers += 1;
        self.asking = Some(attempt);
        let (now, caller) = (self.clock(), Caller(self.callers));
        self.desk.submit(now, caller, spec, Duration::ZERO);
    }

    /// Follows what was said until there is nothing more.
    fn listen(&mut self) {
        // A disk that is always at once done.
        self.desk.sync(true);
        for said in self.desk.take() {
            match said {
                Said::Order(worker, order) => {
                    if matches!(order, crate::core::order::Order::Spawn { .. }) {
                        self.figures.worker_starts += 1;
                    }
                    self.fleet.order(self.now, worker, order, &mut self.agenda);
                }
                Said::Record(record) => self.recorded(&record),
                Said::Reply(_, answer) => self.replied(answer),
                Said::Finished(task) => self.finished(&task),
                Said::Notice(notice) => self.noticed(&notice),
                Said::Drained => {}
            }
        }
        let level = self.desk.core.level();
        if level != self.level.0 {
            self.spend_time_at_level();
            self.level.0 = level;
        }
    }

    fn spend_time_at_level(&mut self) {
        let (level, since) = self.level;
        self.figures.levels[level as usize] += self.now - since;
        self.level.1 = self.now;
    }

    fn recorded(&mut self, record: &Record) {
        let Record::Accepted { task, spec, .. } = record else { return };
        match (&spec.schedule, &self.asking) {
            (None, Some(attempt)) => {
                let (phase, agent) = (attempt.phase, attempt.agent.clone());
                self.open.insert(*task, (phase, self.now));
                self.count(phase, &agent, |counts| &mut counts.accepted);
            }
            (Some(_), _) | (None, None) => self.agent(&spec.agent).beats += 1,
        }
    }

    fn replied(&mut self, answer: Answer) {
        let Some(attempt) = self.asking.take() else { return };
        match answer {
            Answer::Refused(refusal) => self.refused(attempt, &refusal),
            Answer::Submitted { .. }
            | Answer::StorageFull
            | Answer::Forgotten(_)
            | Answer::Cancelled(..)
            | Answer::Breaker(_) => {}
        }
    }

    fn refused(&mut self, mut attempt: Box<Attempt>, refusal: &Refusal) {
        *self.figures.refusals.entry(refusal.code()).or_default() += 1;
        match refusal.retry_after() {
            Some(retry_after) if attempt.retries_left > 0 => {
                attempt.retries_left -= 1;
                self.again += 1;
                self.agenda.put(self.now + retry_after, Due::Again(attempt));
            }
            Some(_) | None => {
                let agent = attempt.agent.clone();
                self.count(attempt.phase, &agent, |counts| &mut counts.refused);
            }
        }
    }

    fn finished(&mut self, task: &FinishedTask) {
        self.fleet.forget(task.id);
        self.started.remove(&task.id);
        let Some((phase, accepted)) = self.open.remove(&task.id) else { return };
        let agent = &task.spec.agent;
        match &task.outcome {
            Outcome::Completed(_) => {
                self.count(phase, agent, |counts| &mut counts.completed);
                self.figures.runs.note(task.run_time.unwrap_or_default());
                self.figures.totals.note(self.now - accepted);
            }
            Outcome::Failed(failure) => {
                *self.figures.failures.entry(failure.code.name()).or_default() += 1;
                self.count(phase, agent, |counts| &mut counts.failed);
            }
            Outcome::Evicted => self.count(phase, agent, |counts| &mut counts.evicted),
            Outcome::Cancelled | Outcome::Skipped => {}
        }
    }

    fn noticed(&mut self, notice: &Notice) {
        match notice {
            Notice::TaskStarted { task, waited, .. } => {
                if self.started.insert(*task) && self.open.contains_key(task) {
                    self.figures.waits.note(*waited);
                }
            }
            Notice::TaskPreempted { task, agent, .. } => self.count_of(*task, agent, |counts| &mut counts.preempted),
            Notice::TaskRetried { task, agent, .. } => self.count_of(*task, agent, |counts| &mut counts.retried),
            Notice::TaskKilled { task, agent, code, .. } => {
                *self.figures.kills.entry(code.name()).or_default() += 1;
                self.count_of(*task, agent, |counts| &mut counts.killed);
            }
            Notice::HeartbeatSkipped { agent, task: None, .. } => self.agent(agent).skipped += 1,
            Notice::MemoryAction { action, .. } => *self.figures.actions.entry(action).or_default() += 1,
            Notice::MemoryLevel { incident, .. } => self.figures.incidents = self.figures.incidents.max(incident.0),
            Notice::TaskAccepted { .. }
            | Notice::TaskRejected { .. }
            | Notice::TaskWaiting { .. }
            | Notice::TaskProgress { .. }
            | Notice::TaskCompleted { .. }
            | Notice::TaskFailed { .. }
            | Notice::TaskCancelled { .. }
            | Notice::TaskEvicted { .. }
            | Notice::HeartbeatSkipped { .. }
            | Notice::WorkerSpawned { .. }
            | Notice::WorkerExited { .. }
            | Notice::WorkerKilled { .. }
            | Notice::AgentUnavailable { .. }
            | Notice::Circuit { .. }
            | Notice::WorkerSoftLimit { .. }
            | Notice::StorageFull { .. }
            | Notice::StorageCleared { .. }
            | Notice::ConfigReloaded { .. }
            | Notice::ConfigRejected { .. } => {}
        }
    }

    fn agent(&mut self, agent: &AgentName) -> &mut Counts {
        self.figures.agents.entry(agent.clone()).or_default()
    }

    fn count(&mut self, phase: usize, agent: &AgentName, which: impl Fn(&mut Counts) -> &mut u64) {
        *which(self.agent(agent)) += 1;
        if let Some(counts) = self.figures.phases.get_mut(phase) {
            *which(counts) += 1;
        }
    }

    /// As [`Run::count`], in the phase the task came in.
    fn count_of(&mut self, task: TaskId, agent: &AgentName, which: impl Fn(&mut Counts) -> &mut u64) {
        match self.open.get(&task) {
            Some((phase, _)) => self.count(*phase, agent, which),
            None => *which(self.agent(agent)) += 1,
        }
    }

    fn read(&mut self) {
        self.reading = (self.reading.0 + 1, Duration::MAX);
        let sample = self.sample();
        self.desk.hear(self.clock(), Event::MemorySampled(Box::new(sample)));
    }

    fn sample(&mut self) -> MemorySample {
        let mut sample = self.fleet.read(self.now);
        sample.budget_counts = self.monitor.watches_budget;
        if let Some(total) = self.load.host_bytes {
            sample.total_bytes = total;
            sample.available_bytes = total.saturating_sub(self.outside() + sample.usage_bytes);
            let used = total - sample.available_bytes;
            sample.host = self.monitor.watches_host.then(|| used as f64 / total as f64);
        }
        sample
    }

    /// What others take; nobody does after the last phase.
    fn outside(&self) -> u64 {
        if self.now < self.load.duration() { self.outside_bytes } else { 0 }
    }

    /// Puts the next reading where the first line may be crossed: the sooner the nearer it is and the faster memory
    /// grows.
    fn pace(&mut self) {
        let settings = &self.desk.core.settings().memory;
        let (mut lines, mut growth) = (Vec::new(), 0.0);
        for (rss, limits, rate) in self.fleet.memory(self.now) {
            growth += rate;
            lines.extend(limits.map(|limit| (rss, limit, rate)));
        }
        let usage = self.fleet.usage(self.now);
        let host = self.load.host_bytes.map(|total| (self.outside() + usage, total));
        let budget = self.monitor.watches_budget.then_some((usage, settings.limit_bytes));
        let is_raised = budget
            .into_iter()
            .chain(host.filter(|_| self.monitor.watches_host))
            .any(|(used, limit)| used as f64 >= (settings.thresholds[0] - settings.hysteresis) * limit as f64);
        for (used, limit) in budget.into_iter().chain(host.filter(|_| self.monitor.watches_host)) {
            lines.extend(settings.thresholds.map(|threshold| (used, (threshold * limit as f64) as u64, growth)));
        }
        lines.extend(host.map(|(used, total)| (used, total.saturating_sub(settings.min_free_bytes), growth)));
        let is_busy = !self.fleet.is_empty();
        let longest = if is_raised && is_busy { self.monitor.interval.min(RAISED) } else { self.monitor.interval };
        let until = |(used, line, rate): (u64, u64, f64)| match line.checked_sub(used) {
            Some(headroom) if rate > 0.0 => seconds((headroom as f64 + 1.0) / rate).max(SHORTEST),
            Some(_) | None => longest,
        };
        let next = self.now + lines.into_iter().map(until).fold(longest, Duration::min);
        if next < self.reading.1 {
            self.reading = (self.reading.0 + 1, next);
            self.agenda.put(next, Due::Reading { number: self.reading.0 });
        }
    }

    fn note_usage(&mut self) {
        let usage = self.fleet.usage(self.now);
        self.usage_in_step = self.usage_in_step.max(usage);
        self.figures.peak_bytes = self.figures.peak_bytes.max(usage);
        let pressure = governor::pressure(&self.sample(), &self.desk.core.settings().memory);
        self.pressure_in_step = self.pressure_in_step.max(pressure);
        self.figures.peak_pressure = self.figures.peak_pressure.max(pressure);
        if let Some(total) = self.load.host_bytes {
            let available = total.saturating_sub(self.outside() + usage);
            let least = self.figures.least_available_bytes.unwrap_or(u64::MAX);
            self.figures.least_available_bytes = Some(least.min(available));
        }
    }

    fn point(&mut self) {
        self.agenda.put(self.now + self.figures.step, Due::Point);
        let total = self.figures.total();
        let point = Point {
            at: self.now,
            usage_bytes: std::mem::take(&mut self.usage_in_step),
            pressure: std::mem::take(&mut self.pressure_in_step),
            level: self.level.0,
            workers: self.fleet.len(),
            running: self.fleet.running(),
            waiting: self.desk.core.waiting(),
            accepted: total.accepted,
            refused: total.refused,
            completed: total.completed,
        };
        self.figures.points.push(point);
    }

    fn finish(&mut self) {
        self.spend_time_at_level();
        self.figures.lasted = self.now;
        let unfinished: Vec<_> = std::mem::take(&mut self.open).into_iter().collect();
        for (task, (phase, _)) in unfinished {
            if let Some(view) = self.desk.core.task(task) {
                self.count(phase, &view.agent, |counts| &mut counts.unfinished);
            }
        }
        for times in [&mut self.figures.waits, &mut self.figures.runs, &mut self.figures.totals] {
            times.sort();
        }
    }
}

/// Virtual time starts on 2026-01-01.
fn clock(at: Duration) -> Now {
    Now { at, wall_ms: 1_767_225_600_000 + at.as_millis() as u64 }
}
