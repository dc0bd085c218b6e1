//! Waiting for many descriptors at once: poll(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use super::epoll::Epoll;

/// The descriptors of one wait. It is filled anew for each wait and keeps its allocations.
#[derive(Default)]
pub struct PollSet {
    /// Only what is there: poll(2) counts what it skips against the limit of open files as well.
    entries: Vec<libc::pollfd>,
    /// Where the entry of each place is.
    places: Vec<Option<usize>>,
    spare: Option<Epoll>,
    is_over_limit: bool,
}

impl PollSet {
    /// One that also waits for more descriptors than RLIMIT_NOFILE allows: it may have been lowered below what is open
    /// (prlimit(2)), which poll(2) refuses and epoll_wait(2) does not ask for. None of them may be in it twice.
    pub fn for_any_limit() -> io::Result<PollSet> {
        Ok(PollSet { spare: Some(Epoll::new()?), ..PollSet::default() })
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.places.clear();
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
        self.places.push(fd.is_some().then_some(self.entries.len()));
        self.entries.extend(fd.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }));
        self.places.len() - 1
    }

    /// How many descriptors are waited for.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The last wait was for more descriptors than the limit of open files.
    pub fn is_over_limit(&self) -> bool {
        self.is_over_limit
    }

    /// Waits until one is ready or the time is over; `None` waits without end. Returns at once if a signal handler ran.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Rounded up: a wait that ends before its deadline would be followed by a busy one of less than a millisecond.
        let timeout_ms =
            timeout.map_or(-1, |timeout| timeout.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX));
        self.is_over_limit = false;
        // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice of pollfd.
        let ready = unsafe { libc::poll(self.entries.as_mut_ptr(), self.entries.len() as libc::nfds_t, timeout_ms) };
        if ready >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        for entry in &mut self.entries {
            entry.revents = 0;
        }
        match (error.kind(), &self.spare) {
            (io::ErrorKind::Interrupted, _) => Ok(()),
            // EINVAL has no other cause (poll(2)).
            (io::ErrorKind::InvalidInput, Some(spare)) => {
                self.is_over_limit = true;
                wait_by(spare, &mut self.entries, timeout)
            }
            _ => Err(error),
        }
    }

    /// The descriptor is of no use any more: its object is gone (poll(2), POLLERR).
    pub fn is_broken(&self, place: usize) -> bool {
        self.told(place) & (libc::POLLERR | libc::POLLNVAL) != 0
    }

    /// Something can be read or written, or the other end is gone; the read or write will tell which.
    pub fn is_ready(&self, place: usize) -> bool {
        self.told(place) != 0
    }

    fn told(&self, place: usize) -> libc::c_short {
        self.places.get(place).copied().flatten().map_or(0, |at| self.entries[at].revents)
    }
}

/// poll(2) by an epoll instance that is empty before and after. Its events have the numbers of poll's (epoll_ctl(2)).
fn wait_by(epoll: &Epoll, entries: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let added = entries.iter().enumerate().try_for_each(|(at, entry)| {
        // SAFETY: whoever put it into the set keeps it open until the wait is over, as for poll(2).
        let fd = unsafe { BorrowedFd::borrow_raw(entry.fd) };
        epoll.add_events(fd, at as u64, entry.events as u32)
    });
    let waited = added.and_then(|()| {
        epoll.wait_events(timeout, |at, events| {
            if let Some(entry) = entries.get_mut(at as usize) {
                entry.revents = events as libc::c_short;
            }
        })
    });
    for entry in entries.iter() {
        // SAFETY: as above. What was not added is not removed either.
        let _ = epoll.remove(unsafe { BorrowedFd::borrow_raw(entry.fd) });
    }
    waited
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn pipes(count: usize) -> Vec<(PipeReader, PipeWriter)> {
        (0..count).map(|_| io::pipe().unwrap()).collect()
    }

    #[test]
    fn the_two_ways_to_wait_tell_the_same() {
        let mut pipes = pipes(5);
        pipes[1].1.write_all(b"x").unwrap();
        pipes[3].1.write_all(b"x").unwrap();
        let (closed, _) = pipes.pop().unwrap();
        pipes.insert(2, io::pipe().unwrap());
        let fill = |set: &mut PollSet| {
            set.clear();
            set.readable(None);
            for (reader, writer) in &pipes {
                set.readable(Some(reader.as_fd()));
                set.writable(Some(writer.as_fd()));
                set.urgent(None);
            }
            set.readable(Some(closed.as_fd()));
        };
        let mut set = PollSet::for_any_limit().unwrap();
        fill(&mut set);
        set.wait(Some(Duration::ZERO)).unwrap();
        let by_poll: Vec<_> = (0..=set.places.len()).map(|place| set.told(place)).collect();
        assert_eq!(by_poll.iter().filter(|told| **told != 0).count(), 5 + 2 + 1, "{by_poll:?}");
        for _ in 0..2 {
            fill(&mut set);
            wait_by(set.spare.as_ref().unwrap(), &mut set.entries, Some(Duration::ZERO)).unwrap();
            let by_epoll: Vec<_> = (0..=set.places.len()).map(|place| set.told(place)).collect();
            assert_eq!(by_poll, by_epoll);
        }
    }

    #[test]
    fn what_is_not_there_is_not_waited_for() {
        let (reader, _writer) = io::pipe().unwrap();
        let mut set = PollSet::default();
        for _ in 0..1000 {
            set.readable(None);
        }
        let place = set.readable(Some(reader.as_fd()));
        assert_eq!((place, set.count()), (1000, 1));
    }
}
