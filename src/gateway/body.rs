//! Request bodies: bounded before a byte is read, small ones in memory, large ones straight into the spool.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::answer::Problem;
use super::conn::Conn;
use crate::core::ids::TaskId;
use crate::core::limits::INLINE_PAYLOAD_MAX;
use crate::core::task::Payload;
use crate::spool::{Files, advice};
use crate::sys::clock::Clock;
use crate::sys::socket::wait_readable;

/// The largest JSON envelope: kurultai-api(7).
pub const ENVELOPE_MAX: u64 = 256 * 1024;

/// A body that nobody wants is skipped up to this, so that the connection can go on; beyond, it ends.
pub const UNWANTED_MAX: u64 = 64 * 1024;

/// The slowest a body may come after its first `idle_timeout_ms`. Without it, a byte now and then holds a handler for ever.
const BYTES_PER_SECOND_MIN: u64 = 16 * 1024;

/// How long a handler waits for a body when the others all wait for one already.
const HASTE: Duration = Duration::from_millis(100);

/// How long bodies are waited for, and by how many handlers at once: one always stays for everybody else.
#[derive(Debug)]
pub struct Patience {
    clock: Clock,
    idle_timeout: Duration,
    /// Handlers that may still begin to wait.
    places: AtomicUsize,
}

impl Patience {
    pub fn new(clock: Clock, idle_timeout: Duration, handlers: usize) -> Patience {
        Patience { clock, idle_timeout, places: AtomicUsize::new(handlers.saturating_sub(1)) }
    }

    fn take_place(&self) -> Option<WaitingPlace<'_>> {
        let taken = self.places.fetch_update(Ordering::AcqRel, Ordering::Acquire, |places| places.checked_sub(1));
        taken.ok().map(|_| WaitingPlace(&self.places))
    }
}

/// Given back where the body ends.
#[derive(Debug)]
struct WaitingPlace<'a>(&'a AtomicUsize);

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether a body is taken, with the right to say what is wrong with it.
#[derive(Debug)]
pub struct Body<'a> {
    conn: &'a mut Conn,
    left: u64,
    patience: &'a Patience,
    /// All of it has to be here by then.
    deadline: Duration,
    place: Option<WaitingPlace<'a>>,
    /// It is waited for without a place, and only just.
    is_hurried: bool,
    /// Nothing more comes: the client stopped or went away.
    has_failed: bool,
}

impl<'a> Body<'a> {
    pub fn new(conn: &'a mut Conn, length: u64, patience: &'a Patience) -> Body<'a> {
        let slowest = Duration::from_millis(length.saturating_mul(1000) / BYTES_PER_SECOND_MIN);
        let deadline = patience.clock.now() + patience.idle_timeout + slowest;
        Body { conn, left: length, patience, deadline, place: None, is_hurried: false, has_failed: false }
    }

    /// All of it; the caller has bounded the length.
    pub fn read_all(&mut self) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.left).unwrap_or(0));
        self.read_to_end(&mut bytes).map_err(|error| self.unread(&error))?;
        Ok(bytes)
    }

    /// Reads it into memory or into the task's payload file.
    pub fn store(&mut self, task: TaskId, files: &Files) -> Result<Payload, Problem> {
        if self.left <= INLINE_PAYLOAD_MAX as u64 {
            return Ok(Payload::Inline(self.read_all()?.into()));
        }
        let mut file = files.create_payload(task).map_err(|error| unstored(&error))?;
        let mut buffer = [0_u8; 16 * 1024];
        while self.left > 0 {
            let count = self.read(&mut buffer).map_err(|error| self.unread(&error))?;
            file.write_all(&buffer[..count]).map_err(|error| unstored(&error))?;
        }
        let stored = file.commit().map_err(|error| {
            // It may have its name already, and not be safe under it.
            files.remove_inputs(task);
            unstored(&error)
        })?;
        Ok(Payload::File(stored))
    }

    /// What has not been read of it; `None`: the rest does not come.
    pub fn rest(self) -> Option<u64> {
        (!self.has_failed).then_some(self.left)
    }

    fn hurry(&mut self) {
        self.is_hurried = true;
        self.deadline = self.deadline.min(self.patience.clock.now() + HASTE);
    }

    /// Until more has come; `false`: it has not come in time.
    fn wait(&mut self) -> io::Result<bool> {
        if self.place.is_none() && !self.is_hurried {
            self.place = self.patience.take_place();
            if self.place.is_none() {
                self.hurry();
            }
        }
        let left = self.deadline.saturating_sub(self.patience.clock.now());
        if left.is_zero() {
            return Ok(false);
        }
        wait_readable(&*self.conn.socket, left.min(self.patience.idle_timeout))
    }

    fn unread(&self, error: &io::Error) -> Problem {
        match error.kind() {
            io::ErrorKind::TimedOut if self.is_hurried => {
                Problem::busy("others are sending bodies already, and this one did not come at once: try again")
            }
            io::ErrorKind::TimedOut => Problem::new(408, "invalid_request", "the body stopped coming: send it faster"),
            _ => Problem::malformed(format!("the body is shorter than its Content-Length: {error}")),
        }
    }
}

impl Read for Body<'_> {
    /// `Ok(0)` only at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let unread = &mut self.conn.unread;
        if !unread.is_empty() {
            let count = room.min(unread.len());
            buffer[..count].copy_from_slice(&unread[..count]);
            unread.drain(..count);
            self.left -= count as u64;
            return Ok(count);
        }
        let read = loop {
            match self.conn.socket.read(&mut buffer[..room]) {
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.wait() {
                    Ok(true) => {}
                    Ok(false) => break Err(io::ErrorKind::TimedOut.into()),
                    Err(error) => break Err(error),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(count) => {
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) => {
                self.has_failed = true;
                Err(error)
            }
        }
    }
}

pub fn unstored(error: &io::Error) -> Problem {
    let message = format!("the payload cannot be stored: {error}; {}", advice(error));
    Problem { retry_after_s: Some(10), ..Problem::new(503, "storage_full", message) }
}
