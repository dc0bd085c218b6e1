//! One request to the daemon and its answer: HTTP/1.1 over a Unix or TCP socket, blocking, one connection a request.
//!
//! Owns connecting, writing a request, reading an answer's head, and the time allowed for each. May import std and
//! httparse. Must never know what a path means or what a body holds.

use super::body::{AnswerBody, Conn};
use super::error::CtlError;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One read or write that moves nothing for so long ends the request.
const IO_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_LIMIT: u64 = 64 * 1024;
const HEADERS_MAX: usize = 100;

/// Where the daemon listens.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

impl Target {
    /// `http://host[:port]`, with port 80 if it names none (RFC 9110, section 4.2.1); no path.
    pub fn from_url(url: &str) -> Result<Target, CtlError> {
        let wrong = |why: &str| CtlError::Usage {
            message: format!("--url: {url:?}: {why}"),
            hint: "it is to look like http://127.0.0.1:7700".to_owned(),
        };
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return Err(wrong("TLS is not spoken here, reach the daemon through a tunnel or proxy"));
            }
            Some(_) | None => return Err(wrong("it does not begin with http://")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().map_err(|_| wrong("the port is no number from 0 to 65535"))?)
            }
            Some(_) | None => (authority, 80),
        };
        let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
        let sane = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !bracketed && (host.is_empty() || !host.bytes().all(sane)) {
            return Err(wrong("only a host and a port belong in it"));
        }
        Ok(Target::Tcp { host: host.to_owned(), port })
    }

    fn host_header(&self) -> String {
        match self {
            Target::Unix(_) => "localhost".to_owned(),
            Target::Tcp { host, port } => format!("{host}:{port}"),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "{}", path.display()),
            Target::Tcp { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

pub struct Request {
    pub method: &'static str,
    /// Path and query, percent-encoded.
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: RequestBody,
}

impl Request {
    pub fn get(path: impl Into<String>) -> Request {
        Request { method: "GET", path: path.into(), headers: Vec::new(), body: RequestBody::Bytes(Vec::new()) }
    }

    pub fn with_method(method: &'static str, path: impl Into<String>) -> Request {
        Request { method, ..Request::get(path) }
    }
}

pub enum RequestBody {
    Bytes(Vec<u8>),
    /// Exactly `bytes` bytes from where the file stands.
    File {
        file: File,
        bytes: u64,
    },
}

impl RequestBody {
    fn length(&self) -> u64 {
        match self {
            RequestBody::Bytes(bytes) => bytes.len() as u64,
            RequestBody::File { bytes, .. } => *bytes,
        }
    }
}

/// An answer whose head is read; the body comes as it is asked for.
pub struct Answer {
    pub status: u16,
    pub retry_after_s: Option<u64>,
    pub body: AnswerBody,
}

pub struct Client {
    target: Target,
    token: Option<String>,
}

impl Client {
    pub fn new(target: Target, token: Option<String>) -> Client {
        Client { target, token }
    }

    /// Sends a request and reads the answer's head, whatever its status.
    pub fn send(&self, request: Request) -> Result<Answer, CtlError> {
        let mut conn = self.connect()?;
        conn.set_timeouts(Some(IO_TIMEOUT)).map_err(|source| self.lost(source))?;
        let head = self.head(&request);
        let sent =
            conn.write_all(head.as_bytes()).map_err(Sending::Socket).and_then(|()| send(request.body, &mut conn));
        let mut reader = BufReader::new(conn);
        match sent {
            Ok(()) => self.answer(&mut reader).map(|found| found.with_body(reader)),
            Err(Sending::Payload(error)) => Err(error),
            // Why: a refusal may come, and the daemon stop reading, before the whole payload is out.
            Err(Sending::Socket(source)) => match self.answer(&mut reader) {
                Ok(found) => Ok(found.with_body(reader)),
                Err(_) => Err(self.lost(source)),
            },
        }
    }

    /// What an error while reading a body means.
    pub fn lost(&self, source: io::Error) -> CtlError {
        let target = self.target.to_string();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                CtlError::TimedOut { target, seconds: IO_TIMEOUT.as_secs() }
            }
            io::ErrorKind::InvalidData => CtlError::BadAnswer { target, what: source.to_string() },
            _ => CtlError::ConnectionLost { target, source },
        }
    }

    /// An answer that is not what it should be.
    pub fn bad_answer(&self, what: impl Into<String>) -> CtlError {
        CtlError::BadAnswer { target: self.target.to_string(), what: what.into() }
    }

    fn connect(&self) -> Result<Conn, CtlError> {
        match &self.target {
            Target::Unix(path) => UnixStream::connect(path).map(Conn::Unix).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => CtlError::NoSocket { path: path.clone() },
                io::ErrorKind::PermissionDenied => CtlError::SocketDenied { path: path.clone() },
                _ => self.unreachable(source),
            }),
            Target::Tcp { host, port } => {
                connect_tcp(host, *port).map(Conn::Tcp).map_err(|source| self.unreachable(source))
            }
        }
    }

    fn unreachable(&self, source: io::Error) -> CtlError {
        CtlError::Unreachable { target: self.target.to_string(), source }
    }

    fn head(&self, request: &Request) -> String {
        let mut head =
            format!("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.path, self.target.host_header());
        let mut header = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        header("User-Agent", concat!("kurultaictl/", env!("CARGO_PKG_VERSION")));
        header("Connection", "close");
        if let Some(token) = &self.token {
            header("Authorization", &format!("Bearer {token}"));
        }
        for (name, value) in &request.headers {
            header(name, value);
        }
        if request.method != "GET" {
            header("Content-Length", &request.body.length().to_string());
        }
        head.push_str("\r\n");
        head
    }

    fn answer(&self, reader: &mut BufReader<Conn>) -> Result<Head, CtlError> {
        loop {
            let head = read_head(reader).map_err(|source| self.lost(source))?;
            let found = parse_head(&head).map_err(|what| self.bad_answer(what))?;
            // Why: 100 Continue and its like come before the answer (RFC 9110, section 15.2).
            if found.status >= 200 {
                return Ok(found);
            }
        }
    }
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return stream.set_nodelay(true).map(|()| stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Why a request did not get out: ours to mend, or the connection's.
enum Sending {
    Payload(CtlError),
    Socket(io::Error),
}

fn send(body: RequestBody, conn: &mut Conn) -> Result<(), Sending> {
    let (mut file, bytes) = match body {
        RequestBody::Bytes(bytes) => return conn.write_all(&bytes).map_err(Sending::Socket),
        RequestBody::File { file, bytes } => (file, bytes),
    };
    let mut buffer = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = match file.read(&mut buffer[..most]) {
            Ok(0) => {
                let why = format!("it shrank by {left} of {bytes} bytes while it was read; nothing was submitted");
                return Err(Sending::Payload(CtlError::Unsendable { what: "the payload".to_owned(), why }));
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Sending::Payload(CtlError::Input { what: "the payload".to_owned(), source })),
        };
        conn.write_all(&buffer[..read]).map_err(Sending::Socket)?;
        left -= read as u64;
    }
    Ok(())
}

struct Head {
    status: u16,
    retry_after_s: Option<u64>,
    framing: Framing,
}

/// How a body ends: RFC 9112, section 6.3.
#[derive(Clone, Copy)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    fn with_body(self, reader: BufReader<Conn>) -> Answer {
        let body = match self.framing {
            Framing::Length(bytes) => AnswerBody::of_length(reader, bytes),
            Framing::Chunked => AnswerBody::chunked(reader),
            Framing::UntilClose => AnswerBody::until_close(reader),
        };
        Answer { status: self.status, retry_after_s: self.retry_after_s, body }
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut limited = reader.take(HEAD_LIMIT);
    loop {
        let before = head.len();
        limited.read_until(b'\n', &mut head)?;
        match &head[before..] {
            b"\r\n" | b"\n" => return Ok(head),
            line if line.ends_with(b"\n") => {}
            _ if limited.limit() == 0 => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its head is too large"));
            }
            _ => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without a whole answer")),
        }
    }
}

