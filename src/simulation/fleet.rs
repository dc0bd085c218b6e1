//! Simulated worker processes: what they do when ordered to, how long that takes, and the memory they hold meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::agenda::Agenda;
use super::dice::Dice;
use super::load::Work;
use super::run::Due;
use crate::core::governor::{DaemonMemory, MemorySample};
use crate::core::ids::{AgentName, TaskId, WorkerId};
use crate::core::order::{Exit, Order, Report};
use crate::core::settings::{AgentMode, AgentSettings};
use crate::core::task::{Assignment, ResultPlace, ResultRef};

/// From a KILL to the process reaped, as measured for 300 MiB.
const DEATH: Duration = Duration::from_millis(30);
/// A process that is asked to end, or to leave its task.
const OBEYING: Duration = Duration::from_millis(10);
/// A checkpoint is written.
const CHECKPOINT: Duration = Duration::from_millis(100);
/// The part of its run time in which a task's memory grows to its peak; it stays there.
const GROWING: f64 = 0.5;

/// What the daemon itself holds.
pub const DAEMON: u64 = 3 << 20;

#[derive(Debug)]
pub struct Fleet {
    works: BTreeMap<AgentName, Work>,
    processes: BTreeMap<WorkerId, Process>,
    /// Of tasks that have begun and not ended.
    jobs: BTreeMap<TaskId, Job>,
    dice: Dice,
    runs: u64,
}

#[derive(Debug)]
struct Process {
    settings: Arc<AgentSettings>,
    /// Bytes without a task.
    base: f64,
    leaked: f64,
    run: Option<Run>,
    is_ending: bool,
    peak: u64,
}

/// One process at one task.
#[derive(Debug)]
struct Run {
    /// A number of its own, by which a moment that was meant for another run is known.
    number: u64,
    task: TaskId,
    begins: Duration,
    length: Duration,
    peak: f64,
    leak: f64,
}

/// What a task takes, whatever becomes of its runs.
#[derive(Debug, Clone, Copy)]
struct Job {
    length: f64,
    peak: f64,
    /// The share of it that its checkpoint holds.
    done: f64,
}

/// A moment in a process's life.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    Ready,
    Completes { run: u64 },
    Crashes { run: u64 },
    Yields { run: u64 },
    LetsGo { run: u64 },
    Exits { status: Option<i32>, signal: Option<i32> },
}

impl Fleet {
    pub fn new(works: BTreeMap<AgentName, Work>, dice: Dice) -> Fleet {
        Fleet { works, processes: BTreeMap::new(), jobs: BTreeMap::new(), dice, runs: 0 }
    }

