//! The door: one thread that owns the listeners and every socket that is idle, still sending its head, taking a large
//! answer slowly, following events, or answered and not closed yet. It lets a whole head through to a handler and answers
//! nonsense itself.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError};

use super::answer::{self, Problem, Reply};
use super::conn::{Conn, Peer, Places, SHORT_CONNECTIONS, Socket};
use super::exchange::RequestIds;
use super::head::{self, HEAD_MAX, Head};
use super::lingering::Lingering;
use super::listeners::{LISTENERS_MAX, Listener, Listeners};
use super::outgoing::{Following, Progress, Sending};
use crate::metrics::{HttpMetrics, Route};
use crate::scheduler::call::{Control, Follow, StreamItem, StreamLine};
use crate::sys::clock::Clock;
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::eventfd::EventFd;
use crate::sys::socket::wait_readable;

/// Smaller tokens are those of the listeners.
const BELL: u64 = LISTENERS_MAX as u64;
/// The first connection's id.
const FIRST_ID: u64 = BELL + 1;

/// Connections taken in one turn, so that a flood of them does not starve those that are here.
const ACCEPT_MAX: usize = 32;

/// Connections without a place that were answered and whose clients have not closed yet; a further one is closed at
/// once, and its client may see a reset instead of the answer.
const REFUSED_MAX: usize = 16;

/// Sockets of clients that can be open at once.
pub fn sockets_max(max_connections: usize) -> usize {
    Places::most(max_connections) + REFUSED_MAX
}

/// Connections that are with a handler or wait come back through a queue, without a wake-up of their own.
const LOOK_AFTER_RETURNS: Duration = Duration::from_secs(1);

/// A request whose head is complete.
pub struct Arrival {
    pub conn: Conn,
    pub head: Box<Head>,
}

/// A connection that comes back from a handler, which arms it in epoll right after.
pub enum Return {
    Idle(Conn),
    Sending(Box<Sending>),
    Follow {
        conn: Conn,
        head: Vec<u8>,
        what: Follow,
    },
    /// It was answered before all of its request had come, and is closed as its client allows.
    Lingering(Conn),
}

pub struct DoorPorts {
    pub arrivals_tx: Sender<Arrival>,
    pub returns_rx: Receiver<Return>,
    pub items_rx: Receiver<StreamItem>,
    pub control_tx: Sender<Control>,
    pub bell: Arc<EventFd>,
    pub epoll: Arc<Epoll>,
    pub metrics: Arc<HttpMetrics>,
    pub request_ids: Arc<RequestIds>,
    pub places: Arc<Places>,
    pub stop: Arc<AtomicBool>,
}

pub struct DoorSettings {
    pub max_connections: usize,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
}

pub struct Door {
    settings: DoorSettings,
    ports: DoorPorts,
    listeners: Listeners,
    held: HashMap<u64, Held>,
    next_id: u64,
    /// How many of `held` have no place.
    refused: usize,
    clock: Clock,
}

enum Held {
    /// Idle while nothing of the next head has come.
    Reading {
        conn: Conn,
        deadline: Duration,
    },
    Sending {
        sending: Box<Sending>,
        deadline: Duration,
    },
    Following(Box<Following>),
    Lingering(Lingering),
}

impl Door {
    pub fn new(settings: DoorSettings, ports: DoorPorts, listeners: Vec<Listener>, clock: Clock) -> io::Result<Door> {
        let listeners = Listeners::new(listeners, &ports.epoll)?;
        ports.epoll.add_for_good(&*ports.bell, BELL)?;
        Ok(Door { settings, ports, listeners, held: HashMap::new(), next_id: FIRST_ID, refused: 0, clock })
    }

