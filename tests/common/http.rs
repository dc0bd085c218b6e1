//! A client that sends exactly the bytes it is told to, and reads answers strictly.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::wait::LIMIT;

/// Both directions of a connection.
trait Stream: Read + Write + Send {
    fn stop_writing(&self);
    fn set_nonblocking(&self, is_nonblocking: bool);
}

impl Stream for UnixStream {
    fn stop_writing(&self) {
        self.shutdown(std::net::Shutdown::Write).expect("the socket is open");
    }

    fn set_nonblocking(&self, is_nonblocking: bool) {
        UnixStream::set_nonblocking(self, is_nonblocking).expect("the socket is open");
    }
}

impl Stream for TcpStream {
    fn stop_writing(&self) {
        self.shutdown(std::net::Shutdown::Write).expect("the socket is open");
    }

    fn set_nonblocking(&self, is_nonblocking: bool) {
        TcpStream::set_nonblocking(self, is_nonblocking).expect("the socket is open");
    }
}

/// One connection, for as many requests as it bears.
pub struct Connection(BufReader<Box<dyn Stream>>);

/// A port nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    listener.local_addr().expect("it is bound").port()
}

impl Connection {
    pub fn unix(socket: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Connection(BufReader::new(Box::new(stream))))
    }

    pub fn tcp(port: u16) -> io::Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Connection(BufReader::new(Box::new(stream))))
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// No more requests come.
    pub fn stop_writing(&mut self) {
        self.0.get_ref().stop_writing();
    }

    /// One request and its answer; the connection goes on.
    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Response {
        // A daemon that refuses a body answers before it has come, and closes.
        let sent = self.send(&request.bytes());
        match self.receive_for(&request.method) {
            Ok(response) => response,
            Err(error) => panic!("{} {}: no answer: {error} (sent: {sent:?})", request.method, request.path),
        }
    }

    /// The next answer, of a request that was not HEAD.
    pub fn receive(&mut self) -> io::Result<Response> {
        self.receive_for("GET")
    }

    pub fn receive_for(&mut self, method: &str) -> io::Result<Response> {
        let mut response = self.receive_head()?;
        if method == "HEAD" || matches!(response.status, 204 | 304) || response.status < 200 {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.receive_chunk()? {
                response.body.extend(chunk);
            }
            return Ok(response);
        }
        let length = response.header("content-length").and_then(|length| length.parse().ok());
        response.body = vec![0; length.ok_or_else(|| broken("an answer without its length"))?];
        self.0.read_exact(&mut response.body)?;
        Ok(response)
    }

    /// Status and headers; the body is still to come.
    pub fn receive_head(&mut self) -> io::Result<Response> {
        let status = self.line()?;
        let code = status.strip_prefix("HTTP/1.1 ").or(status.strip_prefix("HTTP/1.0 "));
        let code = code.and_then(|rest| rest.get(..3)?.parse().ok()).ok_or_else(|| broken(&status))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Response { status: code, status_line: status, headers, body: Vec::new() });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| broken(&line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// `None`: the last one.
    pub fn receive_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = self.line()?;
        let size = usize::from_str_radix(&size, 16).map_err(|_| broken(&size))?;
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk)?;
        if !chunk.ends_with(b"\r\n") {
            return Err(broken("a chunk that does not end where it said"));
        }
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    /// The next line of an event stream; `None` after the last.
    #[track_caller]
    pub fn next_event(&mut self) -> Option<Value> {
        let chunk = self.receive_chunk().expect("the stream goes on")?;
        assert!(chunk.ends_with(b"\n"), "an event is one line: {chunk:?}");
        Some(serde_json::from_slice(&chunk).expect("an event is JSON"))
    }

    /// Something can be read at this moment.
    pub fn has_answer(&mut self) -> bool {
        self.0.get_ref().set_nonblocking(true);
        let has_answer = self.0.fill_buf().is_ok_and(|bytes| !bytes.is_empty());
        self.0.get_ref().set_nonblocking(false);
        has_answer
    }

    /// Everything until the daemon closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// The daemon closes without another byte.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or_else(|| broken(&format!("a line that does not end: {line:?}")))?;
        Ok(line.to_owned())
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A sound request; what is unsound is written as bytes.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub fn new(method: &str, path: impl Into<String>) -> Request {
        Request { method: method.to_owned(), path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn get(path: impl Into<String>) -> Request {
        Request::new("GET", path)
    }

    pub fn post(path: impl Into<String>, body: impl Into<Vec<u8>>) -> Request {
        Request { body: body.into(), ..Request::new("POST", path) }
    }

    pub fn json(path: impl Into<String>, body: &Value) -> Request {
        Request::post(path, body.to_string()).with("Content-Type", "application/json")
    }

    pub fn with(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str("Host: localhost\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.method == "POST" || !self.body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub status_line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a text")
    }

    /// The code of an error object that is as kurultai-api(7) has it, with a matching Retry-After where there is one.
    #[track_caller]
    pub fn error_code(&self) -> String {
        let object = self.json();
        let error = &object["error"];
        assert_eq!(object.as_object().map(|object| object.len()), Some(1), "{object}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{object}");
        let seconds = error.get("retryAfterS").map(|seconds| seconds.to_string());
        assert_eq!(self.header("Retry-After"), seconds.as_deref(), "header and body: {object}");
        if matches!(self.status, 429 | 503) {
            let seconds = error["retryAfterS"].as_u64().unwrap_or(0);
            assert!((1..=120).contains(&seconds), "retryAfterS of {object}");
        }
        assert_eq!(self.header("Content-Type"), Some("application/json"), "{object}");
        error["code"].as_str().expect("a code").to_owned()
    }
}
