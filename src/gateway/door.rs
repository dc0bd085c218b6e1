//! The door: one thread that owns both listeners and every socket that is idle, still sending its head, taking a large
//! answer slowly, or following events. It lets a whole head through to a handler and answers nonsense itself.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError};

use super::answer::{self, Problem, Reply};
use super::conn::{Conn, Peer, Socket};
use super::exchange::RequestIds;
use super::head::{self, HEAD_MAX, Head};
use super::outgoing::{Following, Progress, Sending};
use crate::metrics::{HttpMetrics, Route};
use crate::scheduler::call::{Control, Follow, StreamItem, StreamLine};
use crate::sys::clock::Clock;
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::eventfd::EventFd;
use crate::sys::reserve::ReserveFd;

const TCP: u64 = 0;
const UNIX: u64 = 1;
const BELL: u64 = 2;
/// The first connection's id; those below are the door's own tokens.
const FIRST_ID: u64 = 3;

/// Connections taken in one turn, so that a flood of them does not starve those that are here.
const ACCEPT_MAX: usize = 32;

/// How long nothing is accepted after the host ran out of descriptors or memory for sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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
    Follow { conn: Conn, head: Vec<u8>, what: Follow },
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
    pub open: Arc<AtomicUsize>,
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
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    held: HashMap<u64, Held>,
    next_id: u64,
    reserve: ReserveFd,
    /// Nothing is accepted until then.
    paused_until: Option<Duration>,
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
}

impl Door {
    pub fn new(
        settings: DoorSettings,
        ports: DoorPorts,
        tcp: Option<TcpListener>,
        unix: Option<UnixListener>,
        clock: Clock,
    ) -> io::Result<Door> {
        if let Some(tcp) = &tcp {
            tcp.set_nonblocking(true)?;
            ports.epoll.add_for_good(tcp, TCP)?;
        }
        if let Some(unix) = &unix {
            unix.set_nonblocking(true)?;
            ports.epoll.add_for_good(unix, UNIX)?;
        }
        ports.epoll.add_for_good(&*ports.bell, BELL)?;
        let reserve = ReserveFd::new()?;
        Ok(Door {
            settings,
            ports,
            tcp,
            unix,
            held: HashMap::new(),
            next_id: FIRST_ID,
            reserve,
            paused_until: None,
            clock,
        })
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
        let held = self.held.values().filter_map(|held| match held {
            Held::Reading { deadline, .. } | Held::Sending { deadline, .. } => Some(*deadline),
            Held::Following(_) => None,
        });
        let is_any_out = self.ports.open.load(Ordering::Acquire) > self.held.len();
        let look = is_any_out.then_some(now + LOOK_AFTER_RETURNS);
        held.chain(self.paused_until).chain(look).min().map(|deadline| deadline.saturating_sub(now))
    }

    fn event(&mut self, event: Ready) {
        match event.token {
            BELL => {}
            TCP | UNIX => self.accept(event.token),
            id => match self.held.remove(&id) {
                Some(Held::Reading { conn, deadline }) => self.read(conn, deadline),
                Some(Held::Sending { sending, .. }) => self.send(sending),
                Some(Held::Following(following)) => self.follow_on(following, event.is_hung_up),
                // It waits with the scheduler, and its client is gone.
                None if event.is_hung_up => self.tell(Control::Gone { from: id }),
                None => {}
            },
        }
    }

    fn accept(&mut self, listener: u64) {
        for _ in 0..ACCEPT_MAX {
            match self.accept_one(listener) {
                Ok(Some((socket, peer))) => self.welcome(socket, peer),
                Ok(None) => return,
                Err(error) => match error.raw_os_error() {
                    // The client went away before it was accepted (accept(2)).
                    Some(libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::EPERM) => {}
                    _ => return self.pause_accepting(listener, &error),
                },
            }
        }
    }

