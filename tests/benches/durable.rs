//! How fast tasks are accepted that have to be on the disk, beside the disk itself: `make bench`.
//!
//! The yardstick is what a program does that keeps a task a file: write it aside, fsync, rename, fsync the directory; by as
//! many threads as there are submitters, the same bytes, on the same disk, the two in turn. Exit status 1 below the ratio
//! that is aimed at.

#[expect(dead_code, reason = "the other benchmarks ask for the daemon's memory as well")]
mod daemon;
mod load;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use daemon::Daemon;
use load::{Client, PAYLOAD, SUBMITTERS, median, per_second};

const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_secs(1);
const AIM: f64 = 0.8;

/// No worker to spare for what is accepted: no more than the queue can hold is asked of the daemon in a round, and nothing
/// but accepting is measured.
const SETTINGS: &str = "[memory]\nsources = [\"budget\"]\n[spool]\ndurability = \"fsync\"\n[workers]\nmax = 1\n\
     [queue]\nmax_depth = 10000\npriority_limits = { normal = 10000 }\n\
     [agents.sleep]\ncommand = [\"sleep\", \"600\"]\n";

fn main() -> ExitCode {
    let directory = tempfile::Builder::new().prefix("kurultai-bench-").tempdir().expect("a directory");
    let (mut raw, mut daemons) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        raw.push(per_second(ROUND_TIME, |submitter| {
            let directory = directory.path().join(format!("raw-{round}"));
            fs::create_dir_all(&directory).expect("a directory");
            let mut number = 0;
            move || {
                number += 1;
                one_file(&directory, &format!("{submitter}-{number}"));
            }
        }));
        let daemon = Daemon::start(SETTINGS);
        daemons.push(per_second(ROUND_TIME, |_| {
            let mut client = Client::connect(daemon.port, "/v1/agents/sleep/tasks");
            move || {
                client.post(202);
            }
        }));
    }
    let (raw, daemon) = (median(raw, f64::total_cmp), median(daemons, f64::total_cmp));
    let ratio = daemon / raw;
    println!("{SUBMITTERS} threads, a file a task, each synced              {raw:>8.0} tasks/s");
    println!(
        "{SUBMITTERS} submitters, durability fsync, accepted            {daemon:>8.0} tasks/s   {ratio:>5.2} x the disk (aim: {AIM})"
    );
    if ratio < AIM { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn one_file(directory: &Path, name: &str) {
    let aside = directory.join(format!("{name}.tmp"));
    let mut file = File::create(&aside).expect("a file");
    file.write_all(PAYLOAD.as_bytes()).and_then(|()| file.sync_all()).expect("it is on the disk");
    fs::rename(&aside, directory.join(name)).expect("renamed");
    File::open(directory).and_then(|directory| directory.sync_all()).expect("its name is on the disk");
}