    pub fn order(&mut self, now: Duration, id: WorkerId, order: Order, agenda: &mut Agenda<Due>) {
        let mut at = |after: Duration, moment| agenda.put(now + after, Due::Moment(id, moment));
        let run_of =
            |fleet: &Fleet| fleet.processes.get(&id).and_then(|process| process.run.as_ref()).map(|run| run.number);
        match order {
            Order::Spawn { agent, task } => {
                let ready = self.spawn(id, agent);
                match task {
                    Some(assignment) => self.begin(now + ready, id, &assignment, agenda),
                    None => at(ready, Moment::Ready),
                }
            }
            Order::Assign(assignment) => self.begin(now, id, &assignment, agenda),
            Order::Cancel { .. } => match (run_of(self), self.mode(id)) {
                (Some(run), Some(AgentMode::Persistent)) => at(OBEYING, Moment::LetsGo { run }),
                (_, Some(AgentMode::Oneshot)) => at(OBEYING, Moment::Exits { status: None, signal: Some(15) }),
                (None, Some(AgentMode::Persistent)) | (_, None) => {}
            },
            Order::Preempt { .. } => {
                if let Some(run) = run_of(self) {
                    at(CHECKPOINT, Moment::Yields { run });
                }
            }
            Order::CollectGarbage | Order::BreakerState { .. } => {}
            Order::Shutdown => at(OBEYING, Moment::Exits { status: Some(0), signal: None }),
            Order::Kill => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.is_ending = true;
                }
                at(DEATH, Moment::Exits { status: None, signal: Some(9) });
            }
        }
    }

    /// How long until it is ready.
    fn spawn(&mut self, id: WorkerId, settings: Arc<AgentSettings>) -> Duration {
        let work = &self.works[&settings.name];
        let (base, ready) = (work.idle.draw(&mut self.dice), work.ready.draw(&mut self.dice));
        let process = Process { settings, base, leaked: 0.0, run: None, is_ending: false, peak: base as u64 };
        self.processes.insert(id, process);
        seconds(ready)
    }

    fn begin(&mut self, begins: Duration, id: WorkerId, assignment: &Assignment, agenda: &mut Agenda<Due>) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let work = &self.works[&process.settings.name];
        let dice = &mut self.dice;
        let job = self.jobs.entry(assignment.task).or_insert_with(|| Job {
            length: work.run.draw(dice),
            peak: work.peak.draw(dice),
            done: 0.0,
        });
        if !assignment.has_checkpoint {
            job.done = 0.0;
        }
        self.runs += 1;
        let (number, length) = (self.runs, seconds(job.length * (1.0 - job.done)));
        process.run = Some(Run { number, task: assignment.task, begins, length, peak: job.peak, leak: work.leak });
        let (moment, after) = if dice.comes_to_pass(work.crash) {
            (Moment::Crashes { run: number }, length.mul_f64(dice.share()))
        } else {
            let is_oneshot = process.settings.mode == AgentMode::Oneshot;
            let ends = Moment::Exits { status: Some(0), signal: None };
            (if is_oneshot { ends } else { Moment::Completes { run: number } }, length)
        };
        agenda.put(begins + after, Due::Moment(id, moment));
    }

    /// What the supervisor hears of it; `None`: the moment has been overtaken by another.
    pub fn live(&mut self, now: Duration, id: WorkerId, moment: Moment) -> Option<Report> {
        let process = self.processes.get_mut(&id)?;
        let of_run = |process: &Process, number| process.run.as_ref().is_some_and(|run| run.number == number);
        match moment {
            Moment::Ready => {
                let can_checkpoint = self.works[&process.settings.name].gives_checkpoints;
                Some(Report::Ready { can_checkpoint, can_cancel: true })
            }
            Moment::Exits { status, signal } => {
                // Why: a killed one ends by that and by nothing else.
                if process.is_ending && signal != Some(9) {
                    return None;
                }
                Some(self.exit(id, status, signal))
            }
            Moment::Completes { run } | Moment::Crashes { run } | Moment::Yields { run } | Moment::LetsGo { run }
                if process.is_ending || !of_run(process, run) =>
            {
                None
            }
            Moment::Crashes { .. } => Some(self.exit(id, None, Some(11))),
            Moment::Completes { .. } => {
                process.let_go(now).map(|run| Report::Completed { task: run.task, result: result() })
            }
            Moment::LetsGo { .. } => process.let_go(now).map(|run| Report::Failed {
                task: run.task,
                error: "cancelled".to_string(),
                stack: None,
                retryable: false,
            }),
            Moment::Yields { .. } => {
                let run = process.let_go(now)?;
                if let Some(job) = self.jobs.get_mut(&run.task) {
                    job.done += (1.0 - job.done) * run.share(now);
                }
                Some(Report::Preempted { task: run.task, checkpoint: true })
            }
        }
    }

    fn exit(&mut self, id: WorkerId, status: Option<i32>, signal: Option<i32>) -> Report {
        let peak_rss_bytes = self.processes.remove(&id).map_or(0, |process| process.peak);
        let result = (status == Some(0)).then(result);
        Report::Exited(Box::new(Exit { status, signal, result, peak_rss_bytes, ..Exit::default() }))
    }

    pub fn forget(&mut self, task: TaskId) {
        self.jobs.remove(&task);
    }

    fn mode(&self, id: WorkerId) -> Option<AgentMode> {
        self.processes.get(&id).map(|process| process.settings.mode)
    }

    pub fn running(&self) -> usize {
        self.processes.values().filter(|process| process.run.is_some()).count()
    }

    pub fn len(&self) -> usize {
        self.processes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Daemon and workers together.
    pub fn usage(&self, now: Duration) -> u64 {
        DAEMON + self.processes.values().map(|process| process.rss(now)).sum::<u64>()
    }

    /// Each worker's memory, with its limits and how fast it grows, in bytes a second.
    pub fn memory(&self, now: Duration) -> impl Iterator<Item = (u64, [u64; 2], f64)> {
        self.processes.values().map(move |process| {
            let limits = [process.settings.soft_limit_bytes, process.settings.hard_limit_bytes];
            (process.rss(now), limits, process.growth(now))
        })
    }

    /// A reading of the workers.
    pub fn read(&mut self, now: Duration) -> MemorySample {
        let mut sample = MemorySample {
            daemon: DaemonMemory { rss: DAEMON, ..DaemonMemory::default() },
            usage_bytes: DAEMON,
            ..MemorySample::default()
        };
        for (id, process) in &mut self.processes {
            let rss = process.rss(now);
            process.peak = process.peak.max(rss);
            sample.usage_bytes += rss;
            sample.workers.push((*id, rss));
        }
        sample
    }
}

impl Process {
    fn let_go(&mut self, now: Duration) -> Option<Run> {
        self.peak = self.peak.max(self.rss(now));
        let run = self.run.take()?;
        self.leaked += run.leak * run.elapsed(now);
        Some(run)
    }

    fn rss(&self, now: Duration) -> u64 {
        let of_run = self.run.as_ref().map_or(0.0, |run| {
            let more = (run.peak - self.base).max(0.0) * (run.share(now) / GROWING).min(1.0);
            more + run.leak * run.elapsed(now)
        });
        (self.base + self.leaked + of_run) as u64
    }

    fn growth(&self, now: Duration) -> f64 {
        self.run.as_ref().filter(|run| run.begins <= now).map_or(0.0, |run| {
            let growing_for = run.length.as_secs_f64() * GROWING;
            let is_growing = run.elapsed(now) < growing_for;
            run.leak + if is_growing { (run.peak - self.base).max(0.0) / growing_for } else { 0.0 }
        })
    }
}

impl Run {
    fn elapsed(&self, now: Duration) -> f64 {
        now.saturating_sub(self.begins).as_secs_f64()
    }

    /// The part of it that is done, 0 to 1.
    fn share(&self, now: Duration) -> f64 {
        let length = self.length.as_secs_f64();
        if length > 0.0 { (self.elapsed(now) / length).min(1.0) } else { 1.0 }
    }
}

fn result() -> ResultRef {
    ResultRef { place: ResultPlace::Inline(Arc::from(*b"1")), is_json: true }
}

/// To whole microseconds, so that no moment lies between two that a clock can tell apart.
pub fn seconds(seconds: f64) -> Duration {
    Duration::from_micros((seconds * 1e6).round().clamp(0.0, 1e15) as u64)
}
