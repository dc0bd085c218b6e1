//! Request heads, read strictly: what is ambiguous is refused, not guessed at (RFC 9112, sections 2 to 6).

use std::sync::Arc;

use super::access::Secret;
use super::answer::Problem;
use super::range::Conditions;

/// The longest head: kurultai-api(7).
pub const HEAD_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;

/// The longest `X-Request-Id` that is taken over from the client.
const REQUEST_ID_MAX: usize = 64;
const IDEMPOTENCY_KEY_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Delete,
    Other,
}

/// What of a head matters here.
#[derive(Debug)]
pub struct Head {
    pub method: Method,
    pub path: String,
    /// Without the question mark.
    pub query: String,
    pub is_http_1_0: bool,
    pub keeps_alive: bool,
    pub content_length: Option<u64>,
    pub is_chunked: bool,
    pub expects_continue: bool,
    pub content_type: Option<String>,
    pub authorization: Option<Secret<String>>,
    pub host: Option<String>,
    pub origin: Option<String>,
    /// It comes from a browser that shows a page, rather than from a program.
    pub accepts_html: bool,
    pub request_id: Option<Arc<str>>,
    pub idempotency_key: Option<Arc<str>>,
    pub conditions: Conditions,
}

impl Head {
    /// The client waits for 100 Continue before it sends a body.
    pub fn wants_leave(&self) -> bool {
        self.expects_continue && self.content_length.is_some_and(|length| length > 0)
    }
}

/// The head at the start of `bytes` and its length, or `None` if it is not complete.
pub fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Problem> {
    let sound = before_bare_line_feed(bytes);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(sound).map_err(|error| match error {
        httparse::Error::TooManyHeaders => Problem::new(
            431,
            "invalid_request",
            format!("the head has more than {HEADERS_MAX} header lines: send fewer"),
        ),
        error => Problem::malformed(format!("the request head is malformed: {error}")),
    })?;
    match status {
        httparse::Status::Complete(length) if length <= HEAD_MAX => {
            interpret(&request).map(|head| Some((head, length)))
        }
        httparse::Status::Complete(_) => Err(too_large()),
        httparse::Status::Partial if sound.len() < bytes.len() => {
            Err(Problem::malformed("a line of the head ends with a line feed alone: end lines with CR LF"))
        }
        httparse::Status::Partial if bytes.len() >= HEAD_MAX => Err(too_large()),
        httparse::Status::Partial => Ok(None),
    }
}

/// A server may take a line feed alone for the end of a line (RFC 9112, section 2.2), and one before it may not: the two
/// would not see the same requests. So a head has to be whole before the first of them.
fn before_bare_line_feed(bytes: &[u8]) -> &[u8] {
    let is_bare = |at: &usize| bytes[*at] == b'\n' && (*at == 0 || bytes[*at - 1] != b'\r');
    (0..bytes.len()).find(is_bare).map_or(bytes, |at| &bytes[..at])
}

fn too_large() -> Problem {
    Problem::new(431, "invalid_request", format!("the head is longer than {HEAD_MAX} bytes: send less in headers"))
}

fn interpret(request: &httparse::Request<'_, '_>) -> Result<Head, Problem> {
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, authority) = origin_form(path)?;
    let mut head = Head {
        method: method(request.method.unwrap_or_default()),
        path,
        query: query.to_string(),
        is_http_1_0: request.version == Some(0),
        keeps_alive: request.version == Some(1),
        content_length: None,
        is_chunked: false,
        expects_continue: false,
        content_type: None,
        authorization: None,
        host: None,
        origin: None,
        accepts_html: false,
        request_id: None,
        idempotency_key: None,
        conditions: Conditions::default(),
    };
    for header in request.headers.iter() {
        take_header(&mut head, header.name, header.value)?;
    }
    if let (Some(host), Some(authority)) = (&mut head.host, authority) {
        // The authority of an absolute URL goes before Host (RFC 9112, section 3.2.2).
        *host = authority;
    }
    if head.is_chunked && head.content_length.is_some() {
        return Err(Problem::malformed("it has both Content-Length and Transfer-Encoding: send one"));
    }
    if head.host.is_none() && !head.is_http_1_0 {
        return Err(Problem::malformed("an HTTP/1.1 request needs a Host header"));
    }
    Ok(head)
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        _ => Method::Other,
    }
}

