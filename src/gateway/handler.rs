//! Handlers: a few threads that understand a request, ask the scheduler, and write its answer. None of them waits for a
//! task, nor for a client that reads slowly.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, select_biased};

use super::access::Access;
use super::answer::{self, Body as AnswerBody, NDJSON, Problem, Reply};
use super::body::{Body, ENVELOPE_MAX, Patience};
use super::conn::Conn;
use super::door::{Arrival, Return};
use super::exchange::{Command, CommandPort, Exchange, Plan, RequestIds};
use super::head::{self, Head, Method};
use super::outgoing::{Progress, Sending};
use super::rate::SubmitRate;
use super::render::{self, Rendered};
use super::routes::{self, BreakerCall, Target};
use super::{page, query, submit};
use crate::core::event::BreakerRequest;
use crate::metrics::{HttpMetrics, Route};
use crate::scheduler::call::{Answer, Call, Draft, Follow, Reply as SchedulerReply, Request};
use crate::spool::{Files, TaskIds};
use crate::sys::clock::Clock;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::eventfd::EventFd;
use crate::sys::socket::wait_readable;

/// What the handlers share; none of it is policy.
pub struct Shared {
    pub access: Access,
    pub files: Files,
    pub ids: TaskIds,
    pub clock: Clock,
    pub metrics: Arc<HttpMetrics>,
    pub open: Arc<std::sync::atomic::AtomicUsize>,
    pub epoll: Arc<Epoll>,
    pub bell: Arc<EventFd>,
    pub patience: Patience,
    /// `gateway.max_body_mb` in bytes; a reload changes it.
    pub max_body: Arc<AtomicU64>,
    pub request_ids: Arc<RequestIds>,
    pub rate: SubmitRate,
    /// One handler is waiting for a client's next request.
    pub is_lingering: AtomicBool,
}

pub struct HandlerPorts {
    pub arrivals_rx: Receiver<Arrival>,
    pub replies_rx: Receiver<SchedulerReply<Box<Exchange>>>,
    pub calls_tx: Sender<Call<Box<Exchange>>>,
    pub returns_tx: Sender<Return>,
    pub commands: CommandPort,
}

pub struct Handler {
    shared: Arc<Shared>,
    ports: HandlerPorts,
    /// A connection just answered, whose next request may be on its way.
    lingering: Cell<Option<Conn>>,
}

/// How long a handler that has nothing else to do waits for a client's next request itself. A client that works through
/// a list sends it at once, and the way through the door would cost it a wake-up more. One handler at most.
const LINGER: Duration = Duration::from_millis(1);

impl Handler {
    pub fn new(shared: Arc<Shared>, ports: HandlerPorts) -> Handler {
        Handler { shared, ports, lingering: Cell::new(None) }
    }

    /// Runs until the door or the scheduler is gone. Answers go before new requests: they free what others wait for.
    pub fn run(self) {
        loop {
            select_biased! {
                recv(self.ports.replies_rx) -> reply => match reply {
                    Ok(reply) => self.answered(reply),
                    Err(_) => return,
                },
                recv(self.ports.arrivals_rx) -> arrival => match arrival {
                    Ok(arrival) => self.arrived(arrival),
                    Err(_) => return,
                },
            }
            while let Some(conn) = self.lingering.take() {
                self.linger(conn);
            }
        }
    }

