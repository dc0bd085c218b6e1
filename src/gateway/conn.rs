//! One client's connection. Exactly one thread owns it at any moment: the door while it is idle, a handler while it
//! answers, the scheduler while its client waits.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Socket {
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read(buffer),
            Socket::Unix(stream) => (&*stream).read(buffer),
        }
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write(bytes),
            Socket::Unix(stream) => (&*stream).write(bytes),
        }
    }

    /// The client reads the end of what was sent; it may still send.
    pub fn stop_writing(&self) {
        // It fails for a client that is gone, which needs no telling.
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Its right to be here is the socket's file mode.
    Local,
    Network(IpAddr),
}

#[derive(Debug)]
pub struct Conn {
    /// Its token in epoll and its name in the scheduler; never used again.
    pub id: u64,
    /// Shared for a moment by a thread that hands the connection on and still has to arm it.
    pub socket: Arc<Socket>,
    pub peer: Peer,
    /// What was read of the next request; empty and without room while idle.
    pub unread: Vec<u8>,
    /// What is still to come of a body that nobody wants, before the next request.
    pub unwanted: u64,
    /// Requests answered on it.
    pub answered: u64,
    /// A request on it was answered before all of it had come: whoever closes it has to linger.
    pub is_cut_short: bool,
    pub(super) place: Place,
}

impl Conn {
    pub fn new(id: u64, socket: Socket, peer: Peer, place: Place) -> Conn {
        let socket = Arc::new(socket);
        Conn { id, socket, peer, unread: Vec::new(), unwanted: 0, answered: 0, is_cut_short: false, place }
    }

    /// The next `length` bytes are nobody's business.
    pub fn skip(&mut self, length: u64) {
        self.unwanted = length;
        let unread = std::mem::take(&mut self.unread);
        self.take_in(&unread);
    }

    /// Takes what was read, but for what is to be skipped.
    pub fn take_in(&mut self, bytes: &[u8]) {
        let skipped = usize::try_from(self.unwanted).unwrap_or(usize::MAX).min(bytes.len());
        self.unwanted -= skipped as u64;
        if skipped < bytes.len() {
            self.unread.extend_from_slice(&bytes[skipped..]);
        }
    }

    /// It is one of [`SHORT_CONNECTIONS`]: one short request, and it is closed.
    pub fn is_short(&self) -> bool {
        self.place.is_short
    }
}

/// Connections beyond `gateway.max_connections` for one short request each, so that health, metrics and status are to be
/// had while all others wait: kurultai.toml(5).
pub const SHORT_CONNECTIONS: usize = 4;

/// How many connections there are and may be. The door alone takes places.
#[derive(Debug)]
pub struct Places {
    max: usize,
    lasting: AtomicUsize,
    short: AtomicUsize,
}

impl Places {
    pub fn new(max: usize) -> Places {
        Places { max, lasting: AtomicUsize::new(0), short: AtomicUsize::new(0) }
    }

    pub fn taken(&self) -> usize {
        self.lasting.load(Ordering::Acquire) + self.short.load(Ordering::Acquire)
    }

    pub fn are_lasting_taken(&self) -> bool {
        self.lasting.load(Ordering::Acquire) >= self.max
    }

    /// The most there can be.
    pub fn most(max: usize) -> usize {
        max + SHORT_CONNECTIONS
    }

    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let (is_short, count) = if self.lasting.load(Ordering::Acquire) < self.max {
            (false, &self.lasting)
        } else if self.short.load(Ordering::Acquire) < SHORT_CONNECTIONS {
            (true, &self.short)
        } else {
            return None;
        };
        count.fetch_add(1, Ordering::AcqRel);
        Some(Place { places: self.clone(), is_short })
    }
}

/// One of the connections there may be; given back wherever the connection ends.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    is_short: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let count = if self.is_short { &self.places.short } else { &self.places.lasting };
        count.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_lasting_places_there_are_a_few_short_ones_and_no_more() {
        let places = Arc::new(Places::new(2));
        let mut taken: Vec<Place> = std::iter::from_fn(|| places.take()).collect();
        let kinds: Vec<bool> = taken.iter().map(|place| place.is_short).collect();
        assert_eq!(kinds, [false, false, true, true, true, true]);
        assert_eq!((places.taken(), Places::most(2)), (6, 6));
        drop(taken.remove(0));
        assert!(
            places.take().is_some_and(|place| !place.is_short),
            "whoever leaves a lasting place leaves it to the next"
        );
        drop(taken);
        assert_eq!(places.taken(), 0);
    }
}