/// A path, or path and authority of an absolute URL, which a server must take too (RFC 9112, section 3.2.2).
fn origin_form(target: &str) -> Result<(String, Option<String>), Problem> {
    if target.starts_with('/') {
        return Ok((target.to_string(), None));
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    match rest.map(|rest| rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash))) {
        Some((authority, path)) => Ok((path.to_string(), Some(authority.to_string()))),
        None => Err(Problem::malformed(format!("the request target {:?} is no path", cut(target)))),
    }
}

fn take_header(head: &mut Head, name: &str, value: &[u8]) -> Result<(), Problem> {
    let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
    if is("content-length") {
        let length = content_length(value)?;
        once(&mut head.content_length, "Content-Length", length)?;
    } else if is("transfer-encoding") {
        if head.is_chunked || head.is_http_1_0 || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            let value = cut(&String::from_utf8_lossy(value)).to_string();
            return Err(Problem::malformed(format!(
                "Transfer-Encoding {value:?} is not supported: send chunked, once"
            )));
        }
        head.is_chunked = true;
    } else if is("host") {
        once(&mut head.host, "Host", text(name, value)?)?;
    } else if is("connection") {
        for option in value.split(|byte| *byte == b',') {
            if option.trim_ascii().eq_ignore_ascii_case(b"close") {
                head.keeps_alive = false;
            } else if option.trim_ascii().eq_ignore_ascii_case(b"keep-alive") && head.is_http_1_0 {
                head.keeps_alive = true;
            }
        }
    } else if is("expect") {
        // An old client cannot mean it (RFC 9110, section 10.1.1).
        if !head.is_http_1_0 {
            if !value.trim_ascii().eq_ignore_ascii_case(b"100-continue") {
                let value = cut(&String::from_utf8_lossy(value)).to_string();
                let message = format!("Expect {value:?} cannot be met: 100-continue is the only one that can");
                return Err(Problem::new(417, "expectation_failed", message));
            }
            head.expects_continue = true;
        }
    } else if is("content-type") {
        once(&mut head.content_type, "Content-Type", text(name, value)?)?;
    } else if is("authorization") {
        once(&mut head.authorization, "Authorization", Secret(text(name, value)?))?;
    } else if is("origin") {
        once(&mut head.origin, "Origin", text(name, value)?)?;
    } else if is("accept") {
        head.accepts_html |= value.windows(9).any(|part| part.eq_ignore_ascii_case(b"text/html"));
    } else if is("x-request-id") {
        head.request_id = sane_request_id(value);
    } else if is("idempotency-key") {
        once(&mut head.idempotency_key, "Idempotency-Key", idempotency_key(&text(name, value)?)?)?;
    } else if is("range") {
        // Given twice, it is as good as several ranges, which are left alone.
        append(&mut head.conditions.range, &text(name, value)?);
    } else if is("if-range") {
        head.conditions.if_range = Some(text(name, value)?);
    } else if is("if-none-match") {
        append(&mut head.conditions.if_none_match, &text(name, value)?);
    }
    Ok(())
}

/// Of two that differ, a proxy before us may have looked at the other one.
fn once<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), Problem> {
    match place.replace(value) {
        Some(_) => Err(Problem::malformed(format!("it has two {name} headers: send one"))),
        None => Ok(()),
    }
}

/// Lines of a list are one list (RFC 9110, section 5.3).
fn append(list: &mut Option<String>, more: &str) {
    match list {
        Some(list) => {
            list.push_str(", ");
            list.push_str(more);
        }
        None => *list = Some(more.to_string()),
    }
}

/// Digits only: `+5`, `0x5` or `5, 5` mean different things to different programs.
fn content_length(value: &[u8]) -> Result<u64, Problem> {
    let digits = value.trim_ascii();
    let is_plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(digits).ok().filter(|_| is_plain).and_then(|digits| digits.parse().ok());
    length.ok_or_else(|| {
        let value = String::from_utf8_lossy(value);
        Problem::malformed(format!("Content-Length {:?} is no number of bytes", cut(&value)))
    })
}

/// The client's own id if it can stand in a log line and a header as it is; otherwise it gets one of ours.
fn sane_request_id(value: &[u8]) -> Option<Arc<str>> {
    let is_sane = !value.is_empty()
        && value.len() <= REQUEST_ID_MAX
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte));
    is_sane.then(|| Arc::from(String::from_utf8_lossy(value)))
}

