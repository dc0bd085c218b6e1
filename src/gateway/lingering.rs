//! The last of a connection whose client may still be sending. Closing a socket with unread bytes in it resets the
//! connection, and the client may lose the answer it was just sent (RFC 9112, section 9.6): so the sending half is closed,
//! and what still comes is thrown away for a while. The door does it; no handler waits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::conn::{Conn, Place, Socket};

/// How long a client may go on sending what nobody reads.
const LONGEST: Duration = Duration::from_secs(10);

/// How long it may say nothing and not close.
const QUIET: Duration = Duration::from_secs(2);

/// How much it may go on sending: the rest of a body that a client sends to its end before it looks for an answer.
const MOST: u64 = 64 * 1024 * 1024;

/// What is thrown away before other connections have their turn.
const PIECE: usize = 16 * 1024;
const PIECES: usize = 16;

#[derive(Debug)]
pub struct Lingering {
    pub socket: Arc<Socket>,
    /// `None`: it was refused for want of one, or leaves its short place to others.
    place: Option<Place>,
    left: u64,
    until: Duration,
    pub deadline: Duration,
}

impl Lingering {
    /// After the last byte of the answer was sent.
    pub fn new(conn: Conn, now: Duration) -> Lingering {
        let is_short = conn.is_short();
        let Conn { socket, place, .. } = conn;
        Lingering::of(socket, (!is_short).then_some(place), now)
    }

    /// A connection there was no place for.
    pub fn refused(socket: Arc<Socket>, now: Duration) -> Lingering {
        Lingering::of(socket, None, now)
    }

    fn of(socket: Arc<Socket>, place: Option<Place>, now: Duration) -> Lingering {
        socket.stop_writing();
        Lingering { socket, place, left: MOST, until: now + LONGEST, deadline: now + QUIET }
    }

    pub fn has_place(&self) -> bool {
        self.place.is_some()
    }

    /// Throws away what has come; `false`: it is over.
    pub fn goes_on(&mut self, now: Duration) -> bool {
        let mut piece = [0_u8; PIECE];
        for _ in 0..PIECES {
            match self.socket.read(&mut piece) {
                Ok(0) => return false,
                Ok(count) => self.left = self.left.saturating_sub(count as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.deadline = self.until.min(now + QUIET);
        self.left > 0 && now < self.until
    }
}
