//! `/health` of the whole daemon under wrk, beside a bare `tiny_http::Server` that says hello: `make bench`.
//!
//! The two take turns, so that what else the machine does hits both. Status 1: the daemon was the slower one, gave an
//! error, or grew beyond its bound.

mod bare_tiny_http;
mod daemon;

use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, bounded};
use daemon::{Daemon, command, free_port, rss_kib, wait_for};

const CONNECTIONS: &str = "64";
const SECONDS: u64 = 30;
/// Turns of each, which share its seconds.
const TURNS: u64 = 2;

const SAMPLE_EVERY: Duration = Duration::from_millis(10);
const RSS_MAX_KIB: u64 = 8 * 1024;

/// The argument that makes this program the yardstick.
const BARE: &str = "bare";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [BARE, port] => {
            bare_tiny_http::serve(port.parse().expect("a port"));
            ExitCode::SUCCESS
        }
        [] => compare(SECONDS),
        [seconds] => compare(seconds.parse().expect("seconds for each of the two")),
        _ => panic!("usage: http [SECONDS], not {arguments:?}"),
    }
}

fn compare(seconds: u64) -> ExitCode {
    if command("wrk").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("bench: wrk is missing (Debian package wrk)");
        return ExitCode::FAILURE;
    }
    let (bare, daemon) = (Bare::start(), Daemon::start(""));
    let turn = (seconds / TURNS).max(1);
    let (mut of_bare, mut of_daemon, mut peak_kib) = (Load::default(), Load::default(), 0);
    for _ in 0..TURNS {
        of_bare.add(&load(bare.port, "/", turn));
        let (load, peak) = watched(daemon.pid(), || load(daemon.port, "/health", turn));
        of_daemon.add(&load);
        peak_kib = peak_kib.max(peak);
    }
    let (bare_rate, daemon_rate) = (of_bare.per_second(), of_daemon.per_second());
    let ratio = daemon_rate / bare_rate;
    println!("{CONNECTIONS} connections, {TURNS} turns of {turn} s each");
    println!("tiny_http::Server, bare          {bare_rate:>9.0} requests/s   {} errors", of_bare.errors);
    println!("kurultaid, /health               {daemon_rate:>9.0} requests/s   {} errors", of_daemon.errors);
    println!("                                 {ratio:>9.2} x the bare server (at least 1)");
    println!("kurultaid's RSS at its highest   {peak_kib:>9} KiB (less than {RSS_MAX_KIB})");
    let complaints = [
        (of_daemon.errors > 0, "there were errors"),
        (ratio.is_nan() || ratio < 1.0, "the daemon is slower than the bare server"),
        (peak_kib == 0 || peak_kib >= RSS_MAX_KIB, "its memory is over its bound, or was not seen"),
    ];
    for (_, complaint) in complaints.iter().filter(|(is_so, _)| *is_so) {
        eprintln!("bench: {complaint}");
    }
    if complaints.iter().any(|(is_so, _)| *is_so) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What wrk says of its turns.
#[derive(Default)]
struct Load {
    requests: f64,
    turns: f64,
    /// Answers other than 2xx and 3xx, and connections that failed or timed out.
    errors: u64,
}

impl Load {
    fn add(&mut self, other: &Load) {
        self.requests += other.requests;
        self.turns += other.turns;
        self.errors += other.errors;
    }

    fn per_second(&self) -> f64 {
        self.requests / self.turns
    }
}

fn load(port: u16, path: &str, seconds: u64) -> Load {
    let url = format!("http://127.0.0.1:{port}{path}");
    let duration = format!("{seconds}s");
    let output = command("wrk").args(["-t2", "-c", CONNECTIONS, "-d", &duration, &url]).output().expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let said = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let rate = said("Requests/sec:").and_then(|rate| rate.parse().ok());
    let requests =
        rate.unwrap_or_else(|| panic!("wrk says no rate: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let refused = said("Non-2xx or 3xx responses:").map_or(0, |count| count.parse().expect("a count"));
    // connect 0, read 0, write 0, timeout 0
    let broken = said("Socket errors:")
        .map_or(0, |counts| counts.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum());
    Load { requests, turns: 1.0, errors: refused + broken }
}

/// What `work` gives, and the most memory the process had meanwhile.
fn watched<T>(pid: u32, work: impl FnOnce() -> T) -> (T, u64) {
    let (stop_tx, stop_rx) = bounded::<()>(0);
    let watch = move || {
        let mut peak = rss_kib(pid);
        while let Err(RecvTimeoutError::Timeout) = stop_rx.recv_timeout(SAMPLE_EVERY) {
            peak = peak.max(rss_kib(pid));
        }
        peak
    };
    let watcher = std::thread::Builder::new().spawn(watch).expect("a thread starts");
    let done = work();
    drop(stop_tx);
    (done, watcher.join().expect("the watcher does not fail"))
}

struct Bare {
    port: u16,
    child: Child,
}

impl Bare {
    fn start() -> Bare {
        let port = free_port();
        let program = std::env::current_exe().expect("a program");
        let child = command(program).args([BARE, &port.to_string()]).spawn().expect("the yardstick starts");
        wait_for(port);
        Bare { port, child }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
