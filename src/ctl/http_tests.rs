//! Answers in every framing, whole and broken, and addresses.

use super::super::error::exit;
use super::super::fake::{Daemon, read_request};
use super::*;

fn fetched(answer: &str) -> Result<(u16, String), CtlError> {
    let daemon = Daemon::answering([answer.to_owned()]);
    let client = Client::new(Target::Unix(PathBuf::from(daemon.socket())), None);
    let mut answer = client.send(Request::get("/x"))?;
    let body = answer.body.read_whole(1000).map_err(|source| client.lost(source))?;
    Ok((answer.status, String::from_utf8(body).expect("UTF-8")))
}

#[test]
fn a_body_is_read_to_its_end_however_it_is_framed() {
    for (name, answer, status, body) in [
        ("length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokXX", 200, "ok"),
        ("close", "HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "until the end"),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nold", 200, "old"),
        ("no body", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", 204, ""),
        ("empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
        (
            "chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\n\r\n",
            200,
            "abcde",
        ),
        ("trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\nmore", 200, "a"),
        (
            "chunked wins",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            200,
            "a",
        ),
        ("interim", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 409 Conflict\r\nContent-Length: 1\r\n\r\nx", 409, "x"),
    ] {
        assert_eq!(fetched(answer).expect(name), (status, body.to_owned()), "{name}");
    }
}

#[test]
fn a_broken_answer_is_told_from_a_short_one() {
    let long_header = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(200));
    let large_body = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1001));
    for (name, answer, expected) in [
        ("nothing", "", "closed without a whole answer"),
        ("half a head", "HTTP/1.1 200 OK\r\nX", "closed without a whole answer"),
        ("no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", "no HTTP/1.1 answer"),
        ("short body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "closed in the middle"),
        ("signed length", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nabcde", "its length is \"+5\""),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", "two lengths"),
        ("gzip", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer encoding"),
        ("cut chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "closed in the middle"),
        ("no size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab", "a chunk has no size"),
        ("long chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "longer than its size"),
        ("no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "closed in the middle"),
        ("long head", &long_header, "its head is too large"),
        ("many headers", &many_headers, "its head: "),
        ("large body", &large_body, "larger than 1000 bytes"),
    ] {
        let error = fetched(answer).expect_err(name);
        assert_eq!(error.exit_status(), exit::UNREACHABLE, "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn a_refusal_is_heard_even_if_the_daemon_stops_reading_the_payload() {
    let daemon = Daemon::serving(|listener, _| {
        let (mut stream, _) = listener.accept().expect("accept");
        let refusal = "HTTP/1.1 413 X\r\nContent-Length: 5\r\n\r\nlarge";
        stream.write_all(refusal.as_bytes()).expect("answer");
    });
    let client = Client::new(Target::Unix(PathBuf::from(daemon.socket())), None);
    let body = RequestBody::Bytes(vec![b'x'; 8 * 1024 * 1024]);
    let mut answer = client.send(Request { body, ..Request::with_method("POST", "/x") }).expect("an answer");
    assert_eq!((answer.status, answer.body.read_whole(100).expect("body")), (413, b"large".to_vec()));
}

#[test]
fn a_request_says_who_asks_and_how_long_it_is() {
    let daemon = Daemon::answering(["HTTP/1.1 204 X\r\n\r\n".to_owned()]);
    let client = Client::new(Target::Unix(PathBuf::from(daemon.socket())), Some("secret".to_owned()));
    let headers = vec![("X-Kind", "a".to_owned())];
    let request =
        Request { headers, body: RequestBody::Bytes(b"abc".to_vec()), ..Request::with_method("POST", "/p?q=1") };
    client.send(request).expect("an answer");
    let expected = format!(
        "POST /p?q=1 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: kurultaictl/{}\r\nConnection: close\r\n\
         Authorization: Bearer secret\r\nX-Kind: a\r\nContent-Length: 3\r\n\r\nabc",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(daemon.requests(), [expected]);
}

#[test]
fn a_file_that_shrinks_is_no_payload() {
    let daemon = Daemon::serving(|listener, _| {
        let (stream, _) = listener.accept().expect("accept");
        io::copy(&mut &stream, &mut io::sink()).expect("read to the end");
    });
    let client = Client::new(Target::Unix(PathBuf::from(daemon.socket())), None);
    let body = RequestBody::File { file: tempfile::tempfile().expect("file"), bytes: 10 };
    let error = client.send(Request { body, ..Request::with_method("POST", "/x") }).err().expect("an error");
    assert_eq!(error.exit_status(), exit::FAILED);
    assert!(error.to_string().contains("shrank by 10 of 10 bytes"), "{error}");
}

#[test]
fn tcp_speaks_the_same() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let daemon = Daemon::serving(move |_, _| {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("answer");
        io::copy(&mut stream, &mut io::sink()).expect("read to the end");
    });
    let client = Client::new(Target::from_url(&url).expect("URL"), None);
    let mut answer = client.send(Request::get("/")).expect("an answer");
    assert_eq!(answer.body.read_whole(10).expect("body"), b"ok");
    drop(answer);
    assert!(daemon.requests().is_empty());
}

#[test]
fn a_url_is_a_host_and_a_port() {
    for (url, host, port) in [
        ("http://127.0.0.1:7700", "127.0.0.1", 7700),
        ("http://box.example/", "box.example", 80),
        ("http://[::1]:7700", "[::1]", 7700),
        ("http://[::1]", "[::1]", 80),
    ] {
        assert_eq!(Target::from_url(url).expect(url), Target::Tcp { host: host.to_owned(), port }, "{url}");
    }
    for (url, expected) in [
        ("127.0.0.1:7700", "does not begin with http://"),
        ("https://box", "TLS is not spoken here"),
        ("ftp://box", "does not begin with http://"),
        ("http://", "only a host and a port"),
        ("http://box/v1", "only a host and a port"),
        ("http://user@box", "only a host and a port"),
        ("http://box:port", "the port is no number"),
        ("http://box:70000", "the port is no number"),
        ("http://a\r\nb", "only a host and a port"),
    ] {
        let error = Target::from_url(url).expect_err(url);
        assert_eq!(error.exit_status(), exit::USAGE, "{url}");
        assert!(error.to_string().contains(expected), "{url}: {error}");
    }
}

#[test]
fn what_is_encoded_stays_one_segment() {
    assert_eq!(encoded("a-b_c.d~e"), "a-b_c.d~e");
    assert_eq!(encoded("a/b?c d%ü\r\n"), "a%2Fb%3Fc%20d%25%C3%BC%0D%0A");
}

#[test]
fn the_fake_daemon_reads_a_request_whole() {
    let (mut here, there) = std::os::unix::net::UnixStream::pair().expect("pair");
    here.write_all(b"PUT / HTTP/1.1\r\ncontent-length: 2\r\n\r\nabc").expect("write");
    assert!(read_request(&there).ends_with("\r\n\r\nab"));
}
