//! Waiting for many descriptors at once: poll(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// The descriptors of one wait. It is filled anew for each wait and keeps its allocation.
#[derive(Default)]
pub struct PollSet {
    entries: Vec<libc::pollfd>,
}

impl PollSet {
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Returns the place of the entry, for [`PollSet::is_ready`]. `None` keeps a place and is never ready.
    pub fn readable(&mut self, fd: Option<BorrowedFd<'_>>) -> usize {
        self.push(fd, libc::POLLIN)
    }

    pub fn writable(&mut self, fd: Option<BorrowedFd<'_>>) -> usize {
        self.push(fd, libc::POLLOUT)
    }

    /// For what tells of itself by POLLPRI, as the kernel's pressure and event files do.
    pub fn urgent(&mut self, fd: Option<BorrowedFd<'_>>) -> usize {
        self.push(fd, libc::POLLPRI)
    }

    fn push(&mut self, fd: Option<BorrowedFd<'_>>, events: libc::c_short) -> usize {
        // poll(2): a negative descriptor is skipped and its revents are 0.
        let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
        self.entries.push(libc::pollfd { fd, events, revents: 0 });
        self.entries.len() - 1
    }

    /// Waits until one is ready or the time is over; `None` waits without end. Returns at once if a signal handler ran.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Rounded up: a wait that ends before its deadline would be followed by a busy one of less than a millisecond.
        let timeout_ms =
            timeout.map_or(-1, |timeout| timeout.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX));
        // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice of pollfd.
        let ready = unsafe { libc::poll(self.entries.as_mut_ptr(), self.entries.len() as libc::nfds_t, timeout_ms) };
        if ready >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        for entry in &mut self.entries {
            entry.revents = 0;
        }
        if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
    }

    /// The descriptor is of no use any more: its object is gone (poll(2), POLLERR).
    pub fn is_broken(&self, place: usize) -> bool {
        self.entries.get(place).is_some_and(|entry| entry.revents & (libc::POLLERR | libc::POLLNVAL) != 0)
    }

    /// Something can be read or written, or the other end is gone; the read or write will tell which.
    pub fn is_ready(&self, place: usize) -> bool {
        self.entries.get(place).is_some_and(|entry| entry.revents != 0)
    }
}
