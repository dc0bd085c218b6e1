//! A worker's standard output without the worker, for tests/fuzz, which cannot see this room. Nothing in the programs
//! calls it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};

use super::lines::LineBuffer;
use super::room::Room;
use super::session::Session;
use super::stderr::{LogBudget, Speaker};
use crate::core::ids::{TaskId, WorkerId};
pub use crate::core::limits::LINE_MAX;
use crate::core::order::WorkerReport;
use crate::core::settings::{AgentMode, AgentSettings, Runtime};
use crate::memory::cgroup::Cgroups;
use crate::spool::Files;
use crate::sys::clock::Clock;
use crate::sys::mark;

/// Time passes with the lines, so that it is the same however they are cut.
const LINE_TIME: Duration = Duration::from_millis(40);
const RESULT_MAX: u64 = 64 * 1024;

/// Who hears a worker: what the supervisor does between its pipe and its reports.
pub struct Listener {
    lines: LineBuffer,
    session: Session,
    budget: LogBudget,
    room: Room,
    agent: AgentSettings,
    reports_rx: Receiver<WorkerReport>,
    heard: Heard,
}

#[derive(Debug, Default)]
pub struct Heard {
    /// One text a report, to be compared.
    pub reports: Vec<String>,
    pub lines: u32,
    pub longest_line: usize,
}

impl Listener {
    pub fn new(files: &Files) -> io::Result<Listener> {
        // A line makes one report at most, which is taken out before the next line.
        let (reports_tx, reports_rx) = bounded(1);
        let instance = mark::Instance::random()?;
        let room = Room::new(files.clone(), RESULT_MAX, instance, Cgroups::off(), Clock::start(), reports_tx);
        Ok(Listener {
            lines: LineBuffer::default(),
            session: Session::default(),
            budget: LogBudget::default(),
            room,
            agent: agent(),
            reports_rx,
            heard: Heard::default(),
        })
    }

    /// Takes what one read(2) gave. An error is a breach of the protocol, after which nothing more is to be read.
    pub fn hear(&mut self, piece: &[u8]) -> Result<(), String> {
        let Listener { lines, session, budget, room, agent, reports_rx, heard } = self;
        lines.push(piece, |line| {
            heard.lines += 1;
            heard.longest_line = heard.longest_line.max(line.len());
            room.now = LINE_TIME * heard.lines;
            let speaker = Speaker { worker: WorkerId(1), agent };
            let said = session.line(speaker, budget, room, line);
            heard.reports.extend(reports_rx.try_iter().map(|report| format!("{:?}", report.report)));
            if session.can_take_a_task() {
                // The only one there is.
                session.assign(TaskId(1));
            }
            said
        })
    }

    /// The worker is gone.
    pub fn finish(mut self) -> Heard {
        let held_back = self.session.held_back_progress(self.room.now);
        self.heard.reports.extend(held_back.map(|report| format!("{report:?}")));
        self.session.abandon();
        self.heard
    }
}

fn agent() -> AgentSettings {
    AgentSettings {
        name: Arc::from("fuzzed"),
        command: vec!["fuzzed".to_owned()],
        mode: AgentMode::Persistent,
        runtime: Runtime::Generic,
        cwd: None,
        user: None,
        env: BTreeMap::new(),
        env_pass: Vec::new(),
        soft_limit_bytes: 0,
        hard_limit_bytes: 0,
        task_timeout: Duration::from_secs(60),
        max_retries: 0,
        preemptible: true,
        breaker: None,
        max_workers: None,
        max_oom_kills: 0,
        oom_score_adj: 0,
        data_limit_bytes: None,
        has_kernel_limit: false,
    }
}
