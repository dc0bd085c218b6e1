//! A supervisor on a thread of its own, agents to run under it, and tests in a process of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use tempfile::TempDir;

use crate::core::ids::{TaskId, WorkerId};
use crate::core::order::{Exit, Order, Report, WorkerReport};
use crate::core::settings::{AgentMode, AgentSettings, Runtime};
use crate::core::task::{Assignment, Payload, PayloadKind, Priority, TaskSpec};
use crate::memory::cgroup::Cgroups;
use crate::spool::Files;
use crate::sys::clock::Clock;
use crate::worker::guardian::Instance;
use crate::worker::{SupervisorHandle, SupervisorSettings, supervisor};

/// Far beyond what anything here takes: only a hang is this slow.
const PATIENCE: Duration = Duration::from_secs(60);
pub const RESULT_MAX: u64 = 3 * 1024 * 1024;
pub const TASK: TaskId = TaskId(7);
pub const MIB: u64 = 1024 * 1024;

const ALONE: &str = "KURULTAI_TEST_ALONE";

pub struct Bench {
    pub handle: SupervisorHandle,
    pub reports_rx: Receiver<WorkerReport>,
    pub files: Files,
    pub dir: TempDir,
    thread: Option<JoinHandle<()>>,
    next_worker: u64,
}

impl Bench {
    /// Nothing is left of a result, neither kept nor coming in.
    pub fn has_no_result(&self) -> bool {
        let path = self.files.result_path(TASK);
        !path.exists() && !path.with_extension("tmp").exists()
    }

    pub fn new() -> Bench {
        Bench::with(Instance::unguarded().unwrap())
    }

    pub fn with(instance: Instance) -> Bench {
        Bench::held_by(instance, Cgroups::off())
    }

    pub fn held_by(instance: Instance, cgroups: Cgroups) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path(), false).unwrap();
        let (reports_tx, reports_rx) = bounded(64);
        let settings = SupervisorSettings {
            files: files.clone(),
            result_max_bytes: RESULT_MAX,
            clock: Clock::start(),
            stop_grace: PATIENCE,
            instance,
            cgroups,
        };
        let (supervisor, handle) = supervisor(settings, reports_tx, 64).unwrap();
        let thread = std::thread::Builder::new().spawn(move || supervisor.run()).unwrap();
        Bench { handle, reports_rx, files, dir, thread: Some(thread), next_worker: 0 }
    }

    pub fn spawn(&mut self, agent: AgentSettings, task: Option<Assignment>) -> WorkerId {
        self.next_worker += 1;
        let worker = WorkerId(self.next_worker);
        self.send(worker, Order::Spawn { agent: Arc::new(agent), task: task.map(Box::new) });
        worker
    }

    pub fn send(&self, worker: WorkerId, order: Order) {
        self.handle.send(worker, order).unwrap();
    }

    pub fn next(&self, worker: WorkerId) -> Report {
        let report = self.reports_rx.recv_timeout(PATIENCE).expect("no report came");
        assert_eq!(report.worker, worker, "{report:?}");
        report.report
    }

    /// The next report, which must be that it runs; its pid.
    pub fn spawned(&self, worker: WorkerId) -> u32 {
        match self.next(worker) {
            Report::Spawned { pid } => pid,
            other => panic!("{other:?} instead of Spawned"),
        }
    }

    /// The next report, which must be a MEMORY message; the figure that agents here put a pid into.
    pub fn told_pid(&self, worker: WorkerId) -> u32 {
        match self.next(worker) {
            Report::Memory(reading) => reading.rss as u32,
            other => panic!("{other:?} instead of Memory"),
        }
    }

    pub fn exited(&self, worker: WorkerId) -> Exit {
        match self.next(worker) {
            Report::Exited(exit) => *exit,
            other => panic!("{other:?} instead of Exited"),
        }
    }

    /// Runs a script to its end as a oneshot worker.
    pub fn run(&mut self, script: &str, payload: &[u8]) -> Exit {
        let worker = self.spawn(sh(AgentMode::Oneshot, script), Some(task(payload)));
        self.spawned(worker);
        self.exited(worker)
    }

    /// A persistent worker that is ready.
    pub fn ready(&mut self, script: &str) -> WorkerId {
        let script = format!("read -r hello; echo '{{\"type\":\"READY\",\"protocol\":1}}'; {script}");
        let worker = self.spawn(sh(AgentMode::Persistent, &script), None);
        self.spawned(worker);
        assert_eq!(self.next(worker), Report::Ready { can_checkpoint: false, can_cancel: false });
        worker
    }

    pub fn assign(&self, worker: WorkerId, assignment: Assignment) {
        self.send(worker, Order::Assign(Box::new(assignment)));
    }

    pub fn write(&self, name: &str, text: &str, mode: u32) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.handle.stop();
        // Drained meanwhile: a supervisor may be blocked on a report nobody wanted.
        while self.reports_rx.recv_timeout(PATIENCE).is_ok() {}
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn agent(mode: AgentMode, command: &[&str]) -> AgentSettings {
    AgentSettings {
        name: Arc::from("tested"),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        mode,
        runtime: Runtime::Generic,
        cwd: None,
        user: None,
        env: BTreeMap::new(),
        env_pass: vec!["PATH".to_owned()],
        soft_limit_bytes: 300 * MIB,
        hard_limit_bytes: 512 * MIB,
        task_timeout: Duration::from_secs(60),
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

pub fn sh(mode: AgentMode, script: &str) -> AgentSettings {
    agent(mode, &["/bin/sh", "-c", script])
}

pub fn task(payload: &[u8]) -> Assignment {
    task_with(Payload::Inline(Arc::from(payload)), PayloadKind::Json)
}

pub fn task_with(payload: Payload, payload_kind: PayloadKind) -> Assignment {
    let spec = TaskSpec {
        agent: Arc::from("tested"),
        priority: Priority::Normal,
        payload,
        payload_kind,
        timeout: Duration::from_secs(60),
        max_retries: 0,
        preemptible: true,
        skippable: false,
        idempotency_key: None,
        request_id: Arc::from("r-1"),
        schedule: None,
    };
    Assignment { task: TASK, spec: Arc::new(spec), attempt: 1, has_checkpoint: false, worker: WorkerId(1) }
}

pub fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether this process was started to run that test and nothing else.
pub fn is_alone(test: &str) -> bool {
    std::env::var(ALONE).is_ok_and(|name| name == test)
}

/// Starts this test in a process of its own, with a limit on its descriptors.
#[expect(clippy::disallowed_methods, reason = "the tests start their own program")]
pub fn start_alone(test: &str, module: &str) -> Child {
    let path = format!("{}::{test}", module.split_once("::").unwrap().1);
    Command::new("/bin/sh")
        .args(["-c", "ulimit -n 64; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([&path, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, test)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

pub fn run_alone(test: &str, module: &str) {
    let output = start_alone(test, module).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{test}: {}\n{text}", output.status);
}
