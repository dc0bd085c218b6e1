//! A warm no-op through the whole daemon, beside a bare pipe to the same worker: `make bench`.
//!
//! Absolute times say more about the machine than about the program; the ratios, taken in one run, travel.
#![allow(unsafe_code)]

mod daemon;
mod load;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use daemon::{Daemon, command, now, rss_kib};
use load::{Client, PAYLOAD, SUBMITTERS, median, per_second};

const ROUND_TRIPS: usize = 4000;
const WARM_UP: usize = 200;
const LOAD_TIME: Duration = Duration::from_secs(4);
const SUBMIT: &str = "/v1/agents/echo/tasks?wait=30";

fn main() {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/agents/echo.py");
    let pipe = pipe_round_trip(&agent);
    println!("pipe to the worker, the two ends on two CPUs    p50 {:>8.1} us", micros(pipe));
    for durability in ["none", "fsync"] {
        let daemon = Daemon::start(&settings(&agent, durability));
        let one = one_submitter(daemon.port);
        println!(
            "through the daemon, durability {durability:<5}             p50 {:>8.1} us   {:>5.2} x the pipe",
            micros(one),
            one.as_secs_f64() / pipe.as_secs_f64()
        );
        let jobs = per_second(LOAD_TIME, |_| {
            let mut client = Client::connect(daemon.port, SUBMIT);
            move || job(&mut client)
        });
        println!("{SUBMITTERS} submitters, durability {durability:<5}                   {jobs:>8.0} jobs/s");
        println!("the daemon afterwards                               {:>8} KiB RSS", rss_kib(daemon.pid()));
    }
}

fn settings(agent: &Path, durability: &str) -> String {
    format!(
        "[spool]\ndurability = \"{durability}\"\n\
         [queue]\nmax_depth = 64\npriority_limits = {{ critical = 64, high = 64, normal = 64, low = 64, heartbeat = 64 }}\n\
         [agents.echo]\ncommand = [\"python3\", \"{}\"]\nmode = \"persistent\"\n",
        agent.display()
    )
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Both ends in the way of the yardstick: a pipe is bimodal, and fast where they happen to share a CPU.
fn pin(pid: i32, cpu: usize) {
    // SAFETY: a zeroed cpu_set_t is a valid empty set, and it outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(pid, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(result, 0, "cannot pin process {pid} to CPU {cpu}");
}

fn unpin() {
    // SAFETY: as above; the kernel ignores CPUs that are not there.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (0..libc::CPU_SETSIZE as usize).for_each(|cpu| libc::CPU_SET(cpu, &mut set));
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn pipe_round_trip(agent: &Path) -> Duration {
    let mut worker = Worker::start(agent);
    pin(0, 0);
    pin(worker.child.id() as i32, 1);
    let task = format!(
        "{{\"type\":\"TASK\",\"taskId\":\"t-1\",\"priority\":\"normal\",\"payloadType\":\"json\",\"timeoutMs\":60000,\
         \"attempt\":1,\"requestId\":\"r-1\",\"payload\":{PAYLOAD}}}\n"
    );
    let times = (0..WARM_UP + ROUND_TRIPS).map(|_| {
        let start = now();
        worker.stdin.write_all(task.as_bytes()).expect("the worker reads");
        while !worker.line().contains("\"COMPLETE\"") {}
        start.elapsed()
    });
    let times: Vec<Duration> = times.skip(WARM_UP).collect();
    unpin();
    median(times, Ord::cmp)
}

struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    fn start(agent: &Path) -> Worker {
        let mut child =
            command("python3").arg(agent).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut worker = Worker { child, stdin, stdout };
        let hello = "{\"type\":\"HELLO\",\"protocol\":[1],\"workerId\":\"w-1\",\"agent\":\"echo\",\"softMemoryLimitMB\":300,\"hardMemoryLimitMB\":512}\n";
        worker.stdin.write_all(hello.as_bytes()).expect("the worker reads");
        while !worker.line().contains("\"READY\"") {}
        worker
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.stdout.read_line(&mut line).expect("the worker writes") > 0, "the worker has ended");
        line
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn one_submitter(port: u16) -> Duration {
    let mut client = Client::connect(port, SUBMIT);
    let times = (0..WARM_UP + ROUND_TRIPS).map(|_| {
        let start = now();
        job(&mut client);
        start.elapsed()
    });
    median(times.skip(WARM_UP).collect(), Ord::cmp)
}

/// Submits one job and has its result.
fn job(client: &mut Client) {
    let result = client.post(200);
    assert!(result == PAYLOAD.as_bytes(), "{}", String::from_utf8_lossy(result));
}