    /// Runs until it is told to stop by the flag and the bell.
    pub fn run(mut self) {
        let mut ready = Vec::new();
        while !self.ports.stop.load(Ordering::Acquire) {
            ready.clear();
            if let Err(error) = self.ports.epoll.wait(self.timeout(), &mut ready) {
                // Why: epoll_wait(2) fails only for reasons that will not pass; a deaf daemon must not live on.
                panic!("the door cannot wait for its sockets: {error}");
            }
            self.ports.bell.hear();
            self.take_returns();
            self.take_items();
            for event in &ready {
                self.event(*event);
            }
            self.pass_deadlines();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let now = self.clock.now();
        let is_any_out = self.ports.places.taken() > self.held.len() - self.refused;
        let look = is_any_out.then_some(now + LOOK_AFTER_RETURNS);
        let held = self.held.values().filter_map(Held::deadline);
        let next = held.chain(self.listeners.paused_until()).chain(look).min();
        next.map(|deadline| deadline.saturating_sub(now))
    }

    fn event(&mut self, event: Ready) {
        match event.token {
            BELL => {}
            listener if listener < BELL => self.accept(listener),
            id => match self.held.remove(&id) {
                Some(Held::Reading { conn, deadline }) => self.read(conn, deadline),
                Some(Held::Sending { sending, .. }) => self.send(sending),
                Some(Held::Following(following)) => self.follow_on(following, event.is_hung_up),
                Some(Held::Lingering(lingering)) => self.linger_on(id, lingering),
                // It waits with the scheduler, and its client is gone.
                None if event.is_hung_up => self.tell(Control::Gone { from: id }),
                None => {}
            },
        }
    }

    fn accept(&mut self, listener: u64) {
        for _ in 0..ACCEPT_MAX {
            match self.listeners.accept(listener) {
                Ok(Some((socket, peer))) => self.welcome(socket, peer),
                Ok(None) => return,
                Err(error) => return self.listeners.pause(listener, &error, self.clock.now(), &self.ports.epoll),
            }
        }
    }

    fn welcome(&mut self, socket: Socket, peer: Peer) {
        let id = self.next_id;
        self.next_id += 1;
        if self.ports.places.are_lasting_taken() {
            self.close_longest_idle();
        }
        let Some(place) = self.ports.places.take() else {
            return self.turn_away(id, socket);
        };
        let conn = Conn::new(id, socket, peer, place);
        if let Err(error) = self.ports.epoll.add(&*conn.socket, conn.id, Interest::Readable) {
            log::warn!("cannot watch a new connection: {error}; it is closed");
            return;
        }
        let deadline = self.clock.now() + self.idle_timeout(&conn);
        self.held.insert(conn.id, Held::Reading { conn, deadline });
    }

    /// Who has said nothing yet, or nothing more, gives way: else a few dozen silent connections would keep everybody out.
    /// Not one whose request has come and has not been looked at yet.
    fn close_longest_idle(&mut self) {
        let is_silent = |conn: &Conn| !wait_readable(&*conn.socket, Duration::ZERO).unwrap_or(false);
        let idle = self.held.iter().filter_map(|(id, held)| match held {
            Held::Reading { conn, deadline } if conn.unread.is_empty() && !conn.is_short() => {
                Some((*deadline, *id, conn))
            }
            Held::Reading { .. } | Held::Sending { .. } | Held::Following(_) | Held::Lingering(_) => None,
        });
        let mut idle: Vec<(Duration, u64, &Conn)> = idle.collect();
        idle.sort_unstable_by_key(|(deadline, id, _)| (*deadline, *id));
        if let Some((_, id, _)) = idle.into_iter().find(|(.., conn)| is_silent(conn)) {
            self.held.remove(&id);
        }
    }

    /// Short connections are for those who have something to say.
    fn idle_timeout(&self, conn: &Conn) -> Duration {
        if conn.is_short() {
            self.settings.idle_timeout.min(self.settings.head_timeout)
        } else {
            self.settings.idle_timeout
        }
    }

    fn turn_away(&mut self, id: u64, socket: Socket) {
        let max = self.settings.max_connections;
        let busy = Problem::busy(format!(
            "{max} connections are open, and {SHORT_CONNECTIONS} for short requests; gateway.max_connections = {max}: \
             close some, or raise it"
        ));
        let bytes = self.refusal(busy);
        let _ = socket.write(&bytes);
        let lingering = Lingering::refused(Arc::new(socket), self.clock.now());
        if self.ports.epoll.add(&*lingering.socket, id, Interest::Readable).is_ok() {
            self.hold(id, lingering);
        }
    }

    fn take_returns(&mut self) {
        while let Ok(back) = self.ports.returns_rx.try_recv() {
            match back {
                Return::Idle(conn) => {
                    let deadline = self.clock.now() + self.idle_timeout(&conn);
                    if conn.unread.is_empty() {
                        self.held.insert(conn.id, Held::Reading { conn, deadline });
                    } else {
                        let deadline = self.clock.now() + self.settings.head_timeout;
                        self.admit(conn, deadline);
                    }
                }
                Return::Sending(sending) => {
                    let deadline = self.clock.now() + self.idle_timeout(&sending.conn);
                    self.held.insert(sending.conn.id, Held::Sending { sending, deadline });
                }
                Return::Lingering(conn) => self.hold(conn.id, Lingering::new(conn, self.clock.now())),
                Return::Follow { conn, head, what } => {
                    // Told first: a client that is gone already must not be followed after it has been told to be.
                    self.tell(Control::Follow { from: conn.id, what });
                    self.follow_on(Box::new(Following::new(conn, head)), false);
                }
            }
        }
    }

    fn take_items(&mut self) {
        while let Ok(item) = self.ports.items_rx.try_recv() {
            let line = super::json::stream_line(&item);
            for id in &item.to {
                let Some(Held::Following(mut following)) = self.held.remove(id) else { continue };
                match (&item.line, &line) {
                    (StreamLine::End, _) | (_, None) => following.end(),
                    (_, Some(line)) => following.push(line),
                }
                self.follow_on(following, false);
            }
        }
    }

    fn read(&mut self, mut conn: Conn, deadline: Duration) {
        let was_idle = conn.unread.is_empty();
        let mut buffer = [0_u8; 4096];
        while conn.unread.len() < HEAD_MAX {
            let room = buffer.len().min(HEAD_MAX - conn.unread.len());
            match conn.socket.read(&mut buffer[..room]) {
                Ok(0) => return,
                Ok(count) => {
                    conn.take_in(&buffer[..count]);
                    if count < room {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
        let deadline =
            if was_idle && !conn.unread.is_empty() { self.clock.now() + self.settings.head_timeout } else { deadline };
        self.admit(conn, deadline);
    }

    /// To a handler if the head is whole; more reading if it is not; refused if it never can be.
    fn admit(&mut self, mut conn: Conn, deadline: Duration) {
        match head::parse(&conn.unread) {
            Ok(Some((head, length))) => {
                conn.unread.drain(..length);
                let arrival = Arrival { conn, head: Box::new(head) };
                match self.ports.arrivals_tx.try_send(arrival) {
                    Ok(()) => {}
                    Err(TrySendError::Full(arrival)) => {
                        self.refuse(arrival.conn, Problem::busy("every handler is busy: try again"));
                    }
                    Err(TrySendError::Disconnected(_)) => {}
                }
            }
            Ok(None) => match self.ports.epoll.arm(&*conn.socket, conn.id, Interest::Readable) {
                Ok(()) => {
                    self.held.insert(conn.id, Held::Reading { conn, deadline });
                }
                Err(error) => log::debug!("a connection is closed: {error}"),
            },
            Err(problem) => self.refuse(conn, problem),
        }
    }

    fn send(&mut self, mut sending: Box<Sending>) {
        match sending.push() {
            Progress::Done if sending.keeps_alive => {
                let is_idle = sending.conn.unread.is_empty();
                let wait = if is_idle { self.idle_timeout(&sending.conn) } else { self.settings.head_timeout };
                self.admit(sending.conn, self.clock.now() + wait);
            }
            Progress::Done => self.linger(sending.conn),
            Progress::Broken => {}
            Progress::More => {
                let armed = self.ports.epoll.arm(&*sending.conn.socket, sending.conn.id, Interest::Writable);
                if armed.is_ok() {
                    let deadline = self.clock.now() + self.idle_timeout(&sending.conn);
                    self.held.insert(sending.conn.id, Held::Sending { sending, deadline });
                }
            }
        }
    }

    fn follow_on(&mut self, mut following: Box<Following>, is_hung_up: bool) {
        let id = following.conn.id;
        let progress = if is_hung_up { Progress::Broken } else { following.write() };
        let interest = match progress {
            Progress::Done if following.is_ended() => return self.linger(following.conn),
            Progress::Done => Interest::HangUp,
            Progress::More => Interest::Writable,
            Progress::Broken => return self.tell(Control::Gone { from: id }),
        };
        match self.ports.epoll.arm(&*following.conn.socket, id, interest) {
            Ok(()) => {
                self.held.insert(id, Held::Following(following));
            }
            Err(_) => self.tell(Control::Gone { from: id }),
        }
    }

    /// The last byte has been sent.
    fn linger(&mut self, conn: Conn) {
        let id = conn.id;
        let lingering = Lingering::new(conn, self.clock.now());
        if let Err(error) = self.ports.epoll.arm(&*lingering.socket, id, Interest::Readable) {
            log::debug!("a connection is closed: {error}");
            return;
        }
        self.hold(id, lingering);
    }

    /// It is armed. Of those without a place there are a few; a further one is closed at once.
    fn hold(&mut self, id: u64, lingering: Lingering) {
        if !lingering.has_place() {
            if self.refused == REFUSED_MAX {
                return;
            }
            self.refused += 1;
        }
        self.held.insert(id, Held::Lingering(lingering));
    }

    fn linger_on(&mut self, id: u64, mut lingering: Lingering) {
        let goes_on = lingering.goes_on(self.clock.now())
            && self.ports.epoll.arm(&*lingering.socket, id, Interest::Readable).is_ok();
        if goes_on {
            self.held.insert(id, Held::Lingering(lingering));
        } else {
            self.forget(&lingering);
        }
    }

    fn forget(&mut self, lingering: &Lingering) {
        self.refused -= usize::from(!lingering.has_place());
    }

    fn pass_deadlines(&mut self) {
        let now = self.clock.now();
        self.listeners.resume_if_due(now, &self.ports.epoll);
        let is_due = |held: &Held| held.deadline().is_some_and(|deadline| deadline <= now);
        let due: Vec<u64> = self.held.iter().filter(|(_, held)| is_due(held)).map(|(id, _)| *id).collect();
        for id in due {
            match self.held.remove(&id) {
                Some(Held::Reading { conn, .. }) if !conn.unread.is_empty() => {
                    let millis = self.settings.head_timeout.as_millis();
                    let message = format!("the request head did not come within gateway.head_timeout_ms = {millis}");
                    self.refuse(conn, Problem::new(408, "invalid_request", message));
                }
                Some(Held::Lingering(lingering)) => self.forget(&lingering),
                Some(Held::Sending { mut sending, .. }) => {
                    if sending.is_read() {
                        let deadline = now + self.idle_timeout(&sending.conn);
                        self.held.insert(id, Held::Sending { sending, deadline });
                    }
                }
                Some(Held::Reading { .. } | Held::Following(_)) | None => {}
            }
        }
    }

    /// Answers without a handler, and closes.
    fn refuse(&mut self, conn: Conn, problem: Problem) {
        let bytes = self.refusal(problem);
        // One that does not take it at once does not get it.
        let _ = conn.socket.write(&bytes);
        self.linger(conn);
    }

    fn refusal(&self, problem: Problem) -> Vec<u8> {
        self.ports.metrics.note(Route::Other, problem.status, Duration::ZERO);
        answer::wire(&Reply::from(problem), &self.ports.request_ids.take(), false, false, false)
    }

    fn tell(&self, control: Control) {
        if let Err(TrySendError::Full(control)) = self.ports.control_tx.try_send(control) {
            log::warn!("the scheduler is behind; {control:?} is dropped");
        }
    }
}

impl Held {
    fn deadline(&self) -> Option<Duration> {
        match self {
            Held::Reading { deadline, .. } | Held::Sending { deadline, .. } => Some(*deadline),
            Held::Following(_) => None,
            Held::Lingering(lingering) => Some(lingering.deadline),
        }
    }
}
