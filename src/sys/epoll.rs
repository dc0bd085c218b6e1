//! epoll(7), one event at a time per descriptor: EPOLLONESHOT, so that a descriptor whose owner is elsewhere is silent
//! until that owner arms it again, from any thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

/// What to wake for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the peer's end.
    Readable,
    /// Room to write.
    Writable,
    /// Nothing but the peer going away.
    HangUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub token: u64,
    pub is_hung_up: bool,
}

/// Most events one wait gives.
const EVENTS: usize = 64;

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Epoll { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Watches a descriptor for one event. Closing it ends the watch.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, flags(interest) | libc::EPOLLONESHOT as u32, token)
    }

    /// Watches a descriptor for readability until it is closed.
    pub fn add_for_good(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, token)
    }

    /// Watches a known descriptor for one more event.
    pub fn arm(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, flags(interest) | libc::EPOLLONESHOT as u32, token)
    }

    /// Stops watching a descriptor that was added for good.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Adds what is ready to `ready`; nothing after `timeout`, or when a signal came.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let gone = (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) as u32;
        self.wait_events(timeout, |token, events| ready.push(Ready { token, is_hung_up: events & gone != 0 }))
    }

    /// As [`Epoll::add_for_good`], for events of epoll_ctl(2).
    pub(super) fn add_events(&self, fd: impl AsFd, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    /// As [`Epoll::wait`]: tells token and events.
    pub(super) fn wait_events(&self, timeout: Option<Duration>, mut tell: impl FnMut(u64, u32)) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // Rounded up: waking a millisecond early would be a turn for nothing.
        let millis = timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
        // SAFETY: `events` has room for EVENTS entries and outlives the call.
        let count = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, millis) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        events[..count as usize].iter().for_each(|event| tell(event.u64, event.events));
        Ok(())
    }

    fn control(&self, operation: i32, fd: impl AsFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` outlives the call; both descriptors are open.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_fd().as_raw_fd(), &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn flags(interest: Interest) -> u32 {
    let flags = match interest {
        Interest::Readable => libc::EPOLLIN | libc::EPOLLRDHUP,
        Interest::Writable => libc::EPOLLOUT,
        Interest::HangUp => libc::EPOLLRDHUP,
    };
    flags as u32
}
