//! What the agents themselves left: runs with their times.

use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug)]
pub struct Run {
    pub task: String,
    pub attempt: u32,
    pid: u32,
    start_ns: u64,
    /// When it ended; `None` if it was killed.
    end_ns: Option<u64>,
    /// It came to its end, and was not stopped before.
    pub is_whole: bool,
}

/// Every run, in the order of their starts, by key.
pub struct Traces {
    pub runs: BTreeMap<String, Vec<Run>>,
    /// Runs that began while another of the same task lived.
    pub overlaps: Vec<String>,
}

impl Traces {
    pub fn read(path: &Path) -> Traces {
        let mut traces = Traces { runs: BTreeMap::new(), overlaps: Vec::new() };
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, task, attempt, pid, ns, key] = words[..] else { panic!("{line} is no trace") };
            let number = |text: &str| text.parse::<u64>().unwrap_or_else(|error| panic!("{error}: {line}"));
            let runs = traces.runs.entry(key.to_owned()).or_default();
            match what {
                "start" => runs.push(Run {
                    task: task.to_owned(),
                    attempt: number(attempt) as u32,
                    pid: number(pid) as u32,
                    start_ns: number(ns),
                    end_ns: None,
                    is_whole: false,
                }),
                "end" | "stop" => {
                    let pid = number(pid) as u32;
                    let run = runs.iter_mut().rfind(|run| run.pid == pid && run.end_ns.is_none());
                    let run = run.unwrap_or_else(|| panic!("{line}: it never began"));
                    run.end_ns = Some(number(ns));
                    run.is_whole = what == "end";
                }
                "overlap" => traces.overlaps.push(line.to_owned()),
                _ => panic!("{line} is no trace"),
            }
        }
        traces.add_overlaps_by_time();
        traces
    }

    /// The times of the runs that lived to tell their ends: for those that were killed the lock speaks.
    fn add_overlaps_by_time(&mut self) {
        for (key, runs) in &self.runs {
            for (index, run) in runs.iter().enumerate() {
                let later = &runs[index + 1..];
                if let Some(other) = later.iter().find(|other| run.end_ns.is_some_and(|end| other.start_ns < end)) {
                    self.overlaps.push(format!("{key}: {run:?} {other:?}"));
                }
            }
        }
    }
}
