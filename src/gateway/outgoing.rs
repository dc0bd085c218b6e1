//! Bytes on their way to a client that may be slow: nobody's thread waits for it.

use std::io;

use super::answer::FilePart;
use super::conn::Conn;
use crate::sys::socket::{send_file, unsent};

/// Lines an event stream may be behind, in bytes; a slower client is let go.
const BEHIND_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// The socket takes no more for now.
    More,
    Broken,
}

/// An answer that did not fit into the socket at once.
#[derive(Debug)]
pub struct Sending {
    pub conn: Conn,
    pub keeps_alive: bool,
    bytes: Vec<u8>,
    sent: usize,
    file: Option<FilePart>,
    /// What the kernel had left to send at the last look.
    queued: usize,
}

impl Sending {
    pub fn new(conn: Conn, bytes: Vec<u8>, file: Option<FilePart>, keeps_alive: bool) -> Sending {
        Sending { conn, keeps_alive, bytes, sent: 0, file, queued: 0 }
    }

    /// Whether the client has read some since the last look, or since the socket was last full. Why: the kernel holds
    /// megabytes for it and says that there is room again when a third of that is gone.
    pub fn is_read(&mut self) -> bool {
        let queued = unsent(&*self.conn.socket).unwrap_or(0);
        std::mem::replace(&mut self.queued, queued) > queued
    }

    /// Sends what the socket takes.
    pub fn push(&mut self) -> Progress {
        let progress = self.push_on();
        if progress == Progress::More {
            self.queued = unsent(&*self.conn.socket).unwrap_or(0);
        }
        progress
    }

    fn push_on(&mut self) -> Progress {
        while self.sent < self.bytes.len() {
            match self.conn.socket.write(&self.bytes[self.sent..]) {
                Ok(0) => return Progress::Broken,
                Ok(count) => self.sent += count,
                Err(error) => match stalled(&error) {
                    Some(progress) => return progress,
                    None => continue,
                },
            }
        }
        let Some(rest) = &mut self.file else { return Progress::Done };
        while rest.left > 0 {
            match send_file(&*self.conn.socket, &rest.file, rest.offset, rest.left) {
                // The head promised more than there is: only closing tells the client.
                Ok(0) => return Progress::Broken,
                Ok(count) => {
                    rest.offset += count;
                    rest.left -= count;
                }
                Err(error) => match stalled(&error) {
                    Some(progress) => return progress,
                    None => continue,
                },
            }
        }
        Progress::Done
    }
}

/// An event stream: lines as HTTP/1.1 chunks.
#[derive(Debug)]
pub struct Following {
    pub conn: Conn,
    pending: Vec<u8>,
    has_ended: bool,
}

impl Following {
    pub fn new(conn: Conn, head: Vec<u8>) -> Following {
        Following { conn, pending: head, has_ended: false }
    }

    pub fn push(&mut self, line: &[u8]) {
        self.pending.extend_from_slice(format!("{:x}\r\n", line.len()).as_bytes());
        self.pending.extend_from_slice(line);
        self.pending.extend_from_slice(b"\r\n");
    }

    /// No more lines come.
    pub fn end(&mut self) {
        self.pending.extend_from_slice(b"0\r\n\r\n");
        self.has_ended = true;
    }

    pub fn is_ended(&self) -> bool {
        self.has_ended
    }

    pub fn write(&mut self) -> Progress {
        let mut sent = 0;
        let progress = loop {
            if sent == self.pending.len() {
                break Progress::Done;
            }
            match self.conn.socket.write(&self.pending[sent..]) {
                Ok(0) => break Progress::Broken,
                Ok(count) => sent += count,
                Err(error) => {
                    if let Some(progress) = stalled(&error) {
                        break progress;
                    }
                }
            }
        };
        self.pending.drain(..sent);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
        if self.pending.len() > BEHIND_MAX { Progress::Broken } else { progress }
    }
}

fn stalled(error: &io::Error) -> Option<Progress> {
    match error.kind() {
        io::ErrorKind::Interrupted => None,
        io::ErrorKind::WouldBlock => Some(Progress::More),
        _ => Some(Progress::Broken),
    }
}