pub fn idempotency_key(key: &str) -> Result<Arc<str>, Problem> {
    let is_sane =
        !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_MAX && key.bytes().all(|byte| byte.is_ascii_graphic());
    if is_sane {
        return Ok(Arc::from(key));
    }
    Err(Problem::invalid(format!(
        "the idempotency key {:?} is not 1 to {IDEMPOTENCY_KEY_MAX} visible ASCII characters",
        cut(key)
    )))
}

fn text(name: &str, value: &[u8]) -> Result<String, Problem> {
    match std::str::from_utf8(value) {
        Ok(text) => Ok(text.trim().to_string()),
        Err(_) => Err(Problem::malformed(format!("header {name} is not valid UTF-8"))),
    }
}

/// Enough of what a client sent to recognise it.
pub fn cut(text: &str) -> &str {
    match text.char_indices().nth(80) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<(Head, usize)>, u16> {
        parse(text.as_bytes()).map_err(|problem| problem.status)
    }

    #[test]
    fn a_head_is_incomplete_until_its_empty_line() {
        let whole = "POST /v1/tasks?wait=3 HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n";
        for end in 0..whole.len() {
            assert!(matches!(head(&whole[..end]), Ok(None)), "after {end} bytes");
        }
        let (parsed, length) = head(whole).expect("sound").expect("complete");
        assert_eq!(length, whole.len());
        assert_eq!((parsed.method, &*parsed.path, &*parsed.query), (Method::Post, "/v1/tasks", "wait=3"));
        assert_eq!((parsed.content_length, parsed.keeps_alive), (Some(7), true));
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for (headers, why) in [
            ("Content-Length: 5\r\nContent-Length: 5", "two lengths"),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", "length and chunked"),
            ("Content-Length: +5", "signed"),
            ("Content-Length: 5x", "odd"),
            ("Content-Length: 5, 5", "a list"),
            ("Content-Length:", "empty"),
            ("Content-Length: 99999999999999999999", "too big"),
            ("Transfer-Encoding: gzip, chunked", "another coding"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "twice"),
            ("Content-Length : 5", "space before the colon"),
            ("X: a\r\n b", "folded"),
            ("X: a\nContent-Length: 5", "a line feed alone"),
            ("Host: b", "two hosts"),
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
            assert_eq!(head(&text).err(), Some(400), "{why}");
        }
        assert_eq!(head("GET / HTTP/1.1\r\n\r\n").err(), Some(400), "no host");
        assert_eq!(head("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n").err(), Some(417));
        let (old, _) = head("GET / HTTP/1.0\r\nExpect: tea\r\n\r\n").expect("not meant").expect("complete");
        assert!(!old.expects_continue);
        assert_eq!(head("GET x HTTP/1.1\r\nHost: a\r\n\r\n").err(), Some(400), "no path");
    }

    #[test]
    fn what_is_wrong_with_a_head_is_said_the_same_however_much_has_come_after_it() {
        let malformed = |text: &str| parse(text.as_bytes()).expect_err(text).message;
        let early = malformed("GET / HTTP/1.1\r\nHost: a\nX");
        assert!(early.contains("line feed alone"), "{early}");
        assert_eq!(malformed("GET / HTTP/1.1\r\nHost: a\nX y: z\r\n\r\n"), early);
        let early = malformed("GET / HTTP/1.1\r\nX y");
        assert_eq!(malformed("GET / HTTP/1.1\r\nX y: z\n\r\n"), early);
        let (_, length) = head("GET / HTTP/1.0\r\n\r\n\n").expect("the body may have it").expect("complete");
        assert_eq!(length, 18);
    }

    #[test]
    fn heads_are_bounded() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX));
        assert_eq!(head(&long).err(), Some(431));
        assert_eq!(head(&long[..HEAD_MAX]).err(), Some(431), "before its end has come");
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX));
        assert_eq!(head(&many).err(), Some(431));
    }

    #[test]
    fn an_odd_request_id_is_replaced_and_an_absolute_target_is_a_path() {
        let text = "GET http://host:1/v1/queue?x HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\"b\r\n\r\n";
        let (parsed, _) = head(text).expect("sound").expect("complete");
        assert_eq!((&*parsed.path, &*parsed.query, parsed.request_id), ("/v1/queue", "x", None));
    }

    #[test]
    fn a_token_is_not_shown_with_the_head_that_holds_it() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer hush\r\n\r\n";
        let (parsed, _) = head(text).expect("sound").expect("complete");
        assert!(parsed.authorization.is_some() && !format!("{parsed:?}").contains("hush"));
    }
}
