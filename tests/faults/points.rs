//! Where a fault may strike: the n-th call of one kind on one path.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use super::script::Script;
use super::start::Start;
use super::traced::Phase;

const CALLS: &str = "openat,write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    Eio,
    Enospc,
    Erofs,
    Emfile,
}

#[derive(Debug, Clone)]
pub struct Point {
    pub phase: Phase,
    call: String,
    /// In the state directory.
    path: String,
    nth: usize,
    fault: Fault,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {:?} at {} {} of {:?}", self.fault, self.phase, self.call, self.nth, self.path)
    }
}

impl Point {
    /// The options of strace that make it strike in this state directory.
    pub fn options(&self, state: &Path) -> Vec<String> {
        let Point { phase: _, call, path, nth, fault } = self;
        let what = match fault {
            Fault::Kill => "signal=KILL",
            Fault::Eio => "error=EIO",
            Fault::Enospc => "error=ENOSPC",
            Fault::Erofs => "error=EROFS",
            Fault::Emfile => "error=EMFILE",
        };
        let path = state.join(path).display().to_string();
        [
            ["-P", path.trim_end_matches('/')],
            ["-e", &format!("trace={call}")],
            ["-e", &format!("inject={call}:{what}:when={nth}")],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }
}

/// Every point of a run without faults: those of the start, then those of the work, in the order of their times.
pub fn points(start: &Start, faults: impl Fn(&str) -> Vec<Fault>) -> Vec<Point> {
    let mut points = Vec::new();
    for phase in [Phase::Start, Phase::Work] {
        for (call, path, nth) in calls(start, phase) {
            let make = |fault| Point { phase, call: call.clone(), path: path.clone(), nth, fault };
            points.extend(faults(&call).into_iter().map(make));
        }
    }
    points
}

/// What the daemon does in its state directory: the call, the path, and the how maniest of its kind it is.
fn calls(start: &Start, phase: Phase) -> Vec<(String, String, usize)> {
    let home = Script::without_fault(start, phase, &["-e".to_owned(), format!("trace={CALLS}")]);
    let trace = std::fs::read(home.path().join("trace")).expect("strace has written it");
    let trace = String::from_utf8_lossy(&trace);
    let state = format!("{}/state", home.path().display());
    let mut counts = BTreeMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((before, rest)) = line.split_once(&state) else { continue };
        let Some((before, _)) = before.split_once('(') else { continue };
        let call = before.split_whitespace().last().unwrap_or_default();
        if !CALLS.split(',').any(|known| known == call) {
            continue;
        }
        let end = rest.find(['"', '>']).unwrap_or(rest.len());
        let path = rest[..end].trim_start_matches('/').to_owned();
        let nth = counts.entry((call.to_owned(), path.clone())).and_modify(|count| *count += 1).or_insert(1);
        calls.push((call.to_owned(), path, *nth));
    }
    assert!(calls.len() > 5, "strace has seen {} calls:\n{trace}", calls.len());
    // Of the pieces of one file of data, the first two and the last stand for all.
    calls.retain(|(call, path, nth)| {
        let last = counts[&(call.clone(), path.clone())];
        call != "write" || !path.contains("/t-") || *nth <= 2 || *nth == last
    });
    calls
}

/// All of them with KURULTAI_POINTS=all, else about so many, spread evenly from where KURULTAI_SEED says.
pub fn chosen(all: &[Point], about: usize) -> Vec<Point> {
    if std::env::var("KURULTAI_POINTS").is_ok_and(|text| text == "all") {
        return all.to_vec();
    }
    let seed = std::env::var("KURULTAI_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
    println!("KURULTAI_SEED={seed}");
    let step = all.len().div_ceil(about);
    all.iter().skip(seed as usize % step).step_by(step).cloned().collect()
}
