//! What is on its way to a worker's standard input, which may be slow to read it.

use std::io::{self, ErrorKind, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::core::limits::LINE_MAX;

/// One task and many short messages. A worker that lets more pile up does not read at all.
const PENDING_MAX: usize = LINE_MAX + 64 * 1024;
/// Capacity that an idle worker may keep.
const KEEP_MAX: usize = 1024;

#[derive(Debug, Default)]
pub struct Outbox {
    /// `None` once it is closed, by us or by the worker.
    pipe: Option<PipeWriter>,
    pending: Vec<u8>,
    sent: usize,
    /// Close the pipe when all is sent.
    is_last: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum OutboxError {
    /// The worker has closed its end.
    Closed,
    /// Too much is pending.
    Full,
}

impl Outbox {
    pub fn new(pipe: Option<PipeWriter>) -> Outbox {
        Outbox { pipe, ..Outbox::default() }
    }

    /// Adds what `compose` writes, and sends what the pipe takes now. After the end of input it does nothing.
    pub fn send(&mut self, compose: impl FnOnce(&mut Vec<u8>)) -> Result<(), OutboxError> {
        if self.pipe.is_none() || self.is_last {
            return Ok(());
        }
        compose(&mut self.pending);
        self.flush()?;
        if self.pending.len() - self.sent > PENDING_MAX { Err(OutboxError::Full) } else { Ok(()) }
    }

    /// The worker's input ends after what is pending.
    pub fn finish(&mut self) -> Result<(), OutboxError> {
        self.is_last = true;
        self.flush()
    }

    /// Sends what the pipe takes without blocking.
    pub fn flush(&mut self) -> Result<(), OutboxError> {
        while let Some(pipe) = &self.pipe
            && self.sent < self.pending.len()
        {
            match (&*pipe).write(&self.pending[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        self.forget_sent();
                        return Ok(());
                    }
                    ErrorKind::Interrupted => {}
                    // EPIPE: SIGPIPE is ignored, as Rust's runtime sets it.
                    _ => {
                        log_unless_closed(&error);
                        self.close();
                        return Err(OutboxError::Closed);
                    }
                },
            }
        }
        self.pending.clear();
        self.pending.shrink_to(KEEP_MAX);
        self.sent = 0;
        if self.is_last {
            self.pipe = None;
        }
        Ok(())
    }

    /// Keeps the buffer from growing with what a slow reader has long had. Rarely, since it moves the rest.
    fn forget_sent(&mut self) {
        if self.sent > self.pending.len() / 2 {
            self.pending.drain(..self.sent);
            self.sent = 0;
        }
    }

    pub fn close(&mut self) {
        *self = Outbox::default();
    }

    /// The descriptor to wait for; `None` if there is nothing to send.
    pub fn wanted(&self) -> Option<BorrowedFd<'_>> {
        if self.pending.is_empty() { None } else { self.pipe.as_ref().map(AsFd::as_fd) }
    }
}

fn log_unless_closed(error: &io::Error) {
    if error.kind() != ErrorKind::BrokenPipe {
        log::warn!("cannot write to a worker's standard input: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::sys::pipe;

    #[test]
    fn what_does_not_fit_waits_and_too_much_is_refused() {
        let (mut reader, writer) = pipe::from_us().unwrap();
        let mut outbox = Outbox::new(Some(writer));
        outbox.send(|out| out.resize(LINE_MAX, b'a')).unwrap();
        assert!(outbox.wanted().is_some());
        outbox.send(|out| out.extend_from_slice(b"bc")).unwrap();
        assert_eq!(outbox.send(|out| out.resize(out.len() + 2 * PENDING_MAX, b'x')), Err(OutboxError::Full));
        outbox.pending.truncate(LINE_MAX + 2);
        outbox.finish().unwrap();

        let mut received = Vec::new();
        while outbox.wanted().is_some() {
            let mut piece = [0; 10_000];
            let bytes = reader.read(&mut piece).unwrap();
            received.extend_from_slice(&piece[..bytes]);
            outbox.flush().unwrap();
        }
        reader.read_to_end(&mut received).unwrap();
        assert!(received.len() == LINE_MAX + 2 && received.ends_with(b"abc"), "{}", received.len());
        assert!(outbox.pending.capacity() <= KEEP_MAX);
    }

    #[test]
    fn a_closed_reader_is_told_once() {
        let (reader, writer) = pipe::from_us().unwrap();
        drop(reader);
        let mut outbox = Outbox::new(Some(writer));
        assert_eq!(outbox.send(|out| out.push(b'a')), Err(OutboxError::Closed));
        assert_eq!(outbox.send(|out| out.push(b'a')), Ok(()));
        assert!(outbox.wanted().is_none());
    }
}
