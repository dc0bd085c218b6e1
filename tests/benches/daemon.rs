//! The daemon that a benchmark measures, in a directory of its own and on a free port.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

pub struct Daemon {
    pub port: u16,
    child: Child,
    directory: PathBuf,
}

impl Daemon {
    /// `settings`: sections of kurultai.toml(5) beside `daemon` and `gateway`.
    pub fn start(settings: &str) -> Daemon {
        let port = free_port();
        let directory = std::env::temp_dir().join(format!("kurultai-bench-{}-{port}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let root = directory.display();
        let config = format!(
            "[daemon]\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\nlog_level = \"warn\"\n\
             [gateway]\nlisten = \"127.0.0.1:{port}\"\n{settings}"
        );
        let path = directory.join("kurultai.toml");
        fs::write(&path, config).expect("written");
        let child =
            command(env!("CARGO_BIN_EXE_kurultaid")).arg("--config").arg(path).spawn().expect("the daemon starts");
        wait_for(port);
        Daemon { child, port, directory }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Why not TERM: there may be tasks that nobody waits for, and a drain would.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

pub fn wait_for(port: u16) {
    let patience = now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(now() < patience, "nobody listens on port {port}");
        std::thread::yield_now();
    }
}

/// Resident memory; 0 once the process is gone.
pub fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark starts what it measures")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}
