//! Memory as the daemon tells it, ballast that is where a test wants it to be, and a program that leaks.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::config;
use super::daemon::Daemon;
use super::wait::{soon, until};

pub const MIB: u64 = 1 << 20;

/// What ballast comes in, from tests/agents/ballast.
const PIECE: u64 = 256 << 10;

/// How close to a share of the limit ballast comes: readings are told to 1 MiB.
const TOLERANCE: f64 = 0.009;

/// examples/leak.rs, which cargo builds beside the tests.
pub fn leak() -> String {
    let mut path = std::env::current_exe().expect("it runs");
    path.pop();
    path.pop();
    path.push("examples/leak");
    assert!(path.is_file(), "{} is not there: build it with cargo build --examples", path.display());
    path.display().to_string()
}

/// The ballast agent under several names: what one has held is expected of the others of its name.
pub fn ballast(names: &[&str], more: &str) -> String {
    names.iter().map(|name| config::worker(name, "tests/agents/ballast", more)).collect()
}

/// `/v1/memory`.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    pub level: String,
    pub incident: Option<String>,
    pub usage: u64,
    pub limit: u64,
    pub sampled_at: String,
}

impl Memory {
    /// `None` before the first reading.
    pub fn of(daemon: &Daemon) -> Option<Memory> {
        let object = daemon.get("/v1/memory").expect(200).json();
        Some(Memory {
            level: object["level"].as_str().expect("a level").to_owned(),
            incident: object["incident"].as_str().map(str::to_owned),
            usage: object.get("usageBytes")?.as_u64().expect("bytes"),
            limit: object["limitBytes"].as_u64().expect("bytes"),
            sampled_at: object["sampledAt"].as_str().expect("a time").to_owned(),
        })
    }

    pub fn ratio(&self) -> f64 {
        self.usage as f64 / self.limit as f64
    }

    /// Nothing grows or shrinks at the moment: what is told has been the same for many looks in a row. A change of 1 MiB is
    /// told within 50 ms of its reading.
    #[track_caller]
    pub fn at_rest(daemon: &Daemon) -> Memory {
        const LOOKS: u32 = 30;
        let (mut last, mut same) = (0, 0);
        until("memory is at rest", || {
            let now = Memory::of(daemon)?;
            same = if now.usage.abs_diff(last) < MIB { same + 1 } else { 0 };
            last = now.usage;
            (same >= LOOKS).then_some(now)
        })
    }
}

/// A running task of tests/agents/ballast.
pub struct Ballast {
    pub task: String,
    control: PathBuf,
    held: u64,
}

impl Ballast {
    /// A task of the agent of that name, at priority critical, so that there is always something before it that can be preempted or killed.
    #[track_caller]
    pub fn start(daemon: &Daemon, name: &str) -> Ballast {
        Ballast::start_with(daemon, name, 0, json!({ "priority": "critical" }))
    }

    /// Holds `bytes` from the start; `more`: further fields of the envelope.
    #[track_caller]
    pub fn start_with(daemon: &Daemon, name: &str, bytes: u64, more: Value) -> Ballast {
        let ballast = Ballast::submit(daemon, name, bytes, more);
        ballast.is_held(daemon);
        ballast
    }

    /// As [`Ballast::start_with`], not waiting until it runs.
    #[track_caller]
    pub fn submit(daemon: &Daemon, name: &str, bytes: u64, more: Value) -> Ballast {
        let control = daemon.path().join(format!("{name}.hold"));
        let mut envelope = json!({ "agent": name, "payload": { "control": control } });
        for (key, value) in more.as_object().expect("fields of an envelope") {
            if key == "deaf" {
                envelope["payload"][key] = value.clone();
            } else {
                envelope[key] = value.clone();
            }
        }
        let mut ballast = Ballast { task: String::new(), control, held: 0 };
        ballast.hold(bytes);
        ballast.task = daemon.accept_with(envelope);
        ballast
    }

    /// It has reported that it holds what it was told to at first.
    #[track_caller]
    pub fn is_held(&self, daemon: &Daemon) {
        soon("the ballast is held", || daemon.task(&self.task)["progress"]["percent"] == 10.0);
    }

    pub fn hold(&mut self, bytes: u64) {
        self.held = bytes.next_multiple_of(PIECE);
        self.write(&self.held.to_string());
    }

    /// The task comes to its end.
    pub fn end(&self) {
        self.write("end");
    }

    fn write(&self, text: &str) {
        let new = self.control.with_extension("new");
        fs::write(&new, text).expect("the directory can be written");
        fs::rename(new, &self.control).expect("the directory can be written");
    }

    /// Brings what the daemon counts to this share of its limit, and returns the reading that says so. It goes there from one
    /// side, in few steps, each from where memory is at rest.
    #[track_caller]
    pub fn bring_to(&mut self, daemon: &Daemon, share: f64) -> Memory {
        until(&format!("memory is at {share}"), || {
            self.push_to(daemon, share);
            Some(Memory::at_rest(daemon)).filter(|memory| (memory.ratio() - share).abs() < TOLERANCE)
        })
    }

    /// One step of that, where the daemon may answer with an action at once.
    #[track_caller]
    pub fn push_to(&mut self, daemon: &Daemon, share: f64) {
        let now = Memory::at_rest(daemon);
        let goal = (share * now.limit as f64) as u64;
        self.hold((self.held + goal).saturating_sub(now.usage));
    }
}

/// A series of `/metrics`; 0 if it is not there.
#[track_caller]
pub fn metric(daemon: &Daemon, series: &str) -> f64 {
    let text = daemon.get("/metrics").expect(200).text();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}
