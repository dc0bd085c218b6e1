//! One client's connection. Exactly one thread owns it at any moment: the door while it is idle, a handler while it
//! answers, the scheduler while its client waits.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
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
    /// Requests answered on it.
    pub answered: u64,
    _place: Place,
}

impl Conn {
    pub fn new(id: u64, socket: Socket, peer: Peer, open: &Arc<AtomicUsize>) -> Conn {
        Conn { id, socket: Arc::new(socket), peer, unread: Vec::new(), answered: 0, _place: Place::take(open) }
    }
}

/// One of the connections there may be; given back wherever the connection ends.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Place {
        open.fetch_add(1, Ordering::AcqRel);
        Place(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
