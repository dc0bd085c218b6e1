//! `doctor`: what is effective on this host, and what holds a worker that wants too much memory.
//!
//! Owns the list of what is looked at. May import the API, the console and tables; reads /proc and asks the daemon.
//! Must never change anything.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::api::{Api, Status};
use super::console::{Console, Tone};
use super::error::CtlError;
use super::table::{Cell, Column, Table};
use super::text::mib;

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: &'static str,
    is: String,
    /// What follows from it; empty where nothing does.
    so: &'static str,
    is_good: bool,
}

impl Finding {
    fn good(what: &'static str, is: impl Into<String>, so: &'static str) -> Finding {
        Finding { what, is: is.into(), so, is_good: true }
    }

    fn weak(what: &'static str, is: impl Into<String>, so: &'static str) -> Finding {
        Finding { what, is: is.into(), so, is_good: false }
    }
}

/// The daemon is asked if it is there; the host is looked at in any case.
pub fn run(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let (status, problem) = match api.get::<Status>("/v1/status") {
        Ok(reply) => (Some(reply.value), None),
        Err(error) => (None, Some(error)),
    };
    let mut findings = match (&status, &problem) {
        (Some(status), _) => daemon(status),
        // The error itself is told at the end, as by every command.
        (None, Some(_)) => vec![Finding::weak("daemon", "not reachable", "what it found at its start cannot be told")],
        (None, None) => Vec::new(),
    };
    findings.extend(host(Path::new("/")));
    show(&findings, console, json)?;
    problem.map_or(Ok(()), Err)
}

fn daemon(status: &Status) -> Vec<Finding> {
    let pid = status.pid.unwrap_or(0);
    let mut findings =
        vec![Finding::good("daemon", format!("kurultaid {}, process {pid}, {}", status.version, status.state), "")];
    if let Some(enforcement) = &status.memory.enforcement {
        let is = format!("{}: {}", enforcement.cgroup, enforcement.detail);
        findings.push(if enforcement.cgroup == "none" {
            Finding::weak("worker limits", is, "only the daemon's own watchdog holds hard_limit_mb")
        } else {
            Finding::good("worker limits", is, "the kernel holds hard_limit_mb, the watchdog stands behind it")
        });
        findings.push(if enforcement.psi {
            Finding::good("stall wake-up", "on", "a stall for want of memory is read at once")
        } else {
            Finding::weak("stall wake-up", "off", "memory is read at its interval only")
        });
        findings.push(match enforcement.watchdog.as_str() {
            "realtime" => {
                Finding::good("watchdog", "realtime", "its threads run at once, however busy the processors are")
            }
            "nice" => {
                Finding::good("watchdog", "nice -20", "its threads go before others when the processors are busy")
            }
            other => {
                let so = "on a busy machine a leak gets further: start the daemon as root, or allow it LimitRTPRIO=1";
                Finding::weak("watchdog", other, so)
            }
        });
    }
    findings.push(match status.memory.mode.as_str() {
        "hard" => Finding::good("mode", "hard", "tasks are preempted and killed if need be"),
        "soft" => Finding::weak("mode", "soft", "nothing is preempted or killed, whatever it uses"),
        other => Finding::weak("mode", other, "memory is watched and nothing is done about it"),
    });
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")) {
        let score = text.trim();
        findings.push(Finding::good(
            "OOM score of the daemon",
            score,
            "workers have workers.oom_score_adj: the kernel takes the higher one first",
        ));
    }
    findings
}

/// `root`: of the file system, so that a test can bring its own.
fn host(root: &Path) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let meminfo = read("proc/meminfo");
    let figure = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0)
            * 1024
    };
    let (total, available, swap) = (figure("MemTotal:"), figure("MemAvailable:"), figure("SwapTotal:"));
    let mut findings = vec![
        Finding::good("kernel", read("proc/sys/kernel/osrelease").trim(), ""),
        Finding::good("memory", format!("{} MiB, {} MiB available", mib(total), mib(available)), ""),
        if swap > 0 {
            Finding::weak("swap", format!("{} MiB", mib(swap)), "a host that swaps slows down before memory is short")
        } else {
            Finding::good("swap", "none", "what does not fit is killed rather than swapped")
        },
    ];
    findings.push(match read("proc/sys/vm/overcommit_memory").trim() {
        "2" => Finding::weak("overcommit", "2, never", "programs may be refused memory that is free"),
        "" => Finding::weak("overcommit", "unknown", ""),
        mode => Finding::good("overcommit", mode, "memory is promised freely and short when it is used"),
    });
    findings.push(if read("proc/pressure/memory").is_empty() {
        Finding::weak("PSI", "not there", "the kernel was built or started without psi=1")
    } else {
        Finding::good("PSI", "there", "")
    });
    findings.push(cgroup(root, &read("proc/self/cgroup")));
    findings
}

