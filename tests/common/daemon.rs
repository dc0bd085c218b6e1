//! The real `kurultaid`, in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::config;
use super::http::{Connection, Request, Response};
use super::outside::{self, Ran};
use super::process::{Footprint, children, descendants, holds_only_of, is_alive, signal, start_time};
use super::wait::{soon, until};

/// A directory with a configuration; daemons come and go in it.
pub struct Home {
    dir: TempDir,
    starts: u32,
}

impl Home {
    pub fn new(fragment: &str) -> Home {
        let home = Home { dir: TempDir::with_prefix("kurultai-").expect("a temporary directory"), starts: 0 };
        home.configure(fragment);
        home
    }

    /// Writes the configuration; a daemon that runs takes it when it is told to.
    pub fn configure(&self, fragment: &str) {
        fs::write(self.config(), config::complete(fragment, self.path())).expect("the directory can be written");
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("kurultai.toml")
    }

    pub fn socket(&self) -> PathBuf {
        config::socket(self.path())
    }

    /// A command of `kurultaid` with this configuration.
    pub fn kurultaid(&self) -> Command {
        let mut command = outside::command(env!("CARGO_BIN_EXE_kurultaid"));
        command.arg("--config").arg(self.config());
        command
    }

    /// Runs `kurultaictl` against the daemon here.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut command = outside::command(env!("CARGO_BIN_EXE_kurultaictl"));
        outside::run_command(command.env("KURULTAI_SOCKET", self.socket()).args(arguments), input)
    }

    #[track_caller]
    pub fn start(self) -> Daemon {
        self.start_with(|command| command)
    }

    /// Starts a daemon, and returns when it answers.
    #[track_caller]
    pub fn start_with(self, change: impl FnOnce(&mut Command) -> &mut Command) -> Daemon {
        let mut daemon = self.launch(change);
        daemon.has_started();
        daemon
    }

    /// Starts a daemon that may have to wait for something before it answers.
    #[track_caller]
    pub fn launch(mut self, change: impl FnOnce(&mut Command) -> &mut Command) -> Daemon {
        self.starts += 1;
        let log = self.path().join(format!("log-{}", self.starts));
        let mut command = self.kurultaid();
        change(&mut command).stderr(fs::File::create(&log).expect("the directory can be written"));
        let child = command.spawn().expect("kurultaid can be started");
        Daemon { home: Some(self), child, log }
    }
}

pub struct Daemon {
    /// `None` only while it is being dropped.
    home: Option<Home>,
    child: Child,
    log: PathBuf,
}

/// So many equal readings in a row, each a pause apart, are no accident.
const AT_REST: u32 = 10;

impl Daemon {
    /// Starts a daemon with this configuration, and returns when it answers.
    #[track_caller]
    pub fn start(fragment: &str) -> Daemon {
        Home::new(fragment).start()
    }

