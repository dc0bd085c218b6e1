//! What a client does in every run, one thing after the other, and what must hold afterwards.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::common::{Connection, Daemon, Home, Request, Response, soon, until};

use super::points::Point;
use super::start::{KEPT, LARGE, Start, bytes};
use super::traced::{Phase, Traced};

const ENDS: [&str; 5] = ["completed", "failed", "cancelled", "skipped", "evicted"];

/// The daemon is gone.
#[derive(Debug)]
struct Gone;

/// A task that was answered 202.
#[derive(Debug)]
struct Known {
    id: String,
    /// The task object in its end, once the client has seen that.
    seen: Option<Value>,
    /// The result it has if it completes, where that is bytes.
    bytes: Option<Vec<u8>>,
    /// A cancellation was answered 202 before it could start.
    is_cancelled: bool,
}

pub struct Script<'a> {
    start: &'a Start,
    point: Option<&'a Point>,
    known: BTreeMap<&'static str, Known>,
    /// Submitted, and not answered.
    open: bool,
    /// It struck, and did not end the daemon: what fails then has to say why.
    forgives: bool,
}

impl<'a> Script<'a> {
    pub fn of(start: &'a Start, point: &'a Point) -> Script<'a> {
        Script { start, point: Some(point), known: BTreeMap::new(), open: false, forgives: false }
    }

    pub fn without_fault(start: &'a Start, phase: Phase, options: &[String]) -> Home {
        let mut script = Script { start, point: None, known: BTreeMap::new(), open: false, forgives: false };
        let traced =
            Traced::start(start.copy(), phase, options).unwrap_or_else(|(_, status)| panic!("it ended: {status}"));
        script.play(&traced).expect("nothing strikes");
        let (home, status) = traced.ended();
        assert_eq!(status.code(), Some(0), "{status}");
        home
    }

    /// The daemon dies at the point. Tells if it did.
    pub fn crash(mut self) -> bool {
        let home = self.start.copy();
        let options = self.options(&home);
        let (home, status) = match Traced::start(home, self.phase(), &options) {
            Ok(traced) => {
                let _ = self.play(&traced);
                traced.ended()
            }
            Err(ended) => ended,
        };
        self.verify(home);
        status.code().is_none()
    }

    /// A call fails at the point. Tells if it did.
    pub fn stumble(mut self) -> bool {
        self.forgives = true;
        let home = self.start.copy();
        let options = self.options(&home);
        let (home, status) = match Traced::start(home, self.phase(), &options) {
            Ok(traced) => {
                self.play(&traced).unwrap_or_else(|Gone| panic!("{}: it is gone", self.name()));
                traced.ended()
            }
            // What it cannot do without at its start.
            Err((home, status)) => {
                assert_eq!(status.code(), Some(71), "{}: {status}", self.name());
                (home, status)
            }
        };
        let trace = std::fs::read_to_string(home.path().join("trace")).unwrap_or_default();
        assert!(matches!(status.code(), Some(0 | 71)), "{}: {status}", self.name());
        self.verify(home);
        trace.contains("(INJECTED)")
    }

    fn phase(&self) -> Phase {
        self.point.expect("it has one").phase
    }

    fn options(&self, home: &Home) -> Vec<String> {
        self.point.expect("it has one").options(&home.path().join("state"))
    }

    fn name(&self) -> String {
        self.point.map_or("no fault".to_owned(), Point::to_string)
    }

    fn play(&mut self, daemon: &Traced) -> Result<(), Gone> {
        let (kept, broken) = (self.start.kept.clone(), self.start.broken.clone());
        self.known.insert("old", Known { seen: Some(self.start.old.clone()), ..known(&self.start.old, None) });
        self.known.insert("kept", Known { id: kept, bytes: Some(bytes(KEPT, b'k')), ..known(&json!({}), None) });
        self.known.insert("broken", Known { id: broken, ..known(&json!({}), None) });
        self.finish(daemon, "kept")?;
        self.raw(daemon, "small", bytes(20, b's'))?;
        self.finish(daemon, "small")?;
        self.raw(daemon, "large", bytes(LARGE, b'l'))?;
        self.finish(daemon, "large")?;
        let payload = json!({ "fail": "once", "retryable": true, "failAttempts": 1, "steps": 1 });
        self.sleeper(daemon, "again", payload, 1)?;
        self.finish(daemon, "again")?;
        self.submit(daemon, "fails", &Request::post("/v1/agents/fails/tasks", ""), None)?;
        self.finish(daemon, "fails")?;
        self.sleeper(daemon, "busy", json!({ "ms": 600_000, "steps": 100_000 }), 0)?;
        self.reach(daemon, "busy", |task| task["state"] != "queued")?;
        self.raw(daemon, "waiting", bytes(KEPT, b'w'))?;
        let is_cancelled = self.cancel(daemon, "waiting")?;
        self.known.get_mut("waiting").expect("submitted").is_cancelled = is_cancelled;
        self.cancel(daemon, "busy")?;
        self.finish(daemon, "busy")?;
        self.raw(daemon, "larger", bytes(LARGE, b'r'))?;
        self.finish(daemon, "larger")?;
        // Together they are more than is kept.
        if self.is_completed("large") && self.is_completed("larger") {
            let path = format!("/v1/tasks/{}", self.known["large"].id);
            self.wait(daemon, &Request::get(path), |response| response.status == 404)?;
        }
        self.sleeper(daemon, "parked", json!({ "ms": 1000, "steps": 20 }), 0)?;
        let is_on_its_way = |task: &Value| task["progress"]["percent"].as_f64().is_some_and(|percent| percent >= 10.0);
        self.reach(daemon, "parked", |task| is_on_its_way(task) || is_over(task))?;
        daemon.term();
        Ok(())
    }

    fn is_completed(&self, name: &str) -> bool {
        self.known[name].seen.as_ref().is_some_and(|task| task["state"] == "completed")
    }

    fn raw(&mut self, daemon: &Traced, name: &'static str, bytes: Vec<u8>) -> Result<(), Gone> {
        self.submit(daemon, name, &Request::post("/v1/agents/cat/tasks", bytes.clone()), Some(bytes))
    }

    fn sleeper(&mut self, daemon: &Traced, name: &'static str, payload: Value, retries: u32) -> Result<(), Gone> {
        let envelope = json!({ "agent": "sleeper", "payload": payload, "maxRetries": retries });
        self.submit(daemon, name, &Request::json("/v1/tasks", &envelope), None)
    }

    fn submit(
        &mut self,
        daemon: &Traced,
        name: &'static str,
        request: &Request,
        bytes: Option<Vec<u8>>,
    ) -> Result<(), Gone> {
        self.open = true;
        let request = request.clone().with("Idempotency-Key", name);
        let mut wrong = None;
        let response = self.wait(daemon, &request, |response| match response.status {
            200 | 202 => true,
            503 => {
                wrong = Some(response.error_code()).filter(|code| code != "storage_full");
                wrong.is_some()
            }
            _ => panic!("{name}: {response:?}"),
        })?;
        assert_eq!(wrong, None, "{}: {name} is refused: {}", self.name(), daemon.log());
        self.open = false;
        self.known.insert(name, known(&response.json(), bytes));
        Ok(())
    }

    /// Whether it never ran, and never will.
    fn cancel(&mut self, daemon: &Traced, name: &str) -> Result<bool, Gone> {
        let request = Request::new("DELETE", format!("/v1/tasks/{}", self.known[name].id));
        let response = self.wait(daemon, &request, |response| response.status != 503)?;
        assert!(matches!(response.status, 202 | 409), "{}: {name}: {response:?}", self.name());
        Ok(response.status == 202 && response.json()["state"] == "cancelled")
    }

    fn finish(&mut self, daemon: &Traced, name: &'static str) -> Result<(), Gone> {
        let task = self.reach(daemon, name, is_over)?;
        let known = &self.known[name];
        if let (Some(bytes), true) = (&known.bytes, task["state"] == "completed") {
            let request = Request::get(format!("/v1/tasks/{}/result", known.id));
            // strace counts for each thread: the same call of one that reads it for us is struck too.
            let result = self.wait(daemon, &request, |response| response.status != 500 || !self.forgives)?;
            assert!(result.status == 200 && result.body == *bytes, "{}: {name}: {}", self.name(), result.status);
        }
        self.known.get_mut(name).expect("it is known").seen = Some(task);
        Ok(())
    }

    fn reach(&self, daemon: &Traced, name: &str, mut is_there: impl FnMut(&Value) -> bool) -> Result<Value, Gone> {
        let request = Request::get(format!("/v1/tasks/{}", self.known[name].id));
        let response = self.wait(daemon, &request, |response| {
            assert_eq!(response.status, 200, "{}: {name} is lost: {}", self.name(), daemon.log());
            is_there(&response.json())
        })?;
        Ok(response.json())
    }

    /// Asks until it is the answer that is wanted.
    fn wait(
        &self,
        daemon: &Traced,
        request: &Request,
        mut is_it: impl FnMut(&Response) -> bool,
    ) -> Result<Response, Gone> {
        until(&format!("{}: an answer to {}", self.name(), request.path()), || {
            let Ok(mut connection) = Connection::unix(&daemon.home().socket()) else { return Some(Err(Gone)) };
            let _ = connection.send(&request.bytes());
            match connection.receive() {
                Ok(response) => is_it(&response).then_some(Ok(response)),
                Err(_) => Some(Err(Gone)),
            }
        })
    }

    /// A daemon without faults, twice.
    fn verify(&self, home: Home) {
        let name = self.name();
        let daemon = home.start();
        if let Some(busy) = self.known.get("busy") {
            let status = daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{}", busy.id))).status;
            assert!(matches!(status, 202 | 409), "{name}: busy: {status}");
        }
        let listed = daemon.get("/v1/tasks?limit=100").json()["tasks"].as_array().expect("a list").clone();
        let id = |task: &Value| task["id"].as_str().expect("an id").to_owned();
        // A submission that could not be written was refused, and is withdrawn.
        let is_withdrawn = |task: &&Value| self.forgives && task["state"] == "cancelled";
        let strangers = listed.iter().filter(|task| !is_withdrawn(task)).map(id);
        let strangers: Vec<String> = strangers.filter(|id| !self.known.values().any(|known| known.id == *id)).collect();
        // Before the first step of the client it knows nothing.
        if !self.known.is_empty() {
            assert!(strangers.len() <= usize::from(self.open), "{name}: {strangers:?}");
        }
        for stranger in &strangers {
            daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{stranger}")));
            daemon.finished(stranger);
        }
        let kept = known(&self.start.old, None);
        let always = [("old", &kept)].into_iter().filter(|_| self.known.is_empty());
        for (task, known) in self.known.iter().map(|(task, known)| (*task, known)).chain(always) {
            self.verify_one(&daemon, task, known);
        }
        soon(&format!("{name}: every file is a task's"), || self.unowned(&daemon).is_empty());
        assert!(!daemon.path().join("state/damaged").exists(), "{name}: something is damaged");
        let before = daemon.get("/v1/tasks?limit=100").json();
        let daemon = daemon.kill().start();
        assert_eq!(daemon.get("/v1/tasks?limit=100").json(), before, "{name}: another start, another state");
        let after = daemon.post("/v1/agents/cat/tasks?wait=30", bytes(2000, b'a')).expect(200);
        assert!(after.body == bytes(2000, b'a'), "{name}: it works");
        daemon.kill();
    }

    fn verify_one(&self, daemon: &Daemon, task: &str, known: &Known) {
        let name = self.name();
        let path = format!("/v1/tasks/{}", known.id);
        // Two large ones are more than is kept, and which of them ended first is told by what was seen.
        let is_larger_there = self.known.contains_key("larger") || self.open;
        let may_go = is_larger_there && matches!(task, "large" | "old" | "kept" | "broken" | "small");
        if may_go && daemon.get(&path).status == 404 {
            return;
        }
        assert_eq!(daemon.get(&path).status, 200, "{name}: {task} is lost");
        let end = daemon.finished(&known.id);
        if let Some(seen) = &known.seen {
            assert_eq!(end, *seen, "{name}: {task} is not what it was");
        }
        let code = end["error"]["code"].as_str();
        let is_told = end["error"]["message"].as_str().is_some_and(|message| !message.is_empty());
        let is_right = match end["state"].as_str().expect("a state") {
            "completed" => !known.is_cancelled && !matches!(task, "fails" | "busy" | "broken"),
            "cancelled" => known.is_cancelled || matches!(task, "busy" | "waiting"),
            "failed" if known.is_cancelled => false,
            "failed" => {
                let is_the_crash = match task {
                    "old" => false,
                    "fails" => matches!(code, Some("agent_failed" | "worker_crashed")),
                    "again" => matches!(code, Some("retries_exhausted" | "worker_crashed")),
                    // Queued until the fault: it has to run.
                    _ => code == Some("worker_crashed"),
                };
                is_told && (is_the_crash || self.forgives)
            }
            _ => false,
        };
        assert!(is_right, "{name}: {task} has ended so: {end}");
        if let (Some(bytes), "completed") = (&known.bytes, end["state"].as_str().expect("a state")) {
            let result = daemon.get(&format!("{path}/result")).expect(200);
            assert!(result.body == *bytes, "{name}: {task}: another result of {} bytes", result.body.len());
        }
    }

    /// Files below the state directory that are not the result of a finished task, all tasks having ended.
    fn unowned(&self, daemon: &Daemon) -> Vec<String> {
        let mut unowned = Vec::new();
        for directory in ["payloads", "checkpoints", "results"] {
            for entry in std::fs::read_dir(daemon.path().join("state").join(directory)).expect("it is there") {
                let file = entry.expect("it can be read").file_name().into_string().expect("text");
                let task = daemon.get(&format!("/v1/tasks/{file}"));
                let is_result = directory == "results" && task.status == 200 && task.json()["state"] == "completed";
                if !is_result {
                    unowned.push(format!("{directory}/{file}"));
                }
            }
        }
        unowned
    }
}

fn known(task: &Value, bytes: Option<Vec<u8>>) -> Known {
    let id = task["id"].as_str().unwrap_or_default().to_owned();
    Known { id, seen: None, bytes, is_cancelled: false }
}

fn is_over(task: &Value) -> bool {
    ENDS.iter().any(|end| task["state"] == **end)
}
