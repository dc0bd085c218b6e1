//! How fast tasks are accepted that have to be on the disk, beside the disk itself: `make bench`.
//!
//! The yardstick is what a program does that keeps a task a file: write it aside, fsync, rename, fsync the directory; by as
//! many threads as there are submitters, the same bytes, on the same disk, the two in turn. Exit status 1 below the ratio
//! that is aimed at.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

const SUBMITTERS: usize = 8;
const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_secs(1);
const PAYLOAD: &str =
    "{\"text\":\"a payload of one hundred bytes, the size that the figures of the peers were taken with .....\"}";
const AIM: f64 = 0.8;

fn main() -> ExitCode {
    let directory = tempfile::Builder::new().prefix("kurultai-bench-").tempdir().expect("a directory");
    let (mut raw, mut daemons) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        raw.push(per_second(|submitter| {
            let directory = directory.path().join(format!("raw-{round}"));
            fs::create_dir_all(&directory).expect("a directory");
            let mut number = 0;
            move || {
                number += 1;
                one_file(&directory, &format!("{submitter}-{number}"));
            }
        }));
        let daemon = Daemon::start(&directory.path().join(format!("daemon-{round}")));
        daemons.push(per_second(|_| {
            let mut client = Client::connect(daemon.port);
            move || client.submit()
        }));
    }
    let (raw, daemon) = (median(raw), median(daemons));
    let ratio = daemon / raw;
    println!("{SUBMITTERS} threads, a file a task, each synced              {raw:>8.0} tasks/s");
    println!(
        "{SUBMITTERS} submitters, durability fsync, accepted            {daemon:>8.0} tasks/s   {ratio:>5.2} x the disk (aim: {AIM})"
    );
    if ratio < AIM { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Of what each submitter does again and again, by all of them.
fn per_second<Work: FnMut() + Send>(work: impl Fn(usize) -> Work) -> f64 {
    let deadline = now() + ROUND_TIME;
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
    f64::from(done) / ROUND_TIME.as_secs_f64()
}

fn one_file(directory: &Path, name: &str) {
    let aside = directory.join(format!("{name}.tmp"));
    let mut file = File::create(&aside).expect("a file");
    file.write_all(PAYLOAD.as_bytes()).and_then(|()| file.sync_all()).expect("it is on the disk");
    fs::rename(&aside, directory.join(name)).expect("renamed");
    File::open(directory).and_then(|directory| directory.sync_all()).expect("its name is on the disk");
}

struct Daemon {
    child: Child,
    port: u16,
}

impl Daemon {
    /// One that has no worker to spare for what it accepts: no more than the queue can hold is asked of it in a round, and
    /// nothing but accepting is measured.
    #[expect(clippy::disallowed_methods, reason = "a benchmark starts what it measures")]
    fn start(root: &Path) -> Daemon {
        fs::create_dir_all(root).expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let at = root.display();
        let config = format!(
            "[daemon]\nstate_dir = \"{at}/state\"\nruntime_dir = \"{at}/run\"\nlog_level = \"error\"\n\
             [gateway]\nlisten = \"127.0.0.1:{port}\"\n[memory]\nsources = [\"budget\"]\n[spool]\ndurability = \"fsync\"\n\
             [workers]\nmax = 1\n[queue]\nmax_depth = 10000\npriority_limits = {{ normal = 10000 }}\n\
             [agents.sleep]\ncommand = [\"sleep\", \"600\"]\n"
        );
        let path: PathBuf = root.join("kurultai.toml");
        fs::write(&path, config).expect("written");
        let child =
            Command::new(env!("CARGO_BIN_EXE_kurultaid")).arg("--config").arg(path).spawn().expect("the daemon starts");
        let daemon = Daemon { child, port };
        let patience = now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(now() < patience, "the daemon does not listen");
            std::thread::yield_now();
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        stream.set_nodelay(true).expect("a socket option");
        let request = format!(
            "POST /v1/agents/sleep/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{PAYLOAD}",
            PAYLOAD.len()
        );
        Client { stream, request: request.into_bytes(), buffer: vec![0; 4096] }
    }

    /// Submits one task and has its 202.
    fn submit(&mut self) {
        self.stream.write_all(&self.request).expect("the daemon reads");
        let mut have = 0;
        loop {
            have += self.stream.read(&mut self.buffer[have..]).expect("the daemon answers");
            let answer = &self.buffer[..have];
            if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&answer[..end]);
                assert!(head.starts_with("HTTP/1.1 202"), "{}", String::from_utf8_lossy(answer));
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                let length: usize = length.and_then(|length| length.trim().parse().ok()).expect("a length");
                if have >= end + 4 + length {
                    return;
                }
            }
        }
    }
}
