//! For tests: a daemon that answers from a script, and a console that is looked at afterwards.
//!
//! Owns a thread on a Unix socket in a directory of its own. May import std and tempfile. Must never know what is tested.

use super::console::{Console, Env};
use super::run;
use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Answers one connection after another, each with the next answer of its script, then stops listening.
pub struct Daemon {
    directory: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub fn answering(script: impl IntoIterator<Item = String>) -> Daemon {
        let script: Vec<String> = script.into_iter().collect();
        Daemon::serving(move |listener, requests| {
            for answer in script {
                let (stream, _) = listener.accept().expect("accept");
                let request = read_request(&stream);
                requests.lock().expect("requests").push(request);
                // Why: a client that has seen enough may be gone.
                let _ = (&stream).write_all(answer.as_bytes());
            }
        })
    }

    pub fn serving(serve: impl FnOnce(UnixListener, Arc<Mutex<Vec<String>>>) + Send + 'static) -> Daemon {
        let directory = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(directory.path().join("sock")).expect("bind");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&requests);
        let thread = std::thread::Builder::new().name("fake-daemon".to_owned());
        let thread = thread.spawn(move || serve(listener, shared)).expect("thread");
        Daemon { directory, requests, thread: Some(thread) }
    }

    pub fn socket(&self) -> OsString {
        self.directory.path().join("sock").into_os_string()
    }

    pub fn run(&self, line: &str) -> Outcome {
        run_line(line, &[], &Env { socket: Some(self.socket()), ..Env::default() }, false)
    }

    pub fn run_with_input(&self, line: &str, input: &[u8]) -> Outcome {
        run_line(line, input, &Env { socket: Some(self.socket()), ..Env::default() }, false)
    }

    pub fn run_on_terminal(&self, line: &str) -> Outcome {
        run_line(line, &[], &Env { socket: Some(self.socket()), ..Env::default() }, true)
    }

    /// Every request as it came, once the script is through.
    pub fn requests(mut self) -> Vec<String> {
        self.thread.take().expect("joined once").join().expect("the fake daemon failed");
        std::mem::take(&mut *self.requests.lock().expect("requests"))
    }
}

pub fn read_request(stream: &UnixStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    let mut length = 0;
    loop {
        let before = request.len();
        reader.read_line(&mut request).expect("head");
        let line = &request[before..];
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("length");
        }
        if line == "\r\n" || line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("body");
    request + &String::from_utf8_lossy(&body)
}

pub fn json(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub fn until_close(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}")
}

pub struct Outcome {
    pub status: u8,
    pub out: String,
    pub err: String,
}

pub fn run_line(line: &str, input: &[u8], env: &Env, terminal: bool) -> Outcome {
    let (out, err) = (Recorded::default(), Recorded::default());
    let input = Box::new(io::Cursor::new(input.to_vec()));
    let mut console = Console::for_test(Box::new(out.clone()), Box::new(err.clone()), input, terminal);
    let status = run(line.split_whitespace().map(OsString::from), env, &mut console);
    Outcome { status, out: out.text(), err: err.text() }
}

/// A stream that remembers; with a limit, its reader goes away after so many bytes.
#[derive(Clone, Default)]
pub struct Recorded {
    bytes: Rc<RefCell<Vec<u8>>>,
    limit: Option<usize>,
}

impl Recorded {
    pub fn breaking_after(limit: usize) -> Recorded {
        Recorded { limit: Some(limit), ..Recorded::default() }
    }

    pub fn console(terminal: bool) -> (Console, Recorded) {
        let out = Recorded::default();
        (Console::for_test(Box::new(out.clone()), Box::new(io::sink()), Box::new(io::empty()), terminal), out)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.borrow()).into_owned()
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.limit.is_some_and(|limit| self.bytes.borrow().len() >= limit) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.bytes.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
