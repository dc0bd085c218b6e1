//! The sockets clients come in by, and what happens when the host has no descriptors left for them.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::conn::{Peer, Socket};
use crate::sys::epoll::Epoll;
use crate::sys::reserve::ReserveFd;
use crate::sys::socket::notice_vanished_peers;

/// How long nothing is accepted after the host ran out of descriptors or memory for sockets.
const PAUSE: Duration = Duration::from_millis(200);

/// Want of descriptors may last; the log is not to be filled with it.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Listeners there may be; their tokens in epoll are below this.
pub const LISTENERS_MAX: usize = INHERITED_MAX + 1;

/// Those a service manager may hand over; one more is opened where all of them are of one kind: kurultaid(8).
pub const INHERITED_MAX: usize = 8;

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn prepare(&self) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                // A client that follows events is not heard of for hours; its place must not be lost with its host.
                notice_vanished_peers(listener)
            }
            Listener::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    fn accept(&self) -> io::Result<(Socket, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), Peer::Network(address.ip())))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Socket::Unix(stream), Peer::Local))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

/// All of them, each with its place in the list as its token.
pub struct Listeners {
    all: Vec<Listener>,
    reserve: ReserveFd,
    /// Nothing is accepted until then.
    paused_until: Option<Duration>,
    /// When it was last said that nothing can be accepted.
    warned: Option<Duration>,
}

impl Listeners {
    pub fn new(all: Vec<Listener>, epoll: &Epoll) -> io::Result<Listeners> {
        if all.len() > LISTENERS_MAX {
            return Err(io::Error::other(format!("{} listeners are more than {LISTENERS_MAX}", all.len())));
        }
        for (token, listener) in all.iter().enumerate() {
            listener.prepare()?;
            epoll.add_for_good(listener, token as u64)?;
        }
        Ok(Listeners { all, reserve: ReserveFd::new()?, paused_until: None, warned: None })
    }

    pub fn paused_until(&self) -> Option<Duration> {
        self.paused_until
    }

    /// `Ok(None)`: nobody else is there.
    pub fn accept(&self, token: u64) -> io::Result<Option<(Socket, Peer)>> {
        let Some(listener) = usize::try_from(token).ok().and_then(|token| self.all.get(token)) else { return Ok(None) };
        loop {
            match listener.accept() {
                Ok(accepted) => return Ok(Some(accepted)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => match error.raw_os_error() {
                    // The client went away before it was accepted (accept(2)), and is not in the queue any more.
                    Some(libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::EPERM) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// No descriptors, or no memory for sockets: the client is told by a close, and the next look is a little later.
    pub fn pause(&mut self, token: u64, error: &io::Error, now: Duration, epoll: &Epoll) {
        if self.warned.is_none_or(|at| at + WARN_EVERY <= now) {
            self.warned = Some(now);
            log::warn!("cannot accept connections: {error}; trying again every {} ms", PAUSE.as_millis());
        }
        self.reserve.give();
        drop(self.accept(token));
        self.reserve.take_back();
        if self.paused_until.is_none() {
            self.paused_until = Some(now + PAUSE);
            let _ = self.for_each(|listener, _| epoll.remove(listener));
        }
    }

    pub fn resume_if_due(&mut self, now: Duration, epoll: &Epoll) {
        if self.paused_until.is_some_and(|until| until <= now) {
            // Why again: what there was too little of for a connection may still be too little for a watch, and a listener
            // that nobody watches would make a deaf daemon.
            let is_whole = self.for_each(|listener, token| match epoll.add_for_good(listener, token) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                added => added,
            });
            self.paused_until = (!is_whole).then_some(now + PAUSE);
        }
    }

    /// Whether it went well with all of them.
    fn for_each(&self, act: impl Fn(&Listener, u64) -> io::Result<()>) -> bool {
        let mut is_whole = true;
        for (token, listener) in self.all.iter().enumerate() {
            if let Err(error) = act(listener, token as u64) {
                log::error!("cannot change the watch on a listener: {error}");
                is_whole = false;
            }
        }
        is_whole
    }
}
