//! A good client: it sends a submission again under the same key until it is answered, and looks after what was accepted
//! until that has ended.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::{Connection, Request, until};

use super::load::{Random, Shared};

/// A client's tasks that are not over; beyond this it waits.
const OUTSTANDING: usize = 8;

/// Enough that no number of kills uses them up.
const PLENTY: u32 = 1000;

/// What a task may do once its daemon was killed while it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It has failed with `worker_crashed`.
    Never,
    /// It runs again from a checkpoint, if it had left one.
    FromCheckpoint,
    /// It runs again, always.
    Always,
}

/// A task that was answered 202, and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub key: String,
    pub id: String,
    pub again: Again,
    /// The task object; `None` if the daemon did not know it.
    pub task: Option<Value>,
    /// Of a completed one.
    pub result: Option<Value>,
}

struct Accepted {
    key: String,
    id: String,
    again: Again,
}

pub struct Client<'a> {
    name: usize,
    socket: &'a Path,
    shared: &'a Shared,
    random: Random,
    connection: Option<Connection>,
}

impl<'a> Client<'a> {
    pub fn new(name: usize, socket: &'a Path, shared: &'a Shared, random: Random) -> Client<'a> {
        Client { name, socket, shared, random, connection: None }
    }

    /// Until no more shall be submitted, and everything accepted has ended.
    pub fn run(mut self) -> Vec<Ended> {
        let mut outstanding: Vec<Accepted> = Vec::new();
        let mut ended = Vec::new();
        let mut submitted = 0;
        while self.shared.is_submitting() || !outstanding.is_empty() {
            if self.shared.is_submitting() && outstanding.len() < OUTSTANDING {
                submitted += 1;
                outstanding.push(self.submit(submitted));
                self.shared.accepted();
            }
            // One of them: a round of all would be most of the load.
            let index = self.random.below(outstanding.len().max(1) as u64) as usize;
            if let Some(accepted) = outstanding.get(index)
                && let Some(task) = self.look_at(&accepted.id)
            {
                let Accepted { key, id, again } = outstanding.swap_remove(index);
                let is_completed = task.as_ref().is_some_and(|task| task["state"] == "completed");
                let result = is_completed.then(|| self.answer(&format!("/v1/tasks/{id}/result")).1);
                ended.push(Ended { key, id, again, task, result });
            }
        }
        ended
    }

    fn submit(&mut self, number: u32) -> Accepted {
        let key = format!("c{}-{number}", self.name);
        let (agent, again, steps) = match self.random.below(6) {
            0 => ("oneshot", Again::Never, 0),
            1 => ("oneshot", Again::Always, 0),
            2 => ("persistent", Again::Never, 0),
            3 => ("persistent", Again::Always, 0),
            4 => ("persistent", Again::FromCheckpoint, 10),
            _ => ("persistent", Again::Always, 10),
        };
        let payload = json!({ "ms": self.random.below(60), "steps": steps, "key": key });
        let envelope = json!({
            "agent": agent,
            "idempotencyKey": key,
            "priority": self.random.below(4),
            "maxRetries": if again == Again::Always { PLENTY } else { 0 },
            "preemptible": steps > 0,
            "payload": payload,
        });
        let request = Request::json("/v1/tasks", &envelope);
        let id = self.accepted(&key, &request);
        // As a client does whose answer was lost on its way.
        if self.random.below(4) == 0 {
            let replayed = self.accepted(&key, &request);
            assert_eq!(replayed, id, "{key} is one task");
        }
        Accepted { key, id, again }
    }

    fn accepted(&mut self, key: &str, request: &Request) -> String {
        until(&format!("{key} is accepted"), || {
            let (status, body) = self.ask(request)?;
            match status {
                200 | 202 => Some(body["id"].as_str().expect("an id").to_owned()),
                429 | 503 => None,
                _ => panic!("{key}: {status} {body}"),
            }
        })
    }

    /// The task as it ended, `Some(None)` if the daemon does not know it.
    fn look_at(&mut self, id: &str) -> Option<Option<Value>> {
        let (status, task) = self.answer(&format!("/v1/tasks/{id}"));
        match status {
            200 if ["queued", "running", "preempted"].iter().any(|state| task["state"] == **state) => None,
            200 => Some(Some(task)),
            404 => Some(None),
            _ => panic!("{id}: {status} {task}"),
        }
    }

    fn answer(&mut self, path: &str) -> (u16, Value) {
        let request = Request::get(path);
        until(&format!("an answer to {path}"), || self.ask(&request))
    }

    /// `None` where the connection was lost: whether it arrived is not known.
    fn ask(&mut self, request: &Request) -> Option<(u16, Value)> {
        let mut connection = self.connection.take().or_else(|| Connection::unix(self.socket).ok())?;
        connection.send(&request.bytes()).ok()?;
        let response = connection.receive().ok()?;
        let closes = response.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        self.connection = (!closes).then_some(connection);
        Some((response.status, response.json()))
    }
}
