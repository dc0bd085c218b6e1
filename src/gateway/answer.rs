//! Answers, and their form on the wire: tiny_http's `Response` writes the head, the body follows as bytes or as a file.

use std::fs::File;
use std::io::Cursor;

use serde_json::{Value, json};
use tiny_http::{HTTPVersion, Header, Response, StatusCode};

/// A refusal of the gateway's own making: status, error code of kurultai-api(7), and what happened and what to do.
#[derive(Debug)]
pub struct Problem {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
    /// Whole seconds, at least 1.
    pub retry_after_s: Option<u64>,
    /// The methods a path has, for 405.
    pub allow: Option<&'static str>,
    /// How to say who one is, for 401 (RFC 9110, section 11.6.1).
    pub challenge: Option<&'static str>,
}

impl Problem {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Problem {
        Problem { status, code, message: message.into(), retry_after_s: None, allow: None, challenge: None }
    }

    /// The request cannot be understood; the connection cannot go on after it.
    pub fn malformed(message: impl Into<String>) -> Problem {
        Problem::new(400, "invalid_request", message)
    }

    /// The request is understood and asks for something that is not possible.
    pub fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(400, "invalid_request", message)
    }

    pub fn busy(message: impl Into<String>) -> Problem {
        Problem { retry_after_s: Some(1), ..Problem::new(503, "overloaded", message) }
    }

    /// Its status and headers with a body that says it in another form than the API's.
    pub fn with_body(self, content_type: &'static str, body: Vec<u8>) -> Reply {
        let mut reply = Reply::bytes(self.status, content_type, body);
        reply.headers.extend(self.retry_after_s.map(|seconds| ("Retry-After", seconds.to_string())));
        reply.headers.extend(self.allow.map(|methods| ("Allow", methods.to_string())));
        reply.headers.extend(self.challenge.map(|challenge| ("WWW-Authenticate", challenge.to_string())));
        reply
    }
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Reply {
        let mut error = json!({ "code": problem.code, "message": problem.message });
        if let Some(seconds) = problem.retry_after_s {
            error["retryAfterS"] = json!(seconds);
        }
        problem.with_body(JSON, json_line(&json!({ "error": error })))
    }
}

/// An answer before it is bytes.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    Bytes(Vec<u8>),
    File(FilePart),
    /// Lines that come as they happen, chunked.
    Stream,
}

/// Bytes of a file that go from there to the socket.
#[derive(Debug)]
pub struct FilePart {
    pub file: File,
    pub offset: u64,
    pub left: u64,
}

pub const JSON: &str = "application/json";
pub const NDJSON: &str = "application/x-ndjson";
pub const BYTES: &str = "application/octet-stream";

impl Reply {
    pub fn json(status: u16, value: &Value) -> Reply {
        Reply::bytes(status, JSON, json_line(value))
    }

    pub fn bytes(status: u16, content_type: &'static str, body: Vec<u8>) -> Reply {
        Reply { status, content_type, headers: Vec::new(), body: Body::Bytes(body) }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

fn json_line(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The head, and the body if it is bytes; a file follows it.
pub fn wire(reply: &Reply, request_id: &str, keeps_alive: bool, is_http_1_0: bool, is_head: bool) -> Vec<u8> {
    let mut headers = vec![
        header("Server", "kurultai"),
        header("X-Request-Id", request_id),
        header("Cache-Control", "no-store"),
        header("X-Content-Type-Options", "nosniff"),
    ];
    // Those two have no body whose type could be told.
    if !matches!(reply.status, 204 | 304) {
        headers.push(header("Content-Type", reply.content_type));
    }
    headers.extend(reply.headers.iter().map(|(name, value)| header(name, value)));
    let (body, length): (&[u8], Option<usize>) = match &reply.body {
        Body::Bytes(bytes) => (bytes, Some(bytes.len())),
        Body::File(part) => (&[], usize::try_from(part.left).ok()),
        Body::Stream => (&[], None),
    };
    let version = if is_http_1_0 { HTTPVersion(1, 0) } else { HTTPVersion(1, 1) };
    let response = Response::new(StatusCode(reply.status), headers, Cursor::new(&[][..]), length, None)
        .with_chunked_threshold(usize::MAX);
    let mut bytes = Vec::with_capacity(512 + body.len());
    // Why: without its body, because a file's must not pass through memory, and a Vec takes every write.
    response.raw_print(&mut bytes, version, &[], true, None).expect("a Vec takes every write");
    if !keeps_alive || is_http_1_0 {
        // tiny_http leaves this header to its own server.
        let at = bytes.windows(2).position(|pair| pair == b"\r\n").map_or(0, |end| end + 2);
        let line: &[u8] = if keeps_alive { b"Connection: keep-alive\r\n" } else { b"Connection: close\r\n" };
        bytes.splice(at..at, line.iter().copied());
    }
    if matches!(reply.status, 204 | 304) {
        // tiny_http says 0, which is not the length of what a 304 stands for (RFC 9110, section 8.6).
        let line = b"Content-Length: 0\r\n";
        if let Some(at) = bytes.windows(line.len()).position(|bytes| bytes == line) {
            bytes.drain(at..at + line.len());
        }
    }
    if !is_head {
        bytes.extend_from_slice(body);
    }
    bytes
}

/// Values are ours, or were checked when they came in; one that cannot be a header is left out rather than fatal.
fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value)
        .unwrap_or_else(|()| Header::from_bytes("X-Omitted", name).expect("header names are ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reply: impl Into<Reply>, keeps_alive: bool, is_head: bool) -> String {
        String::from_utf8(wire(&reply.into(), "r-1", keeps_alive, false, is_head)).expect("text")
    }

    #[test]
    fn an_answer_has_its_length_its_request_id_and_its_body() {
        let text = text(Reply::json(200, &json!({ "a": 1 })), true, false);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        for line in ["Content-Length: 8\r\n", "X-Request-Id: r-1\r\n", "Content-Type: application/json\r\n"] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
        assert!(text.ends_with("\r\n\r\n{\"a\":1}\n"), "{text}");
        assert!(!text.contains("Connection:"), "{text}");
    }

    #[test]
    fn a_refusal_says_when_to_come_back_and_a_closing_answer_says_so() {
        let text = text(Problem::busy("too much"), false, false);
        assert!(text.contains("Retry-After: 1\r\n") && text.contains("\"retryAfterS\":1"), "{text}");
        assert!(text.contains("Connection: close\r\n"), "{text}");
    }

    #[test]
    fn an_answer_without_a_body_has_neither_length_nor_type() {
        for status in [204, 304] {
            let text = text(Reply::bytes(status, JSON, Vec::new()), true, false);
            assert!(!text.contains("\r\nContent-") && text.ends_with("\r\n\r\n"), "{text}");
        }
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let text = text(Reply::json(200, &json!({ "a": 1 })), true, true);
        assert!(text.contains("Content-Length: 8\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }
}
