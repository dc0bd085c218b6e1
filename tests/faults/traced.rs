//! A daemon of which strace(1) holds the threads, and nothing else: a traced worker could not be reaped as others are.

use std::process::{Child, ExitStatus};

use crate::common::{Connection, Home, Request, children, command, signal, soon, until};

/// What is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The first thread, from its first call on.
    Start,
    /// All threads, from when the daemon answers.
    Work,
}

pub struct Traced {
    home: Option<Home>,
    /// The parent of the daemon in [`Phase::Start`].
    strace: Option<Child>,
    /// In [`Phase::Work`].
    daemon: Option<Child>,
}

impl Traced {
    /// `Err`: it has ended before it answered.
    pub fn start(home: Home, phase: Phase, options: &[String]) -> Result<Traced, (Home, ExitStatus)> {
        let log = std::fs::File::create(home.path().join("log-traced")).expect("the directory can be written");
        let mut line = match phase {
            Phase::Start => strace(&home, options),
            Phase::Work => command(env!("CARGO_BIN_EXE_kurultaid")),
        };
        if phase == Phase::Start {
            line.arg("--").arg(env!("CARGO_BIN_EXE_kurultaid"));
        }
        let line = line.arg("--config").arg(home.config()).stderr(log);
        let child = line.spawn().unwrap_or_else(|error| panic!("cannot start {line:?}: {error}; install it"));
        let mut traced = match phase {
            Phase::Start => Traced { home: Some(home), strace: Some(child), daemon: None },
            Phase::Work => Traced { home: Some(home), strace: None, daemon: Some(child) },
        };
        let ended = until("the daemon answers", || {
            if let Some(status) = traced.status() {
                return Some(Some(status));
            }
            let mut connection = Connection::unix(&traced.home().socket()).ok()?;
            connection.send(&Request::get("/health?live").bytes()).ok()?;
            connection.receive().ok().filter(|response| response.status == 200).map(|_| None)
        });
        if let Some(status) = ended {
            return Err((traced.home.take().expect("it is taken once"), status));
        }
        if phase == Phase::Work {
            traced.attach(options);
        }
        Ok(traced)
    }

    fn attach(&mut self, options: &[String]) {
        let threads = self.threads();
        let mut line = strace(self.home(), options);
        for thread in &threads {
            line.args(["-p", thread]);
        }
        self.strace = Some(line.spawn().expect("strace can be started"));
        let pid = self.pid();
        let is_traced = move |thread: &String| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
        };
        // The first it holds may strike before it has the last.
        soon("strace holds every thread", || threads.iter().all(is_traced) || self.status().is_some());
    }

    fn threads(&self) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the daemon lives");
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    fn pid(&self) -> u32 {
        match (&self.daemon, &self.strace) {
            (Some(daemon), _) => daemon.id(),
            (None, strace) => strace.iter().flat_map(|strace| children(strace.id())).next().unwrap_or(0),
        }
    }

    /// Of the daemon, once it has ended: strace ends as what it has started.
    fn status(&mut self) -> Option<ExitStatus> {
        let child = self.daemon.as_mut().or(self.strace.as_mut()).expect("one of them was started");
        child.try_wait().expect("our child")
    }

    pub fn home(&self) -> &Home {
        self.home.as_ref().expect("it is taken at the end")
    }

    /// What it said, for a test that fails.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.home().path().join("log-traced")).unwrap_or_default();
        text.lines().filter(|line| !line.contains("HTTP_REQUEST")).collect::<Vec<_>>().join("\n")
    }

    pub fn kill(&self) {
        signal(self.pid(), "KILL");
    }

    pub fn term(&self) {
        let pid = self.pid();
        if pid > 0 {
            signal(pid, "TERM");
        }
    }

    /// Waits until both have ended.
    pub fn ended(mut self) -> (Home, ExitStatus) {
        let status = until("the daemon ends", || self.status());
        if let Some(strace) = &mut self.strace {
            until("strace ends with it", || strace.try_wait().expect("our child"));
        }
        (self.home.take().expect("it is taken once"), status)
    }
}

fn strace(home: &Home, options: &[String]) -> std::process::Command {
    let mut line = command("strace");
    line.args(["-qq", "-y", "-o"]).arg(home.path().join("trace")).args(options);
    line
}

impl Drop for Traced {
    /// strace lets go of what it traces when it is killed: the daemon goes first.
    fn drop(&mut self) {
        if self.home.is_some() {
            println!("{}", self.log());
            let pid = self.pid();
            if pid > 0 && self.status().is_none() {
                signal(pid, "KILL");
            }
        }
        for child in [&mut self.daemon, &mut self.strace].into_iter().flatten() {
            let _ = child.wait();
        }
    }
}
