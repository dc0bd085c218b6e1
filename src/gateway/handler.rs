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
use super::body::{Body, Patience};
use super::conn::{Conn, Places, SHORT_CONNECTIONS};
use super::door::{Arrival, Return};
use super::exchange::{Command, CommandPort, Exchange, Plan, RequestIds};
use super::head::{self, Head, Method};
use super::outgoing::{Progress, Sending};
use super::page;
use super::query;
use super::rate::SubmitRate;
use super::render::{self, Rendered};
use super::routes::{self, BreakerCall, Target};
use super::upload::{SMALL_BODY_MAX, Upload};
use crate::core::event::BreakerRequest;
use crate::metrics::{HttpMetrics, Route};
use crate::scheduler::board::HealthBoard;
use crate::scheduler::call::{Answer, Call, Follow, Reply as SchedulerReply, Request, StorageStatus};
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
    pub places: Arc<Places>,
    pub epoll: Arc<Epoll>,
    pub bell: Arc<EventFd>,
    pub patience: Patience,
    /// `gateway.max_body_mb` in bytes; a reload changes it.
    pub max_body: Arc<AtomicU64>,
    pub request_ids: Arc<RequestIds>,
    pub rate: SubmitRate,
    pub board: Arc<HealthBoard>,
    /// One handler is waiting for a client's next request.
    pub is_expecting: AtomicBool,
}

pub struct HandlerPorts {
    pub arrivals_rx: Receiver<Arrival>,
    pub replies_rx: Receiver<SchedulerReply<Box<Exchange>>>,
    pub calls_tx: Sender<Call<Box<Exchange>>>,
    pub returns_tx: Sender<Return>,
    pub commands: CommandPort,
}

pub struct Handler {
    pub(super) shared: Arc<Shared>,
    ports: HandlerPorts,
    /// A connection just answered, whose next request may be on its way.
    expecting: Cell<Option<Conn>>,
}

/// How long a handler that has nothing else to do waits for a client's next request itself. A client that works through
/// a list sends it at once, and the way through the door would cost it a wake-up more. One handler at most.
const NEXT_WAIT: Duration = Duration::from_millis(1);

/// Looks at what a client has sent after the last request it gets an answer to.
const PIPELINED_MAX: usize = 32;