/// The group this command runs in, and what bounds it: a container's limit looks like this.
fn cgroup(root: &Path, memberships: &str) -> Finding {
    let of_v1 = memberships.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    let (version, file) = match (of_v1, memberships.lines().find_map(|line| line.strip_prefix("0::"))) {
        (Some(path), _) => ("v1", format!("sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
        (None, Some(path)) => ("v2", format!("sys/fs/cgroup{path}/memory.max")),
        (None, None) => return Finding::weak("cgroup", "none", "no limit of a container would be seen"),
    };
    let limit = fs::read_to_string(root.join(file)).ok().and_then(|text| text.trim().parse::<u64>().ok());
    // Version 1 writes "no limit" as the largest number of pages that fits.
    match limit.filter(|limit| *limit < 1 << 60) {
        Some(limit) => {
            let is = format!("memory {version}, limited to {} MiB", mib(limit));
            Finding::good("cgroup of this shell", is, "a daemon started here has no more than that")
        }
        None => Finding::good("cgroup of this shell", format!("memory {version}, no limit"), ""),
    }
}

fn show(findings: &[Finding], console: &mut Console, json: bool) -> Result<(), CtlError> {
    if json {
        let findings: Vec<_> = findings
            .iter()
            .map(|finding| json!({ "what": finding.what, "is": finding.is, "so": finding.so, "good": finding.is_good }))
            .collect();
        return console.print_foreign_line(json!({ "findings": findings }).to_string().as_bytes());
    }
    let mut table =
        Table::new(0, [Column::Left(""), Column::Left("WHAT"), Column::Flexible("IS"), Column::Flexible("SO")]);
    for finding in findings {
        let (mark, tone) = if finding.is_good { ("ok", Tone::Good) } else { ("!", Tone::Careful) };
        table.row([Cell::toned(mark, tone), finding.what.into(), (&finding.is).into(), finding.so.into()]);
    }
    table.print(console)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    fn of<'a>(findings: &'a [Finding], what: &str) -> (&'a str, bool) {
        let finding = findings.iter().find(|finding| finding.what == what).expect("looked at");
        (&finding.is, finding.is_good)
    }

    #[test]
    fn a_host_with_swap_and_a_limited_v2_group_is_told_as_such() {
        let root = tree(&[
            ("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\nSwapTotal: 2048 kB\n"),
            ("proc/sys/kernel/osrelease", "6.1.0\n"),
            ("proc/sys/vm/overcommit_memory", "0\n"),
            ("proc/pressure/memory", "some avg10=0.00\n"),
            ("proc/self/cgroup", "0::/box\n"),
            ("sys/fs/cgroup/box/memory.max", "268435456\n"),
        ]);
        let findings = host(root.path());
        assert_eq!(of(&findings, "memory"), ("1024.0 MiB, 512.0 MiB available", true));
        assert_eq!(of(&findings, "swap"), ("2.0 MiB", false));
        assert_eq!(of(&findings, "PSI"), ("there", true));
        assert_eq!(of(&findings, "cgroup of this shell"), ("memory v2, limited to 256.0 MiB", true));
    }

    #[test]
    fn version_1_without_a_limit_and_missing_files_are_no_reason_to_fail() {
        let root = tree(&[
            ("proc/self/cgroup", "4:memory:/x\n0::/\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let findings = host(root.path());
        assert_eq!(of(&findings, "cgroup of this shell"), ("memory v1, no limit", true));
        assert_eq!(of(&findings, "PSI"), ("not there", false));
        let empty = tree(&[]);
        assert_eq!(of(&host(empty.path()), "cgroup"), ("none", false));
    }
}
