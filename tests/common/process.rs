//! Processes as /proc shows them.

use std::fs;

/// What a daemon holds. A test takes it before and after and compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    pub rss_bytes: u64,
    pub fds: usize,
    pub threads: u64,
}

impl Footprint {
    pub fn of(pid: u32) -> Footprint {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of proc_pid_status(5)");
            line.trim_start_matches(':').split_ascii_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
        };
        Footprint {
            rss_bytes: number("VmRSS") * 1024,
            fds: fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives").count(),
            threads: number("Threads"),
        }
    }
}

/// Whether a process holds one pidfd of each of these, and no file in /proc of any other but itself; and moves nobody between
/// cgroups at the moment.
pub fn holds_only_of(pid: u32, others: &[u32]) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok());
    let (mut pidfds, mut strangers) = (0, 0);
    for link in links {
        let in_proc = link.strip_prefix("/proc/").and_then(|rest| rest.split('/').next()?.parse().ok());
        // Since Linux 6.9 they have a file system of their own.
        pidfds += usize::from(link == "anon_inode:[pidfd]" || link.starts_with("pidfd:"));
        strangers += usize::from(link.ends_with("/tasks"));
        strangers += usize::from(in_proc.is_some_and(|owner: u32| owner != pid && !others.contains(&owner)));
    }
    pidfds == others.len() && strangers == 0
}

/// State and parent of a process: proc_pid_stat(5).
fn stat(pid: u32) -> Option<(char, u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some((fields[0].chars().next()?, fields[1].parse().ok()?, fields[19].parse().ok()?))
}

/// In clock ticks since boot: with the pid it names a process for good.
pub fn start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|(_, _, start)| start)
}

/// A zombie does not live.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, ..)| state != 'Z' && state != 'X')
}

/// Every child of a process, zombies included.
pub fn children(parent: u32) -> Vec<u32> {
    all().into_iter().filter(|pid| stat(*pid).is_some_and(|(_, ppid, _)| ppid == parent)).collect()
}

pub fn descendants(parent: u32) -> Vec<u32> {
    let mut found = children(parent);
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        let more = children(*pid);
        found.extend(more);
        next += 1;
    }
    found
}

fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// `kill -NAME PID`, of a process the test has started.
#[track_caller]
pub fn signal(pid: u32, name: &str) {
    super::shell(&format!("kill -{name} {pid}")).expect(0);
}