    /// Waits until it answers.
    #[track_caller]
    pub fn has_started(&mut self) {
        until("the daemon answers", || {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                panic!("the daemon ended with {status}: {}", self.log_text());
            }
            self.try_get("/health?live").filter(|response| response.status == 200)
        });
    }

    pub fn home(&self) -> &Home {
        self.home.as_ref().expect("it is taken when the daemon is dropped")
    }

    pub fn path(&self) -> &Path {
        self.home().path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// While no client is connected over the Unix socket and nothing is held of workers that are gone, so that two of
    /// them can be compared.
    #[track_caller]
    pub fn footprint(&self) -> Footprint {
        let socket = self.home().socket().display().to_string();
        soon("every connection is closed", || {
            let table = fs::read_to_string("/proc/net/unix").expect("proc_net(5)");
            // The listener alone is left.
            table.lines().filter(|line| line.ends_with(&socket)).count() == 1
        });
        soon("the daemon holds nothing of workers that are gone", || holds_only_of(self.pid(), &children(self.pid())));
        // A start has an end of its own: what another daemon left behind is cleared away, say.
        let (mut last, mut unchanged) = (Footprint::of(self.pid()), 0);
        soon("descriptors have come to rest", || {
            let now = Footprint::of(self.pid());
            unchanged = if (now.fds, now.threads) == (last.fds, last.threads) { unchanged + 1 } else { 0 };
            last = now;
            unchanged >= AT_REST
        });
        last
    }

    /// Everything it has logged.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("the log is there")).into_owned()
    }

    /// Its whole log lines so far; each has to be JSON.
    pub fn log_lines(&self) -> Vec<Value> {
        let text = self.log_text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        whole.lines().map(parse).collect()
    }

    /// Log lines of an event.
    pub fn logged(&self, event: &str) -> Vec<Value> {
        self.log_lines().into_iter().filter(|line| line["event"] == event).collect()
    }

    /// Log lines whose text has this in it.
    pub fn logged_text(&self, part: &str) -> Vec<String> {
        self.log_text().lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }

    pub fn connect(&self) -> Connection {
        Connection::unix(&self.home().socket()).expect("the daemon listens")
    }

    #[track_caller]
    pub fn ask(&self, request: &Request) -> Response {
        self.connect().ask(request)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.ask(&Request::get(path))
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Response {
        self.ask(&Request::post(path, body))
    }

    fn try_get(&self, path: &str) -> Option<Response> {
        let mut connection = Connection::unix(&self.home().socket()).ok()?;
        connection.send(&Request::get(path).bytes()).ok()?;
        connection.receive().ok()
    }

    /// An envelope for `POST /v1/tasks`, not waited for.
    #[track_caller]
    pub fn submit(&self, envelope: &Value) -> Response {
        self.ask(&Request::json("/v1/tasks", envelope))
    }

    /// A task of `agent` that has to be accepted; its id.
    #[track_caller]
    pub fn accept(&self, agent: &str, payload: Value) -> String {
        self.accept_with(json!({ "agent": agent, "payload": payload }))
    }

    #[track_caller]
    pub fn accept_with(&self, envelope: Value) -> String {
        let task = self.submit(&envelope).expect(202).json();
        task["id"].as_str().expect("an id").to_owned()
    }

    /// A task of `agent` to its end; the task object.
    #[track_caller]
    pub fn run_task(&self, agent: &str, payload: Value) -> Value {
        self.run_with(json!({ "agent": agent, "payload": payload }))
    }

    #[track_caller]
    pub fn run_with(&self, envelope: Value) -> Value {
        let task = self.ask(&Request::json("/v1/tasks?wait=30", &envelope));
        assert!(matches!(task.status, 200 | 202), "{} {}", task.status, task.text());
        let task = task.json();
        self.finished(task["id"].as_str().expect("an id"))
    }

    #[track_caller]
    pub fn task(&self, id: &str) -> Value {
        self.get(&format!("/v1/tasks/{id}")).expect(200).json()
    }

    #[track_caller]
    pub fn finished(&self, id: &str) -> Value {
        self.in_state(id, &["completed", "failed", "cancelled", "skipped", "evicted"])
    }

    /// The task, once it is in one of these states.
    #[track_caller]
    pub fn in_state(&self, id: &str, states: &[&str]) -> Value {
        until(&format!("{id} is {states:?}"), || {
            let task = self.task(id);
            states.iter().any(|state| task["state"] == **state).then_some(task)
        })
    }

    /// The daemon's processes but for itself and its guardian.
    pub fn workers(&self) -> Vec<u32> {
        let guardian = self.guardian();
        descendants(self.pid()).into_iter().filter(|pid| *pid != guardian).collect()
    }

    /// The child that is the daemon's own program.
    fn guardian(&self) -> u32 {
        let ours = fs::read_link(format!("/proc/{}/exe", self.pid())).expect("the daemon lives");
        children(self.pid())
            .into_iter()
            .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == ours))
            .min()
            .expect("the daemon has a guardian")
    }

    /// Nothing but the daemon and its guardian, not even a zombie.
    #[track_caller]
    pub fn has_no_workers(&self) {
        soon("every worker is gone and reaped", || self.workers().is_empty());
    }

    /// TERM, a clean end, and no process of it left.
    #[track_caller]
    pub fn stop(self) -> Home {
        signal(self.pid(), "TERM");
        self.ended()
    }

    /// Waits for the clean end of a daemon that was told to stop.
    #[track_caller]
    pub fn ended(self) -> Home {
        let home = self.ended_leaving_its_socket();
        assert!(!home.socket().exists(), "the socket is still there");
        home
    }

    /// As [`Daemon::ended`], of a daemon whose socket is not its own.
    #[track_caller]
    pub fn ended_leaving_its_socket(mut self) -> Home {
        let mut tree: Vec<(u32, u64)> = Vec::new();
        let status = until("the daemon ends", || {
            tree.extend(descendants(self.pid()).into_iter().filter_map(|pid| Some((pid, start_time(pid)?))));
            self.child.try_wait().expect("a child can be waited for")
        });
        assert_eq!(status.code(), Some(0), "{status}: {}", self.log_text());
        for (pid, start) in tree {
            assert!(start_time(pid) != Some(start), "process {pid} outlived the daemon: {}", self.log_text());
        }
        let panicked = self.log_text().contains("this is a bug");
        assert!(!panicked, "{}", self.log_text());
        self.home.take().expect("it is taken once")
    }

    /// KILL: the daemon gets no chance to clean up. Returns when nothing of its tree is left.
    #[track_caller]
    pub fn kill(mut self) -> Home {
        let tree: Vec<(u32, u64)> =
            descendants(self.pid()).into_iter().filter_map(|pid| Some((pid, start_time(pid)?))).collect();
        self.child.kill().expect("the daemon lives");
        self.child.wait().expect("a child can be waited for");
        for (pid, start) in tree {
            soon(&format!("process {pid} ends with the daemon"), || start_time(pid) != Some(start));
        }
        self.home.take().expect("it is taken once")
    }
}

impl Drop for Daemon {
    /// A test that failed must not leave anything behind: the guardian ends what a killed daemon leaves.
    fn drop(&mut self) {
        if self.home.is_none() {
            return;
        }
        let tree = descendants(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.log_text();
            let said: Vec<&str> = text.lines().filter(|line| !line.contains("HTTP_REQUEST")).collect();
            println!("--- log of the daemon\n{}", said.join("\n"));
        } else {
            soon("the daemon's tree ends with it", || !tree.iter().any(|pid| is_alive(*pid)));
        }
    }
}