impl Handler {
    pub fn new(shared: Arc<Shared>, ports: HandlerPorts) -> Handler {
        Handler { shared, ports, expecting: Cell::new(None) }
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
            while let Some(conn) = self.expecting.take() {
                self.expect_next(conn);
            }
        }
    }

    fn expect_next(&self, mut conn: Conn) {
        let is_here = wait_readable(&*conn.socket, NEXT_WAIT).unwrap_or(false);
        self.shared.is_expecting.store(false, Ordering::Release);
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

    fn may_expect(&self, conn: &Conn) -> bool {
        conn.unread.is_empty()
            && conn.unwanted == 0
            && self.ports.replies_rx.is_empty()
            && self.ports.arrivals_rx.is_empty()
            && !self.shared.is_expecting.swap(true, Ordering::AcqRel)
    }

    fn arrived(&self, arrival: Arrival) {
        let Arrival { conn, mut head } = arrival;
        let request_id = head.request_id.clone().unwrap_or_else(|| self.shared.request_ids.take());
        let (route, target) = routes::route(&head);
        let is_short = conn.is_short();
        let mut exchange = Exchange {
            conn,
            plan: Plan::Plain,
            route,
            is_head: head.method == Method::Head,
            is_http_1_0: head.is_http_1_0,
            keeps_alive: head.keeps_alive && !is_short,
            request_id,
            started: self.shared.clock.now(),
            is_body_read: false,
        };
        let target = self.shared.access.check(exchange.conn.peer, &head).and(target);
        let target = target.and_then(|target| if is_short { short(target, &head) } else { Ok(target) });
        let outcome = target.and_then(|target| self.ask(&mut exchange, &mut head, target));
        match outcome {
            Ok(Asked::Scheduler(request)) => self.call(exchange, request),
            Ok(Asked::Main(command)) => self.command(command(Box::new(exchange))),
            Ok(Asked::Nobody(reply)) => self.finish(exchange, reply),
            Err(problem) => {
                // Without a length, nobody here can tell where this request ends.
                if head.is_chunked || problem.status == 411 {
                    exchange.cut_short();
                } else if !exchange.is_body_read {
                    exchange.decline_body(head.content_length.unwrap_or(0), head.wants_leave());
                }
                let is_for_a_reader = exchange.route == Route::Page && head.accepts_html;
                let reply = if is_for_a_reader { page::problem(problem) } else { problem.into() };
                self.finish(exchange, reply);
            }
        }
    }

    /// Reads the body and finds whom to ask what.
    fn ask(&self, exchange: &mut Exchange, head: &mut Head, target: Target) -> Result<Asked, Problem> {
        if head.is_chunked {
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
            Target::SubmitEnvelope { wait } => {
                let length = self.body_length(head)?;
                let upload = Upload::envelope(head, length, self.shared.ids.take(), wait)?;
                return self.submit(exchange, upload);
            }
            Target::SubmitRaw { agent, query } => {
                let (length, task, request_id) =
                    (self.body_length(head)?, self.shared.ids.take(), exchange.request_id.clone());
                let upload = Upload::raw(head, length, task, (agent, *query), request_id)?;
                return self.submit(exchange, upload);
            }
            other => {
                let permit = self.small_body(exchange, head, &other)?;
                match other {
                    Target::List(filter) => (Request::Tasks(filter), Plan::Plain),
                    Target::Show(task) => (Request::Task { task }, Plan::TaskObject),
                    Target::Result(task) => {
                        let mut conditions = std::mem::take(&mut head.conditions);
                        if exchange.is_head {
                            // Ranges are defined for GET alone (RFC 9110, section 14.2).
                            conditions.range = None;
                        }
                        (Request::Task { task }, Plan::Result(conditions))
                    }
                    Target::Why(task) => (Request::Why { task }, Plan::Plain),
                    Target::Cancel(task) => (Request::Cancel { task }, Plan::Plain),
                    Target::Decisions { limit } => (Request::Decisions { limit }, Plan::Plain),
                    Target::Status(part) => (Request::Status, Plan::Status(part)),
                    Target::Health { live: true } => (Request::Ping, Plan::Plain),
                    Target::Health { live: false } => match self.shared.board.read(exchange.started) {
                        Some((health, free_bytes)) => {
                            let storage =
                                StorageStatus { free_bytes, error: None, damaged: self.shared.files.all_damaged() };
                            return Ok(Asked::Nobody(render::health(&health, &storage)));
                        }
                        None => (Request::Health, Plan::Plain),
                    },
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
                    Target::Reload => return Ok(Asked::Main(Command::Reload)),
                    Target::Drain => return Ok(Asked::Main(Command::Drain)),
                    Target::SubmitEnvelope { .. } | Target::SubmitRaw { .. } => unreachable!("taken above"),
                }
            }
        };
        exchange.plan = plan;
        Ok(Asked::Scheduler(request))
    }

    fn submit(&self, exchange: &mut Exchange, upload: Upload) -> Result<Asked, Problem> {
        match upload.probe() {
            Some(probe) => {
                exchange.plan = Plan::Upload(Box::new(upload));
                Ok(Asked::Scheduler(probe))
            }
            None => self.receive(exchange, upload).map(Asked::Scheduler),
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
        if !wants_permit || length > 1024 {
            exchange.decline_body(length, head.wants_leave());
            return Ok(Vec::new());
        }
        if head.wants_leave() {
            let _ = exchange.conn.socket.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let body = Body::new(&mut exchange.conn, length, &self.shared.patience).read_all();
        exchange.is_body_read = true;
        body.inspect_err(|_| exchange.cut_short())
    }

    pub(super) fn call(&self, exchange: Exchange, request: Request) {
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
                let mut exchange = call.waiter;
                if let Plan::Upload(upload) = std::mem::replace(&mut exchange.plan, Plan::Plain) {
                    Handler::decline(&mut exchange, &upload);
                }
                self.finish(*exchange, Problem::busy("the scheduler is busy: try again").into());
            }
            // The daemon is ending, and so is this connection.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn command(&self, command: Command) {
        match self.ports.commands.tx.try_send(command) {
            Ok(()) => self.ports.commands.bell.ring(),
            Err(error) => {
                let (Command::Reload(exchange) | Command::Drain(exchange)) = error.into_inner();
                self.finish(*exchange, Problem::busy("a reload is under way: try again").into());
            }
        }
    }

    fn answered(&self, reply: SchedulerReply<Box<Exchange>>) {
        let SchedulerReply { waiter: mut exchange, answer } = reply;
        let plan = match (std::mem::replace(&mut exchange.plan, Plan::Plain), &answer) {
            (Plan::Upload(upload), Answer::Admissible) => return self.upload(*exchange, *upload),
            (Plan::Upload(upload), _) => {
                Handler::decline(&mut exchange, &upload);
                Plan::Plain
            }
            (plan, _) => plan,
        };
        if let (Plan::Metrics, Answer::Scrape(parts)) = (&plan, &answer) {
            let page = render::metrics(parts, &self.shared.metrics, self.shared.places.taken());
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
    pub(super) fn finish(&self, exchange: Exchange, reply: Reply) {
        self.note(&exchange, reply.status);
        let Exchange { mut conn, keeps_alive, is_head, is_http_1_0, request_id, .. } = exchange;
        let bytes = answer::wire(&reply, &request_id, keeps_alive, is_http_1_0, is_head);
        let file = match reply.body {
            AnswerBody::File(part) if !is_head => Some(part),
            AnswerBody::File(_) | AnswerBody::Bytes(_) | AnswerBody::Stream => None,
        };
        conn.answered += 1;
        let mut sending = Box::new(Sending::new(conn, bytes, file, keeps_alive));
        let (back, interest) = match sending.push() {
            Progress::Broken => return,
            Progress::Done if sending.conn.is_cut_short => {
                sending.conn.socket.stop_writing();
                (Return::Lingering(sending.conn), Interest::Readable)
            }
            Progress::Done if !keeps_alive => return close(&sending.conn),
            Progress::Done if self.may_expect(&sending.conn) => return self.expecting.set(Some(sending.conn)),
            Progress::Done => (Return::Idle(sending.conn), Interest::Readable),
            Progress::More => (Return::Sending(sending), Interest::Writable),
        };
        self.give_back(back, interest);
    }

    fn give_back(&self, back: Return, interest: Interest) {
        let (socket, id, has_unread) = match &back {
            Return::Idle(conn) | Return::Follow { conn, .. } => (conn.socket.clone(), conn.id, !conn.unread.is_empty()),
            Return::Lingering(conn) => (conn.socket.clone(), conn.id, false),
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
    Main(fn(Box<Exchange>) -> Command),
    Nobody(Reply),
}

/// What a connection beyond the lasting ones is for: nothing that may take long, nor carries much.
fn short(target: Target, head: &Head) -> Result<Target, Problem> {
    let lasts = match &target {
        Target::SubmitEnvelope { wait } => wait.is_some(),
        Target::SubmitRaw { query, .. } => query.has("wait"),
        Target::Follow(_) | Target::Result(_) => true,
        Target::List(_)
        | Target::Show(_)
        | Target::Why(_)
        | Target::Cancel(_)
        | Target::Decisions { .. }
        | Target::Status(_)
        | Target::Breaker { .. }
        | Target::Reload
        | Target::Drain
        | Target::Health { .. }
        | Target::Page
        | Target::Metrics => false,
    };
    if lasts || head.content_length.is_some_and(|length| length > SMALL_BODY_MAX) {
        return Err(Problem::busy(format!(
            "gateway.max_connections are open, and the {SHORT_CONNECTIONS} beyond are for short requests, not for results, \
             events, ?wait or large bodies: close some, or raise it"
        )));
    }
    Ok(target)
}

/// All of the request has been read; what came after it is not answered.
fn close(conn: &Conn) {
    conn.socket.stop_writing();
    let mut buffer = [0_u8; 2048];
    // Why: closed with these bytes unread, the connection would be reset, and the answer perhaps lost.
    for _ in 0..PIPELINED_MAX {
        if !matches!(conn.socket.read(&mut buffer), Ok(count) if count > 0) {
            break;
        }
    }
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
