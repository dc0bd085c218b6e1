//! Submissions, from their heads to their drafts. What would be refused all the same is refused before its body has come:
//! the scheduler is asked first where the body is large, or where the client waits for leave to send it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::answer::Problem;
use super::body::{Body, ENVELOPE_MAX};
use super::exchange::{Exchange, Plan};
use super::handler::Handler;
use super::head::Head;
use super::query::Query;
use super::submit;
use crate::core::ids::TaskId;
use crate::scheduler::call::{Draft, Request};

/// A body of at most this many bytes costs less than asking whether it is wanted: kurultai-api(7).
pub const SMALL_BODY_MAX: u64 = 16 * 1024;

/// A submission whose body has not been read.
#[derive(Debug)]
pub struct Upload {
    task: TaskId,
    length: u64,
    wait: Option<Duration>,
    /// The client waits for 100 Continue.
    pub wants_leave: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// With the idempotency key of the head.
    Envelope(Option<Arc<str>>),
    Raw(Box<Draft>),
}

impl Upload {
    pub fn envelope(head: &Head, length: u64, task: TaskId, wait: Option<Duration>) -> Result<Upload, Problem> {
        submit::check_envelope_type(head)?;
        if length > ENVELOPE_MAX {
            let message = format!(
                "an envelope of {length} bytes is over {ENVELOPE_MAX}: send a large payload raw to /v1/agents/NAME/tasks"
            );
            return Err(Problem::new(413, "payload_too_large", message));
        }
        let kind = Kind::Envelope(head.idempotency_key.clone());
        Ok(Upload { task, length, wait, wants_leave: head.wants_leave(), kind })
    }

    pub fn raw(
        head: &Head,
        length: u64,
        task: TaskId,
        (agent, query): (Arc<str>, Query),
        request_id: Arc<str>,
    ) -> Result<Upload, Problem> {
        let (draft, wait) = submit::raw(head, agent, query, request_id)?;
        Ok(Upload { task, length, wait, wants_leave: head.wants_leave(), kind: Kind::Raw(Box::new(draft)) })
    }

    /// The question whether it would be taken, if it is worth asking.
    pub fn probe(&self) -> Option<Request> {
        let draft = match &self.kind {
            // Which agent it is for stands in the body.
            Kind::Envelope(_) => None,
            Kind::Raw(draft) => Some(draft.clone()),
        };
        (self.wants_leave || self.length > SMALL_BODY_MAX).then_some(Request::Probe { task: self.task, draft })
    }
}

impl Handler {
    /// The length of a submission's body.
    pub(super) fn body_length(&self, head: &Head) -> Result<u64, Problem> {
        let length = head.content_length.ok_or_else(|| {
            Problem::new(411, "length_required", "the request has no Content-Length: send the length of the body")
        })?;
        let max = self.shared.max_body.load(Ordering::Relaxed);
        if length > max {
            return Err(Problem::new(
                413,
                "payload_too_large",
                format!("a body of {length} bytes is over gateway.max_body_mb = {}: send less, or raise it", max >> 20),
            ));
        }
        Ok(length)
    }

    /// Reads the body, for which the exchange gets its plan.
    pub(super) fn receive(&self, exchange: &mut Exchange, upload: Upload) -> Result<Request, Problem> {
        let Upload { task, length, wait, wants_leave, kind } = upload;
        if wants_leave {
            // A client that does not get it sends its body after a while all the same (RFC 9110, section 10.1.1).
            let _ = exchange.conn.socket.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let shared = &self.shared;
        let mut body = Body::new(&mut exchange.conn, length, &shared.patience);
        exchange.is_body_read = true;
        let (draft, plan) = match kind {
            Kind::Envelope(key) => {
                let bytes = body.read_all();
                drop(body);
                let bytes = bytes.inspect_err(|_| exchange.cut_short())?;
                let request_id = exchange.request_id.clone();
                let draft = submit::envelope(key.as_ref(), &bytes, task, &shared.files, request_id)?;
                (draft, Plan::TaskObject)
            }
            Kind::Raw(draft) => {
                let payload = match submit::raw_payload(draft.payload_kind, &mut body, task, &shared.files) {
                    Ok(payload) => payload,
                    Err(problem) => {
                        match body.rest() {
                            Some(rest) => exchange.skip(rest),
                            None => exchange.cut_short(),
                        }
                        return Err(problem);
                    }
                };
                let plan = if wait.is_some() { Plan::ResultItself } else { Plan::TaskObject };
                (Draft { payload, ..*draft }, plan)
            }
        };
        exchange.plan = plan;
        Ok(Request::Submit { task, draft: Box::new(draft), wait })
    }

    /// It would be taken, as things stand.
    pub(super) fn upload(&self, mut exchange: Exchange, upload: Upload) {
        match self.receive(&mut exchange, upload) {
            Ok(request) => self.call(exchange, request),
            Err(problem) => self.finish(exchange, problem.into()),
        }
    }

    /// It would not be taken: its body is not wanted.
    pub(super) fn decline(exchange: &mut Exchange, upload: &Upload) {
        exchange.decline_body(upload.length, upload.wants_leave);
    }
}
