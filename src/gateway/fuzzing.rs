//! What the gateway makes of the first bytes of a connection, for tests/fuzz, which cannot see its rooms. Nothing in the
//! programs calls it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::access::Access;
use super::answer::{self, Problem, Reply};
use super::conn::Peer;
pub use super::head::HEAD_MAX;
use super::head::{self, Head};
use super::routes::{self, Target};
use super::submit;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The head is not whole yet.
    Incomplete,
    /// The door answers it, and closes.
    Refused(Refusal),
    Taken(Taken),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub head_length: usize,
    pub content_length: Option<u64>,
    pub is_chunked: bool,
    /// All of the head and what it asks for, as text to be compared.
    pub understood: String,
    /// A handler refuses it without asking anybody.
    pub refusal: Option<Refusal>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub message: String,
}

/// What `bytes`, all that has come on a connection, mean to the door and to a handler after it.
pub fn read(bytes: &[u8]) -> Verdict {
    judge(bytes).0
}

/// The refusal of `bytes` as it is sent.
pub fn answer(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, unsent) = judge(bytes);
    unsent.map(|Unsent { problem, request_id, is_http_1_0 }| {
        answer::wire(&Reply::from(problem), &request_id, false, is_http_1_0, false)
    })
}

struct Unsent {
    problem: Problem,
    request_id: Arc<str>,
    is_http_1_0: bool,
}

fn judge(bytes: &[u8]) -> (Verdict, Option<Unsent>) {
    match head::parse(bytes) {
        Ok(None) => (Verdict::Incomplete, None),
        Err(problem) => {
            let verdict = Verdict::Refused(Refusal::from(&problem));
            (verdict, Some(Unsent { problem, request_id: Arc::from("r-1"), is_http_1_0: false }))
        }
        Ok(Some((head, head_length))) => {
            let request_id = head.request_id.clone().unwrap_or_else(|| Arc::from("r-1"));
            let (understood, problem) = understand(&head, &request_id);
            let taken = Taken {
                head_length,
                content_length: head.content_length,
                is_chunked: head.is_chunked,
                understood,
                refusal: problem.as_ref().map(Refusal::from),
            };
            let is_http_1_0 = head.is_http_1_0;
            (Verdict::Taken(taken), problem.map(|problem| Unsent { problem, request_id, is_http_1_0 }))
        }
    }
}

fn understand(head: &Head, request_id: &Arc<str>) -> (String, Option<Problem>) {
    let client = Peer::Network(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let (route, target) = routes::route(head);
    let target = Access::new(None, "127.0.0.1:7700", &[]).check(client, head).and(target);
    let mut understood = format!("{head:?} {route:?} {target:?}");
    let outcome = match target {
        Ok(Target::SubmitRaw { agent, query }) => submit::raw(head, agent, *query, request_id.clone())
            .map(|submission| understood.push_str(&format!(" {submission:?}"))),
        Ok(Target::SubmitEnvelope { .. }) => submit::check_envelope_type(head),
        other => other.map(|_| ()),
    };
    (understood, outcome.err())
}

impl From<&Problem> for Refusal {
    fn from(problem: &Problem) -> Refusal {
        Refusal { status: problem.status, message: problem.message.clone() }
    }
}
