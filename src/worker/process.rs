//! One worker: its process, its pipes, and what is made of what comes through them.

use std::io::{ErrorKind, PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::core::ids::{TaskId, WorkerId};
use crate::core::limits::PAYLOAD_IN_MESSAGE_MAX;
use crate::core::order::{Exit, Order, Report};
use crate::core::settings::{AgentMode, AgentSettings};
use crate::core::task::{Assignment, Payload, PayloadKind};
use crate::memory::cgroup::WorkerGroup;
use crate::sys::poll::PollSet;
use crate::sys::process::{Child, Signal};
use crate::sys::user::User;

use super::compose::{self, Carried};
use super::lines::LineBuffer;
use super::outbox::{Outbox, OutboxError};
use super::result::ResultSink;
use super::room::Room;
use super::session::Session;
use super::spawn::{self, Spawned};
use super::stderr::{LogBudget, LogLines, Speaker, Tail};

/// Reads per worker and turn: 64 KiB, as much as a pipe holds, so that no worker keeps the others waiting.
const READS_PER_TURN: usize = 4;
/// Reads from the pipes of a dead tree. They hold at most 1 MiB (pipe(7)); a stranger that holds one open must not keep us.
const READS_AT_END: usize = 128;
/// A process that exits closes its streams a moment before it can be reaped. One that lives on for this long has closed
/// them on purpose.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);

pub struct Worker {
    pub id: WorkerId,
    agent: Arc<AgentSettings>,
    child: Child,
    cgroup: Option<WorkerGroup>,
    /// Its cgroup was at its limit, with nothing left to reclaim.
    ran_out_of_memory: bool,
    /// As far as it was known when it was killed.
    peak_rss_bytes: u64,
    user: Option<User>,
    input: Outbox,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    role: Role,
    tail: Tail,
    log_lines: LogLines,
    log_budget: LogBudget,
    phase: Phase,
    /// A stream it closed, and when that is an offence.
    hung_up: Option<(Duration, &'static str)>,
    /// What its tree left behind, killed and not yet reaped.
    pub orphans: Vec<Child>,
    /// When it ended; its tree is being cleared away since.
    pub exited_at: Option<Duration>,
}

enum Role {
    Oneshot { task: Option<TaskId>, sink: ResultSink, error: Option<String> },
    Persistent { lines: LineBuffer, session: Session },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// It was told to end, or killed: it may close its streams.
    Ending,
    /// It broke the protocol: nothing it says counts any more.
    Condemned,
}

impl Worker {
    /// Starts the process and reports that it runs. The error is for `SpawnFailed`.
    pub fn start(
        room: &mut Room,
        id: WorkerId,
        agent: Arc<AgentSettings>,
        task: Option<&Assignment>,
    ) -> Result<Worker, String> {
        // A persistent worker is given tasks when it is ready, not at its start.
        let task = task.filter(|_| agent.mode == AgentMode::Oneshot);
        let Spawned { child, stdin, stdout, stderr, user, cgroup } = spawn::spawn(room, id, &agent, task)?;
        let role = match agent.mode {
            AgentMode::Oneshot => {
                // A oneshot worker without a task has nowhere to put a result; task 0 does not exist.
                let task = task.map(|task| task.task);
                let sink = ResultSink::new(task.unwrap_or(TaskId(0)), room.result_max_bytes);
                Role::Oneshot { task, sink, error: None }
            }
            AgentMode::Persistent => Role::Persistent { lines: LineBuffer::default(), session: Session::default() },
        };
        room.report(id, Report::Spawned { pid: child.pid() });
        let mut worker = Worker {
            id,
            agent,
            child,
            cgroup,
            ran_out_of_memory: false,
            peak_rss_bytes: 0,
            user,
            input: Outbox::new(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
            role,
            tail: Tail::default(),
            log_lines: LogLines::default(),
            log_budget: LogBudget::default(),
            phase: Phase::Running,
            hung_up: None,
            orphans: Vec::new(),
            exited_at: None,
        };
        worker.greet(room, task);
        Ok(worker)
    }

    fn greet(&mut self, room: &mut Room, task: Option<&Assignment>) {
        match (&self.role, task.map(|task| &task.spec.payload)) {
            (Role::Persistent { .. }, _) => {
                let agent = Arc::clone(&self.agent);
                self.tell(room, |id, out| compose::hello(out, id, &agent));
            }
            (Role::Oneshot { .. }, Some(Payload::Inline(bytes))) => {
                let sent = self.input.send(|out| out.extend_from_slice(bytes));
                // A program that does not read its payload is free not to.
                let _ = sent.and_then(|()| self.input.finish());
            }
            (Role::Oneshot { .. }, Some(Payload::File(_)) | None) => {
                let _ = self.input.finish();
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub fn obey(&mut self, room: &mut Room, order: Order) {
        match (order, &self.role) {
            // A number is used once; the scheduler asks for a new worker with a new one.
            (Order::Spawn { .. }, _) => log::error!(worker:% = self.id; "a second start of {} was ignored", self.id),
            (Order::Kill, _) => self.kill(),
            (Order::Cancel { .. } | Order::Shutdown, Role::Oneshot { .. }) => {
                self.child.signal_group(Signal::Terminate)
            }
            (Order::Assign(assignment), Role::Persistent { .. }) => self.assign(room, &assignment),
            (Order::Cancel { task, reason }, Role::Persistent { session, .. }) => {
                if session.task() == Some(task) {
                    self.tell(room, |_, out| compose::cancel(out, task, reason));
                }
            }
            (Order::Preempt { task, reason, checkpoint_timeout }, Role::Persistent { session, .. }) => {
                if session.task() == Some(task) {
                    self.tell(room, |_, out| compose::preempt(out, task, reason, checkpoint_timeout));
                }
            }
            (Order::CollectGarbage, Role::Persistent { .. }) => {
                self.tell(room, |_, out| compose::collect_garbage(out));
            }
            (Order::BreakerState { name, answer }, Role::Persistent { .. }) => {
                self.tell(room, |_, out| compose::breaker_state(out, &name, answer));
            }
            (Order::Shutdown, Role::Persistent { .. }) => {
                self.expect_end();
                self.tell(room, |_, out| compose::shutdown(out));
                let finished = self.input.finish();
                self.check_input(room, finished);
            }
            (
                Order::Assign(_) | Order::Preempt { .. } | Order::CollectGarbage | Order::BreakerState { .. },
                Role::Oneshot { .. },
            ) => {
                log::error!(worker:% = self.id; "{} runs one task and speaks no protocol: an order was ignored", self.id)
            }
        }
    }

    /// KILL to the process and to everybody in its group. What left the group is found when it is dead.
    pub fn kill(&mut self) {
        self.expect_end();
        // Before the release below, after which the kernel does not know it any more.
        self.peak_rss_bytes = self.peak_rss_bytes.max(self.child.peak_rss_bytes());
        self.child.signal(Signal::Kill);
        self.kill_group();
        self.child.release_memory();
    }

    fn kill_group(&self) {
        self.child.signal_group(Signal::Kill);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    fn expect_end(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Ending;
            self.hung_up = None;
        }
    }

    fn assign(&mut self, room: &mut Room, assignment: &Assignment) {
        let Role::Persistent { session, .. } = &mut self.role else { return };
        if !session.can_take_a_task() {
            log::error!(worker:% = self.id, task:% = assignment.task; "{} is not ready for {}", self.id, assignment.task);
            return;
        }
        session.assign(assignment.task);
        let mut line = Vec::new();
        match compose_task(room, assignment, self.user.as_ref(), &mut line) {
            Ok(()) => self.tell(room, |_, out| if out.is_empty() { *out = line } else { out.extend_from_slice(&line) }),
            Err(error) => {
                session.abandon();
                room.report(self.id, Report::Failed { task: assignment.task, error, stack: None, retryable: false });
            }
        }
    }

    fn tell(&mut self, room: &mut Room, compose: impl FnOnce(WorkerId, &mut Vec<u8>)) {
        let id = self.id;
        let sent = self.input.send(|out| compose(id, out));
        self.check_input(room, sent);
    }

    fn check_input(&mut self, room: &mut Room, sent: Result<(), OutboxError>) {
        match (sent, &self.role) {
            (Ok(()), _) | (Err(_), Role::Oneshot { .. }) => {}
            (Err(OutboxError::Closed), Role::Persistent { .. }) => self.hang_up(room, "input"),
            (Err(OutboxError::Full), Role::Persistent { .. }) => {
                self.condemn(room, "it does not read its standard input: over 1 MiB waits for it".to_owned());
            }
        }
    }

    /// Puts its descriptors into the set: five places, then one for each orphan.
    pub fn watch(&self, set: &mut PollSet) {
        set.readable(self.stdout.as_ref().map(AsFd::as_fd));
        set.readable(self.stderr.as_ref().map(AsFd::as_fd));
        set.writable(self.input.wanted());
        set.readable(self.exited_at.is_none().then(|| self.child.as_fd()));
        set.readable(self.cgroup.as_ref().filter(|_| self.exited_at.is_none()).and_then(WorkerGroup::oom_bell));
        for orphan in &self.orphans {
            set.readable(Some(orphan.as_fd()));
        }
    }

    /// Serves what became ready of the places from `first` on; returns how many there are.
    pub fn serve(&mut self, room: &mut Room, set: &PollSet, first: usize) -> usize {
        let places = 5 + self.orphans.len();
        // Output before the exit: what it said it said before it ended.
        if set.is_ready(first) {
            self.read_stdout(room, READS_PER_TURN);
        }
        if set.is_ready(first + 1) {
            self.read_stderr(room, READS_PER_TURN);
        }
        if set.is_ready(first + 2) {
            let flushed = self.input.flush();
            self.check_input(room, flushed);
        }
        if set.is_ready(first + 4) && self.cgroup.as_ref().is_some_and(WorkerGroup::heard_of_oom) {
            // The kernel kills one process, we the tree: half a worker is none. If we are first, it counts no kill.
            self.ran_out_of_memory = true;
            self.kill();
        }
        if set.is_ready(first + 3) {
            self.exited_at = Some(room.now);
            self.hung_up = None;
            self.input.close();
            // INVARIANT: before it is reaped, while its group's number is still its own.
            self.kill_group();
        }
        self.orphans.retain_mut(|orphan| matches!(orphan.reap(), Ok(None)));
        places
    }

    /// When [`Worker::pass`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        let progress = match &self.role {
            Role::Persistent { session, .. } => session.deadline(),
            Role::Oneshot { .. } => None,
        };
        let hung_up = self.hung_up.map(|(deadline, _)| deadline);
        progress.into_iter().chain(hung_up).min()
    }

    /// Time has passed.
    pub fn pass(&mut self, room: &mut Room) {
        if let Role::Persistent { session, .. } = &mut self.role
            && session.deadline().is_some_and(|deadline| deadline <= room.now)
            && let Some(report) = session.held_back_progress(room.now)
        {
            room.report(self.id, report);
        }
        if let Some((deadline, stream)) = self.hung_up
            && deadline <= room.now
            && self.exited_at.is_none()
        {
            self.condemn(room, format!("it closed its standard {stream}, and lives"));
        }
    }

    /// Its tree is gone: takes what is left in the pipes, reaps it, and reports its end.
    pub fn finish(mut self, room: &mut Room) {
        self.read_stdout(room, READS_AT_END);
        self.read_stderr(room, READS_AT_END);
        let speaker = Speaker { worker: self.id, agent: &self.agent };
        if let Role::Persistent { .. } = self.role {
            self.log_lines.finish(|line| speaker.log_stderr(&mut self.log_budget, room.now, line));
            speaker.log_dropped(self.log_budget.take_dropped());
        }
        let ended = match self.child.reap() {
            Ok(ended) => ended,
            Err(error) => {
                log::error!(worker:% = self.id; "cannot wait for process {}: {error}; somebody else reaped it", self.pid());
                None
            }
        };
        let mut exit = Exit {
            status: ended.and_then(|ended| ended.status),
            signal: ended.and_then(|ended| ended.signal),
            stderr_tail: self.tail.text(),
            result: None,
            result_error: None,
            peak_rss_bytes: ended.map_or(0, |ended| ended.peak_rss_bytes).max(self.peak_rss_bytes),
            oom_killed: self.ran_out_of_memory || self.cgroup.as_ref().is_some_and(WorkerGroup::was_oom_killed),
        };
        if let Some(cgroup) = self.cgroup.take() {
            room.cgroups.remove(cgroup);
        }
        match self.role {
            Role::Persistent { mut session, .. } => session.abandon(),
            Role::Oneshot { mut sink, error, .. } => {
                if exit.status == Some(0) && error.is_none() {
                    exit.result = sink.finish(false);
                } else {
                    sink.discard();
                }
                exit.result_error = error;
            }
        }
        room.report(self.id, Report::Exited(Box::new(exit)));
    }

    fn read_stdout(&mut self, room: &mut Room, reads: usize) {
        // Taken out for the time, since the room is needed to serve what is read. An empty box allocates nothing.
        let mut scratch = std::mem::take(&mut room.scratch);
        for _ in 0..reads {
            match read(self.stdout.as_ref(), &mut scratch) {
                Piece::Bytes(bytes) => {
                    self.take_output(room, &scratch[..bytes]);
                    if bytes < scratch.len() {
                        break;
                    }
                }
                Piece::Nothing => break,
                Piece::End => {
                    self.stdout = None;
                    self.hang_up(room, "output");
                    break;
                }
            }
        }
        room.scratch = scratch;
    }

    fn read_stderr(&mut self, room: &mut Room, reads: usize) {
        for _ in 0..reads {
            match read(self.stderr.as_ref(), &mut room.scratch) {
                Piece::Bytes(bytes) => {
                    let piece = &room.scratch[..bytes];
                    self.tail.push(piece);
                    if let Role::Persistent { .. } = self.role {
                        let speaker = Speaker { worker: self.id, agent: &self.agent };
                        let budget = &mut self.log_budget;
                        self.log_lines.push(piece, |line| speaker.log_stderr(budget, room.now, line));
                    }
                    if bytes < room.scratch.len() {
                        return;
                    }
                }
                Piece::Nothing => return,
                Piece::End => {
                    self.stderr = None;
                    return;
                }
            }
        }
    }

    fn take_output(&mut self, room: &mut Room, piece: &[u8]) {
        match &mut self.role {
            Role::Oneshot { task: None, .. } => {}
            Role::Oneshot { sink, error, .. } => {
                if let Err(why) = sink.write(&room.files, piece) {
                    *error = Some(why.to_string());
                    self.kill();
                }
            }
            Role::Persistent { lines, session } => {
                let speaker = Speaker { worker: self.id, agent: &self.agent };
                let budget = &mut self.log_budget;
                if let Err(breach) = lines.push(piece, |line| session.line(speaker, budget, room, line)) {
                    self.condemn(room, breach);
                }
            }
        }
    }

    /// A persistent worker has closed a stream. It may be exiting, so it is given a moment.
    fn hang_up(&mut self, room: &Room, stream: &'static str) {
        if let Role::Persistent { .. } = self.role
            && self.phase == Phase::Running
            && self.exited_at.is_none()
            && self.hung_up.is_none()
        {
            self.hung_up = Some((room.now + HANG_UP_GRACE, stream));
        }
    }

    fn condemn(&mut self, room: &mut Room, message: String) {
        if self.phase == Phase::Condemned {
            return;
        }
        self.phase = Phase::Condemned;
        self.hung_up = None;
        self.kill();
        self.stdout = None;
        self.input.close();
        if let Role::Persistent { lines, session } = &mut self.role {
            *lines = LineBuffer::default();
            session.abandon();
        }
        room.report(self.id, Report::ProtocolError { message });
    }
}

enum Piece {
    Bytes(usize),
    Nothing,
    End,
}

fn read(pipe: Option<&PipeReader>, buffer: &mut [u8]) -> Piece {
    let Some(mut pipe) = pipe else { return Piece::Nothing };
    match pipe.read(buffer) {
        Ok(0) => Piece::End,
        Ok(bytes) => Piece::Bytes(bytes),
        // The next turn reads again.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Piece::Nothing,
        Err(error) => {
            log::error!("cannot read from a worker: {error}");
            Piece::End
        }
    }
}

/// Writes the TASK message. The error is for a failed task.
fn compose_task(room: &Room, assignment: &Assignment, user: Option<&User>, line: &mut Vec<u8>) -> Result<(), String> {
    let task = assignment.task;
    let checkpoint = assignment.has_checkpoint.then(|| room.files.read_checkpoint(task)).and_then(|read| {
        read.inspect_err(
            |error| log::warn!(task:% = task; "cannot read the checkpoint of {task}: {error}; it starts again"),
        )
        .ok()
    });
    let path = room.files.payload_path(task);
    let unreadable =
        |error: std::io::Error| format!("cannot read the payload {}: {error}; submit the task again", path.display());
    let from_file;
    let bytes = match &assignment.spec.payload {
        Payload::Inline(bytes) => Some(&bytes[..]),
        Payload::File(stored) if stored.bytes <= PAYLOAD_IN_MESSAGE_MAX as u64 => {
            from_file = spawn::read_payload(&room.files, task, *stored).map_err(unreadable)?;
            Some(&from_file[..])
        }
        Payload::File(_) => None,
    };
    let carried = match (bytes, assignment.spec.payload_kind) {
        (Some(bytes), PayloadKind::Json) => Some(Carried::Json(bytes)),
        (Some(bytes), PayloadKind::Raw) => std::str::from_utf8(bytes).ok().map(Carried::Text),
        (None, _) => None,
    };
    let path_text;
    let carried = match carried {
        Some(carried) => carried,
        None => {
            spawn::payload_file(&room.files, assignment).map_err(unreadable)?;
            spawn::give_payload(&room.files, assignment, user);
            path_text = path.to_str().ok_or("daemon.state_dir is not UTF-8, so no path in it can be sent")?;
            Carried::Path(path_text)
        }
    };
    compose::task(line, assignment, checkpoint.as_deref(), &carried);
    Ok(())
}
