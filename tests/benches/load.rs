//! What is asked of the daemon: one request again and again, over a connection that is kept.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::daemon::now;

pub const SUBMITTERS: usize = 8;
pub const PAYLOAD: &str =
    "{\"text\":\"a payload of one hundred bytes, the size that the figures of the peers were taken with .....\"}";

/// The one in the middle.
pub fn median<T: Copy>(mut figures: Vec<T>, order: impl FnMut(&T, &T) -> std::cmp::Ordering) -> T {
    figures.sort_unstable_by(order);
    figures[figures.len() / 2]
}

/// What each of the [`SUBMITTERS`] does again and again for a time, by all of them. `work` makes it for the submitter of that
/// number.
pub fn per_second<Work: FnMut() + Send>(time: Duration, work: impl Fn(usize) -> Work) -> f64 {
    let deadline = now() + time;
    let done: u32 = std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..SUBMITTERS)
            .map(|submitter| {
                let mut work = work(submitter);
                scope.spawn(move || {
                    let mut done = 0;
                    while now() < deadline {
                        work();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        submitters.into_iter().map(|submitter| submitter.join().expect("no submitter fails")).sum()
    });
    f64::from(done) / time.as_secs_f64()
}

/// Posts [`PAYLOAD`] to one path.
pub struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(port: u16, path: &str) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        stream.set_nodelay(true).expect("a socket option");
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{PAYLOAD}",
            PAYLOAD.len()
        );
        Client { stream, request: request.into_bytes(), buffer: vec![0; 4096] }
    }

    /// One request; the body of its answer, which has to have this status.
    pub fn post(&mut self, status: u16) -> &[u8] {
        self.stream.write_all(&self.request).expect("the daemon reads");
        let mut have = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[have..]).expect("the daemon answers");
            assert!(read > 0, "the daemon hung up after {}", String::from_utf8_lossy(&self.buffer[..have]));
            have += read;
            if let Some((found, body)) = head(&self.buffer[..have])
                && have >= body.end
            {
                assert_eq!(found, status, "{}", String::from_utf8_lossy(&self.buffer[..have]));
                return &self.buffer[body];
            }
        }
    }
}

/// Status of an answer and where its body is; `None` while the head is not whole.
fn head(answer: &[u8]) -> Option<(u16, std::ops::Range<usize>)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = response.parse(answer).expect("HTTP") else { return None };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("Content-Length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    Some((response.code.expect("a status"), start..start + length.expect("a length")))
}
