//! What every run starts from: the state directory of a daemon that was killed, with something of everything in it.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::{Home, Request, run, worker};

pub const LARGE: usize = 600 * 1024;

/// One worker, so that all happens in turn; results of two large tasks are more than is kept.
pub fn config() -> String {
    format!(
        "[daemon]\ndrain_timeout_s = 5\n[workers]\nmax = 1\ncancel_grace_ms = 100\n\
         [queue]\nmax_depth = 20\npriority_limits = {{ normal = 20 }}\n[spool]\nretention_mb = 1\n\
         [agents.cat]\ncommand = [\"cat\"]\n[agents.fails]\ncommand = [\"false\"]\n{}",
        worker("sleeper", "tests/agents/sleeper", "")
    )
}

pub fn bytes(length: usize, letter: u8) -> Vec<u8> {
    vec![letter; length]
}

pub struct Start {
    home: Home,
    /// Finished, its result a file.
    pub old: Value,
    /// Not started, its payload a file of [`KEPT`].
    pub kept: String,
    /// Running, without retries.
    pub broken: String,
}

pub const KEPT: usize = 100 * 1024;

impl Start {
    pub fn make() -> Start {
        let daemon = Home::new(&config()).start();
        let old = daemon.post("/v1/agents/cat/tasks?wait=30", bytes(2000, b'o')).expect(200);
        let old = daemon.task(old.header("X-Task-Id").expect("an id"));
        let broken = daemon.accept("sleeper", json!({ "ms": 600_000, "steps": 1 }));
        daemon.in_state(&broken, &["running"]);
        let kept = daemon.ask(&Request::post("/v1/agents/cat/tasks", bytes(KEPT, b'k'))).expect(202).json();
        let kept = kept["id"].as_str().expect("an id").to_owned();
        Start { home: daemon.kill(), old, kept, broken }
    }

    /// A home of its own with this state.
    pub fn copy(&self) -> Home {
        let home = Home::new(&config());
        let from: PathBuf = self.home.path().join("state");
        run("cp", ["-a".as_ref(), from.as_os_str(), home.path().as_os_str()], b"").expect(0);
        home
    }
}