fn parse_head(head: &[u8]) -> Result<Head, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err("its head is cut".to_owned()),
        Err(error) => return Err(format!("its head: {error}")),
    }
    let status = response.code.ok_or("it has no status")?;
    let mut found = Head { status, retry_after_s: None, framing: Framing::UntilClose };
    let mut length = None;
    let mut chunked = false;
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let sound = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let bytes: u64 = if sound { value.parse().ok() } else { None }.ok_or(format!("its length is {value:?}"))?;
            if length.replace(bytes).is_some_and(|other| other != bytes) {
                return Err("it has two lengths".to_owned());
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
            if !chunked {
                return Err(format!("its transfer encoding is {value:?}"));
            }
        } else if header.name.eq_ignore_ascii_case("retry-after") {
            found.retry_after_s = value.parse().ok();
        }
    }
    found.framing = match (status, chunked, length) {
        (..200 | 204 | 304, _, _) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, false, Some(bytes)) => Framing::Length(bytes),
        (_, false, None) => Framing::UntilClose,
    };
    Ok(found)
}

/// A path segment or query value with everything but RFC 3986's unreserved characters percent-encoded.
pub fn encoded(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            safe.push(char::from(byte));
        } else {
            safe.push_str(&format!("%{byte:02X}"));
        }
    }
    safe
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
