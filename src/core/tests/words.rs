//! A random walk in words, for the end of one that failed: a line a thing, short enough to read.

use super::world::Input;
use crate::core::event::Event;
use crate::core::notice::Notice;
use crate::core::order::{Exit, Order, Report, WorkerReport};
use crate::core::task::{Assignment, TaskSpec};
use crate::simulation::desk::{Answer, Caller, Said};

pub fn of_input(input: &Input) -> String {
    match input {
        Input::Event(Event::Worker(WorkerReport { worker, report })) => {
            format!("{worker} reports {}", of_report(report))
        }
        Input::Event(Event::MemorySampled(sample)) => {
            let workers = sample.workers.iter().map(|(worker, rss)| format!("{worker} {rss}"));
            let workers = Vec::from_iter(workers).join(", ");
            format!("memory {} ({workers}), available {}", sample.usage_bytes, sample.available_bytes)
                + &sample.host.map_or_else(String::new, |host| format!(", host {host:.3}"))
        }
        Input::Event(Event::Reconfigured(settings)) => format!(
            "new settings: {:?}, {:?}, {:?}, agents {:?}",
            settings.workers,
            settings.memory,
            settings.features,
            Vec::from_iter(settings.agents.keys())
        ),
        Input::Event(event) => format!("{event:?}"),
        Input::Submit { spec, wait } => format!("submit {}, wait {} s", of_spec(spec), wait.as_secs()),
        Input::Cancel(task) => format!("cancel {task}"),
        Input::Breaker(name, request) => format!("breaker {name}: {request:?}"),
        Input::Preempt(worker) => format!("preempt {worker}"),
        Input::Gone(Caller(caller)) => format!("client {caller} goes away"),
        Input::Wake => "time passes".to_string(),
        Input::Sync { works: true } => "the disk is done".to_string(),
        Input::Sync { works: false } => "the disk has an error".to_string(),
        Input::DiskFails(fails) => format!("from now on the disk {}", if *fails { "fails" } else { "works" }),
        Input::Rewrite => "the journal is written anew".to_string(),
        Input::Fuse(steps) => format!("the daemon has {steps} steps to live"),
    }
}

/// `None`: nothing worth a line.
pub fn of_said(said: &Said) -> Option<String> {
    match said {
        Said::Notice(notice) => Some(format!("{}: {}", notice.name(), Notice::sentence(notice))),
        Said::Order(worker, order) => Some(format!("to {worker}: {}", of_order(order))),
        Said::Reply(Caller(caller), answer) => Some(format!("reply to {caller}: {}", of_answer(answer))),
        Said::Drained => Some("drained".to_string()),
        // The notices say it.
        Said::Record(_) | Said::Finished(_) => None,
    }
}

fn of_spec(spec: &TaskSpec) -> String {
    let TaskSpec { agent, priority, timeout, max_retries, skippable, idempotency_key, schedule, .. } = spec;
    let mut text = format!("{agent} at {}, {} s, {max_retries} retries", priority.name(), timeout.as_secs());
    text += if *skippable { ", skippable" } else { "" };
    text += &idempotency_key.as_ref().map_or_else(String::new, |key| format!(", key {key}"));
    text += &schedule.as_ref().map_or_else(String::new, |schedule| format!(", of schedule {schedule}"));
    text
}

fn of_order(order: &Order) -> String {
    let task = |assignment: &Assignment| format!("{} of {}", assignment.task, assignment.spec.agent);
    match order {
        Order::Spawn { agent, task: Some(assignment) } => format!("start {} with {}", agent.name, task(assignment)),
        Order::Spawn { agent, task: None } => format!("start {}", agent.name),
        Order::Assign(assignment) => format!("take {}", task(assignment)),
        Order::Cancel { task, reason } => format!("CANCEL {task}, {}", reason.name()),
        Order::Preempt { task, reason, .. } => format!("PREEMPT {task}, {}", reason.name()),
        Order::CollectGarbage => "GC".to_string(),
        Order::BreakerState { name, answer } => format!("breaker {name}: {answer:?}"),
        Order::Shutdown => "SHUTDOWN".to_string(),
        Order::Kill => "KILL".to_string(),
    }
}

fn of_report(report: &Report) -> String {
    match report {
        Report::Spawned { pid } => format!("process {pid}"),
        Report::SpawnFailed { error } => format!("no process: {error}"),
        Report::Ready { can_checkpoint: true, .. } => "READY, with checkpoints".to_string(),
        Report::Ready { can_checkpoint: false, .. } => "READY".to_string(),
        Report::Progress { task, checkpoint, .. } => format!("PROGRESS of {task}, checkpoint {checkpoint}"),
        Report::Completed { task, .. } => format!("COMPLETE of {task}"),
        Report::Failed { task, retryable, .. } => format!("FAILED of {task}, retryable {retryable}"),
        Report::Preempted { task, checkpoint } => format!("PREEMPTED of {task}, checkpoint {checkpoint}"),
        Report::Memory(reading) => format!("MEMORY {}", reading.rss),
        Report::Breaker { name, op } => format!("BREAKER {name} {op:?}"),
        Report::ProtocolError { .. } => "a breach of the protocol".to_string(),
        Report::Exited(exit) => {
            let Exit { status, signal, oom_killed, .. } = &**exit;
            format!("its end: status {status:?}, signal {signal:?}, oom {oom_killed}")
        }
    }
}

fn of_answer(answer: &Answer) -> String {
    match answer {
        Answer::Submitted { task, state, is_duplicate } => {
            format!("{task} is {}{}", state.name(), if *is_duplicate { ", known by its key" } else { "" })
        }
        Answer::Refused(refusal) => format!("refused, {}", refusal.code()),
        Answer::StorageFull => "storage_full".to_string(),
        Answer::Forgotten(task) => format!("{task} is not known any more"),
        Answer::Cancelled(task, answer) => format!("cancel {task}: {answer:?}"),
        Answer::Breaker(answer) => format!("{answer:?}"),
    }
}