    fn accept_one(&self, listener: u64) -> io::Result<Option<(Socket, Peer)>> {
        let accepted = match (listener, &self.tcp, &self.unix) {
            (TCP, Some(tcp), _) => tcp.accept().and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), Peer::Network(address.ip())))
            }),
            (UNIX, _, Some(unix)) => unix.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok((Socket::Unix(stream), Peer::Local))
            }),
            _ => return Ok(None),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn welcome(&mut self, socket: Socket, peer: Peer) {
        let conn = Conn::new(self.next_id, socket, peer, &self.ports.open);
        self.next_id += 1;
        let open = self.ports.open.load(Ordering::Acquire);
        if open > self.settings.max_connections {
            let max = self.settings.max_connections;
            let busy = Problem::busy(format!(
                "{max} connections are open, and gateway.max_connections = {max}: close some, or raise it"
            ));
            return self.refuse(conn, busy);
        }
        if let Err(error) = self.ports.epoll.add(&*conn.socket, conn.id, Interest::Readable) {
            log::warn!("cannot watch a new connection: {error}; it is closed");
            return;
        }
        let deadline = self.clock.now() + self.settings.idle_timeout;
        self.held.insert(conn.id, Held::Reading { conn, deadline });
    }

    /// No descriptors, or no memory for sockets: the client is told by a close, and the next look is a little later.
    fn pause_accepting(&mut self, listener: u64, error: &io::Error) {
        log::warn!("cannot accept a connection: {error}; trying again in {} ms", ACCEPT_PAUSE.as_millis());
        self.reserve.give();
        drop(self.accept_one(listener));
        self.reserve.take_back();
        if self.paused_until.is_none() {
            self.paused_until = Some(self.clock.now() + ACCEPT_PAUSE);
            self.for_each_listener(|epoll, fd, _| epoll.remove(fd));
        }
    }

    fn resume_accepting(&mut self) {
        self.paused_until = None;
        self.for_each_listener(|epoll, fd, token| epoll.add_for_good(fd, token));
    }

    fn for_each_listener(&self, act: impl Fn(&Epoll, std::os::fd::BorrowedFd<'_>, u64) -> io::Result<()>) {
        let listeners = [(self.tcp.as_ref().map(AsFd::as_fd), TCP), (self.unix.as_ref().map(AsFd::as_fd), UNIX)];
        for (fd, token) in listeners.into_iter().filter_map(|(fd, token)| fd.map(|fd| (fd, token))) {
            if let Err(error) = act(&self.ports.epoll, fd, token) {
                log::error!("cannot change the watch on a listener: {error}");
            }
        }
    }

    fn take_returns(&mut self) {
        while let Ok(back) = self.ports.returns_rx.try_recv() {
            match back {
                Return::Idle(conn) => {
                    let deadline = self.clock.now() + self.settings.idle_timeout;
                    if conn.unread.is_empty() {
                        self.held.insert(conn.id, Held::Reading { conn, deadline });
                    } else {
                        let deadline = self.clock.now() + self.settings.head_timeout;
                        self.admit(conn, deadline);
                    }
                }
                Return::Sending(sending) => {
                    let deadline = self.clock.now() + self.settings.idle_timeout;
                    self.held.insert(sending.conn.id, Held::Sending { sending, deadline });
                }
                Return::Follow { conn, head, what } => {
                    let from = conn.id;
                    self.follow_on(Box::new(Following::new(conn, head)), false);
                    self.tell(Control::Follow { from, what });
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
                    conn.unread.extend_from_slice(&buffer[..count]);
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
                let deadline = self.clock.now() + self.settings.head_timeout;
                self.admit(sending.conn, deadline);
            }
            Progress::Done | Progress::Broken => {}
            Progress::More => {
                let armed = self.ports.epoll.arm(&*sending.conn.socket, sending.conn.id, Interest::Writable);
                if armed.is_ok() {
                    let deadline = self.clock.now() + self.settings.idle_timeout;
                    self.held.insert(sending.conn.id, Held::Sending { sending, deadline });
                }
            }
        }
    }

    fn follow_on(&mut self, mut following: Box<Following>, is_hung_up: bool) {
        let id = following.conn.id;
        let progress = if is_hung_up { Progress::Broken } else { following.write() };
        let interest = match progress {
            Progress::Done if following.is_ended() => return,
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

    fn pass_deadlines(&mut self) {
        let now = self.clock.now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.resume_accepting();
        }
        let is_due = |held: &Held| match held {
            Held::Reading { deadline, .. } | Held::Sending { deadline, .. } => *deadline <= now,
            Held::Following(_) => false,
        };
        let due: Vec<u64> = self.held.iter().filter(|(_, held)| is_due(held)).map(|(id, _)| *id).collect();
        for id in due {
            if let Some(Held::Reading { conn, .. }) = self.held.remove(&id)
                && !conn.unread.is_empty()
            {
                let millis = self.settings.head_timeout.as_millis();
                let message = format!("the request head did not come within gateway.head_timeout_ms = {millis}");
                self.refuse(conn, Problem::new(408, "invalid_request", message));
            }
        }
    }

    /// Answers without a handler, and closes.
    fn refuse(&self, conn: Conn, problem: Problem) {
        self.ports.metrics.note(Route::Other, problem.status, Duration::ZERO);
        let bytes = answer::wire(&Reply::from(problem), &self.ports.request_ids.take(), false, false, false);
        super::outgoing::say_and_close(conn, &bytes);
    }

    fn tell(&self, control: Control) {
        if let Err(TrySendError::Full(control)) = self.ports.control_tx.try_send(control) {
            log::warn!("the scheduler is behind; {control:?} is dropped");
        }
    }
}