    fn linger(&self, mut conn: Conn) {
        let is_here = wait_readable(&*conn.socket, LINGER).unwrap_or(false);
        self.shared.is_lingering.store(false, Ordering::Release);
        if !is_here {
            return self.give_back(Return::Idle(conn), Interest::Readable);
        }
        let mut buffer = [0_u8; 2048];
        match conn.socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => conn.unread.extend_from_slice(&buffer[..count]),
            // The door finds out what is wrong with it.
            Err(_) => return self.give_back(Return::Idle(conn), Interest::Readable),
        }
        match head::parse(&conn.unread) {
            Ok(Some((head, length))) => {
                conn.unread.drain(..length);
                self.arrived(Arrival { conn, head: Box::new(head) });
            }
            Ok(None) | Err(_) => self.give_back(Return::Idle(conn), Interest::Readable),
        }
    }

    fn may_linger(&self, conn: &Conn) -> bool {
        conn.unread.is_empty()
            && self.ports.replies_rx.is_empty()
            && self.ports.arrivals_rx.is_empty()
            && !self.shared.is_lingering.swap(true, Ordering::AcqRel)
    }

    fn arrived(&self, arrival: Arrival) {
        let Arrival { conn, head } = arrival;
        let request_id = head.request_id.clone().unwrap_or_else(|| self.shared.request_ids.take());
        let (route, target) = routes::route(&head);
        let mut exchange = Exchange {
            conn,
            plan: Plan::Plain,
            route,
            is_head: head.method == Method::Head,
            is_http_1_0: head.is_http_1_0,
            keeps_alive: head.keeps_alive,
            request_id,
            started: self.shared.clock.now(),
            is_body_read: false,
        };
        let target = self.shared.access.check(exchange.conn.peer, &head).and(target);
        let outcome = target.and_then(|target| self.ask(&mut exchange, &head, target));
        match outcome {
            Ok(Asked::Scheduler(request)) => self.call(exchange, request),
            Ok(Asked::Main) => self.command(Command::Reload(Box::new(exchange))),
            Ok(Asked::Nobody(reply)) => self.finish(exchange, reply),
            Err(problem) => {
                if !exchange.is_body_read {
                    exchange.keeps_alive &= self.skip_body(&mut exchange.conn, &head);
                }
                let is_for_a_reader = exchange.route == Route::Page && head.accepts_html;
                let reply = if is_for_a_reader { page::problem(problem) } else { problem.into() };
                self.finish(exchange, reply);
            }
        }
    }

    /// Reads the body and finds whom to ask what.
    fn ask(&self, exchange: &mut Exchange, head: &Head, target: Target) -> Result<Asked, Problem> {
        if head.is_chunked {
            exchange.keeps_alive = false;
            return Err(Problem::new(
                411,
                "length_required",
                "bodies are taken with a Content-Length only, not chunked: send the length",
            ));
        }
        if matches!(target, Target::SubmitEnvelope { .. } | Target::SubmitRaw { .. }) {
            self.shared.rate.take(exchange.conn.peer, exchange.started)?;
        }
        let (request, plan) = match target {
            Target::SubmitEnvelope { wait } => (self.submit_envelope(exchange, head, wait)?, Plan::TaskObject),
            Target::SubmitRaw { agent, query } => self.submit_raw(exchange, head, agent, *query)?,
            other => {
                let permit = self.small_body(exchange, head, &other)?;
                match other {
                    Target::List(filter) => (Request::Tasks(filter), Plan::Plain),
                    Target::Show(task) => (Request::Task { task }, Plan::TaskObject),
                    Target::Result(task) => (Request::Task { task }, Plan::Result),
                    Target::Why(task) => (Request::Why { task }, Plan::Plain),
                    Target::Cancel(task) => (Request::Cancel { task }, Plan::Plain),
                    Target::Decisions { limit } => (Request::Decisions { limit }, Plan::Plain),
                    Target::Status(part) => (Request::Status, Plan::Status(part)),
                    Target::Health { live: true } => (Request::Ping, Plan::Health),
                    Target::Health { live: false } => (Request::Status, Plan::Health),
                    Target::Metrics => (Request::Scrape, Plan::Metrics),
                    Target::Page => (Request::Overview { decisions: page::DECISIONS }, Plan::Page),
                    Target::Breaker { name, request } => {
                        let plan = match request {
                            BreakerCall::Plain(_) => Plan::Plain,
                            BreakerCall::Success(_) | BreakerCall::Failure(_) => Plan::Report,
                        };
                        (Request::Breaker { name, request: breaker_request(request, permit)? }, plan)
                    }
                    Target::Follow(what) => {
                        if exchange.is_http_1_0 {
                            return Err(Problem::invalid("event streams need HTTP/1.1: use a client that speaks it"));
                        }
                        let request = match &what {
                            Follow::Task(task) => Request::Task { task: *task },
                            Follow::Events(_) => Request::Ping,
                        };
                        (request, Plan::Follow(what))
                    }
                    Target::Reload => return Ok(Asked::Main),
                    Target::Drain => {
                        self.command(Command::Drain);
                        let state = serde_json::json!({ "state": "draining" });
                        return Ok(Asked::Nobody(Reply::json(202, &state)));
                    }
                    Target::SubmitEnvelope { .. } | Target::SubmitRaw { .. } => unreachable!("taken above"),
                }
            }
        };
        exchange.plan = plan;
        Ok(Asked::Scheduler(request))
    }

    fn submit_envelope(
        &self,
        exchange: &mut Exchange,
        head: &Head,
        wait: Option<Duration>,
    ) -> Result<Request, Problem> {
        submit::check_envelope_type(head)?;
        let length = self.body_length(head)?;
        if length > ENVELOPE_MAX {
            return Err(Problem::new(
                413,
                "payload_too_large",
                format!(
                    "an envelope of {length} bytes is over {ENVELOPE_MAX}: send a large payload raw to /v1/agents/NAME/tasks"
                ),
            ));
        }
        self.go_on(exchange, head);
        let body = Body::new(&mut exchange.conn, length, &self.shared.patience).read_all();
        exchange.is_body_read = true;
        let body = body.inspect_err(|_| exchange.keeps_alive = false)?;
        let task = self.shared.ids.take();
        let draft = submit::envelope(head, &body, task, &self.shared.files, exchange.request_id.clone())?;
        Ok(Request::Submit { task, draft: Box::new(draft), wait })
    }

    fn submit_raw(
        &self,
        exchange: &mut Exchange,
        head: &Head,
        agent: Arc<str>,
        query: query::Query,
    ) -> Result<(Request, Plan), Problem> {
        let (draft, wait) = submit::raw(head, agent, query, exchange.request_id.clone())?;
        let length = self.body_length(head)?;
        self.go_on(exchange, head);
        let task = self.shared.ids.take();
        let mut body = Body::new(&mut exchange.conn, length, &self.shared.patience);
        let payload = submit::raw_payload(draft.payload_kind, &mut body, task, &self.shared.files);
        exchange.is_body_read = true;
        let payload = match payload {
            Ok(payload) => payload,
            Err(problem) => {
                exchange.keeps_alive &= body.discard();
                return Err(problem);
            }
        };
        let draft = Draft { payload, ..draft };
        let plan = if wait.is_some() { Plan::ResultItself } else { Plan::TaskObject };
        Ok((Request::Submit { task, draft: Box::new(draft), wait }, plan))
    }

    fn body_length(&self, head: &Head) -> Result<u64, Problem> {
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

    /// The client waits for leave to send its body.
    fn go_on(&self, exchange: &Exchange, head: &Head) {
        if head.expects_continue && head.content_length.is_some_and(|length| length > 0) {
            // A client that does not get it sends its body after a while all the same (RFC 9110, section 10.1.1).
            let _ = exchange.conn.socket.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// The body of a request that has none, or at most a permit.
    fn small_body(&self, exchange: &mut Exchange, head: &Head, target: &Target) -> Result<Vec<u8>, Problem> {
        let length = head.content_length.unwrap_or(0);
        if length == 0 {
            return Ok(Vec::new());
        }
        let wants_permit =
            matches!(target, Target::Breaker { request: BreakerCall::Success(None) | BreakerCall::Failure(None), .. });
        if wants_permit && length <= 1024 {
            self.go_on(exchange, head);
            let body = Body::new(&mut exchange.conn, length, &self.shared.patience).read_all();
            exchange.is_body_read = true;
            return body.inspect_err(|_| exchange.keeps_alive = false);
        }
        exchange.is_body_read = true;
        exchange.keeps_alive &= self.skip_body(&mut exchange.conn, head);
        Ok(Vec::new())
    }

    /// Whether the connection can go on: the body that nobody wants is read if it is short.
    fn skip_body(&self, conn: &mut Conn, head: &Head) -> bool {
        // A client that waits for 100 Continue has not sent it, and may or may not.
        if head.is_chunked || head.expects_continue {
            return false;
        }
        match head.content_length {
            None | Some(0) => true,
            Some(length) => Body::new(conn, length, &self.shared.patience).discard(),
        }
    }

    fn call(&self, exchange: Exchange, request: Request) {
        let from = exchange.conn.id;
        let socket = exchange.conn.socket.clone();
        let waits = matches!(&request, Request::Submit { wait: Some(wait), .. } if !wait.is_zero());
        // INVARIANT: armed before it is sent. Afterwards another thread may have answered and armed it for reading.
        if waits && let Err(error) = self.shared.epoll.arm(socket.as_fd(), from, Interest::HangUp) {
            log::debug!("a client that waits cannot be watched: {error}");
        }
        match self.ports.calls_tx.try_send(Call { from, waiter: Box::new(exchange), request }) {
            Ok(()) => {}
            Err(TrySendError::Full(call)) => {
                if let Request::Submit { task, .. } = call.request {
                    self.shared.files.remove_inputs(task);
                }
                self.finish(*call.waiter, Problem::busy("the scheduler is busy: try again").into());
            }
            // The daemon is ending, and so is this connection.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn command(&self, command: Command) {
        match self.ports.commands.tx.try_send(command) {
            Ok(()) => self.ports.commands.bell.ring(),
            Err(error) => {
                if let Command::Reload(exchange) = error.into_inner() {
                    self.finish(*exchange, Problem::busy("a reload is under way: try again").into());
                }
            }
        }
    }

    fn answered(&self, reply: SchedulerReply<Box<Exchange>>) {
        let SchedulerReply { waiter: mut exchange, answer } = reply;
        let plan = std::mem::replace(&mut exchange.plan, Plan::Plain);
        if let (Plan::Metrics, Answer::Scrape(parts)) = (&plan, &answer) {
            let open = self.shared.open.load(Ordering::Relaxed);
            let page = render::metrics(parts, &self.shared.metrics, open);
            return self.finish(*exchange, page);
        }
        match render::render(plan, answer, &self.shared.files) {
            Rendered::Reply(reply) => self.finish(*exchange, reply),
            Rendered::Follow(what) => self.follow(*exchange, what),
        }
    }

    fn follow(&self, exchange: Exchange, what: Follow) {
        let reply = Reply { status: 200, content_type: NDJSON, headers: Vec::new(), body: AnswerBody::Stream };
        self.note(&exchange, reply.status);
        let head = answer::wire(&reply, &exchange.request_id, true, false, false);
        if self.ports.returns_tx.send(Return::Follow { conn: exchange.conn, head, what }).is_ok() {
            self.shared.bell.ring();
        }
    }

    /// Writes the answer, and gives the connection back to the door.
    fn finish(&self, exchange: Exchange, reply: Reply) {
        self.note(&exchange, reply.status);
        let Exchange { mut conn, keeps_alive, is_head, is_http_1_0, request_id, .. } = exchange;
        let bytes = answer::wire(&reply, &request_id, keeps_alive, is_http_1_0, is_head);
        let file = match reply.body {
            AnswerBody::File { file, bytes } if !is_head => Some((file, bytes)),
            AnswerBody::File { .. } | AnswerBody::Bytes(_) | AnswerBody::Stream => None,
        };
        conn.answered += 1;
        let mut sending = Box::new(Sending::new(conn, bytes, file, keeps_alive));
        let (back, interest) = match sending.push() {
            Progress::Broken => return,
            Progress::Done if !keeps_alive => return super::outgoing::say_and_close(sending.conn, b""),
            Progress::Done if self.may_linger(&sending.conn) => return self.lingering.set(Some(sending.conn)),
            Progress::Done => (Return::Idle(sending.conn), Interest::Readable),
            Progress::More => (Return::Sending(sending), Interest::Writable),
        };
        self.give_back(back, interest);
    }

    fn give_back(&self, back: Return, interest: Interest) {
        let (socket, id, has_unread) = match &back {
            Return::Idle(conn) | Return::Follow { conn, .. } => (conn.socket.clone(), conn.id, !conn.unread.is_empty()),
            Return::Sending(sending) => (sending.conn.socket.clone(), sending.conn.id, false),
        };
        // INVARIANT: sent before it is armed, so that the door has it when it is woken. The clone keeps the descriptor
        // from being closed and its number from being used again in between.
        if self.ports.returns_tx.send(back).is_err() {
            return;
        }
        if has_unread {
            // A pipelined request is here already: no event would tell.
            self.shared.bell.ring();
        } else if let Err(error) = self.shared.epoll.arm(socket.as_fd(), id, interest) {
            log::debug!("a connection cannot be watched: {error}");
        }
    }

    fn note(&self, exchange: &Exchange, status: u16) {
        let took = self.shared.clock.now().saturating_sub(exchange.started);
        self.shared.metrics.note(exchange.route, status, took);
        log::debug!(
            request:% = exchange.request_id, route = exchange.route.pattern(), status = status,
            tookMs = took.as_micros() as f64 / 1000.0;
            "HTTP_REQUEST"
        );
    }
}

enum Asked {
    Scheduler(Request),
    Main,
    Nobody(Reply),
}

fn breaker_request(call: BreakerCall, body: Vec<u8>) -> Result<BreakerRequest, Problem> {
    let permit = |in_query: Option<crate::core::ids::PermitId>| match in_query {
        Some(permit) => Ok(permit),
        None => permit_in(&body),
    };
    Ok(match call {
        BreakerCall::Plain(request) => request,
        BreakerCall::Success(in_query) => BreakerRequest::Success(permit(in_query)?),
        BreakerCall::Failure(in_query) => BreakerRequest::Failure(permit(in_query)?),
    })
}

fn permit_in(body: &[u8]) -> Result<crate::core::ids::PermitId, Problem> {
    #[derive(serde::Deserialize)]
    struct Report {
        permit: String,
    }
    let report: Report = serde_json::from_slice(body).map_err(|error| {
        Problem::invalid(format!("the permit is missing: {error}; send {{\"permit\":\"p-1\"}} or ?permit=p-1"))
    })?;
    query::permit(&report.permit)
}
