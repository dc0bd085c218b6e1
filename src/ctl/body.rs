//! An answer's body as a stream of bytes, however it is framed.
//!
//! Owns the connection once the head is read, and where the body ends. May import std and httparse. Must never know
//! what the bytes mean.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub enum Conn {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Conn {
    /// `None` waits for ever.
    pub fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Conn::Unix(stream) => stream.set_read_timeout(timeout).and_then(|()| stream.set_write_timeout(timeout)),
            Conn::Tcp(stream) => stream.set_read_timeout(timeout).and_then(|()| stream.set_write_timeout(timeout)),
        }
    }
}

impl Read for Conn {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Conn::Unix(stream) => stream.read(into),
            Conn::Tcp(stream) => stream.read(into),
        }
    }
}

impl Write for Conn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Conn::Unix(stream) => stream.write(bytes),
            Conn::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub struct AnswerBody {
    reader: BufReader<Conn>,
    rest: Rest,
}

/// What of the body is still to come.
#[derive(Clone, Copy)]
enum Rest {
    Bytes(u64),
    /// Inside a chunk: bytes left of it. 0: a chunk's size line is next.
    Chunk(u64),
    /// As `Chunk(0)`, but no chunk came before, so no line end of one is due.
    FirstChunk,
    UntilClose,
    Done,
}

/// Longer than any sane size line with extensions.
const SIZE_LINE_LIMIT: u64 = 1024;
const TRAILERS_MAX: usize = 100;

impl AnswerBody {
    pub fn of_length(reader: BufReader<Conn>, bytes: u64) -> AnswerBody {
        AnswerBody { reader, rest: Rest::Bytes(bytes) }
    }

    pub fn chunked(reader: BufReader<Conn>) -> AnswerBody {
        AnswerBody { reader, rest: Rest::FirstChunk }
    }

    pub fn until_close(reader: BufReader<Conn>) -> AnswerBody {
        AnswerBody { reader, rest: Rest::UntilClose }
    }

    /// How long one read may take from now on; `None` for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.reader.get_ref().set_timeouts(timeout)
    }

    /// The whole body, or an error if it is larger than `limit` bytes.
    pub fn read_whole(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        self.take(limit + 1).read_to_end(&mut whole)?;
        if whole.len() as u64 > limit {
            return Err(invalid(format!("it is larger than {limit} bytes")));
        }
        Ok(whole)
    }

    fn next_chunk(&mut self, after_another: bool) -> io::Result<()> {
        if after_another && !self.line()?.is_empty() {
            return Err(invalid("a chunk is longer than its size"));
        }
        let mut line = self.line()?;
        line.extend_from_slice(b"\r\n");
        self.rest = match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, 0))) => {
                self.skip_trailers()?;
                Rest::Done
            }
            Ok(httparse::Status::Complete((_, bytes))) => Rest::Chunk(bytes),
            Ok(httparse::Status::Partial) | Err(_) => return Err(invalid("a chunk has no size")),
        };
        Ok(())
    }

    fn skip_trailers(&mut self) -> io::Result<()> {
        for _ in 0..TRAILERS_MAX {
            if self.line()?.is_empty() {
                return Ok(());
            }
        }
        Err(invalid("it has too many trailers"))
    }

    /// One line of the framing, without its end.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.reader).take(SIZE_LINE_LIMIT);
        limited.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(if limited.limit() == 0 { invalid("a line of its framing is too long") } else { cut() });
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }

    fn read_counted(&mut self, into: &mut [u8], left: u64) -> io::Result<(usize, u64)> {
        let most = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match self.reader.read(&mut into[..most])? {
            0 => Err(cut()),
            read => Ok((read, left - read as u64)),
        }
    }
}

impl Read for AnswerBody {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            match self.rest {
                Rest::Done | Rest::Bytes(0) => return Ok(0),
                Rest::Bytes(left) => {
                    let (read, left) = self.read_counted(into, left)?;
                    self.rest = Rest::Bytes(left);
                    return Ok(read);
                }
                Rest::FirstChunk => self.next_chunk(false)?,
                Rest::Chunk(0) => self.next_chunk(true)?,
                Rest::Chunk(left) => {
                    let (read, left) = self.read_counted(into, left)?;
                    self.rest = Rest::Chunk(left);
                    return Ok(read);
                }
                Rest::UntilClose => return self.reader.read(into),
            }
        }
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed in the middle of an answer")
}
