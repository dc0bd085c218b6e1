//! The memory of a worker's whole tree: all its descendants, whatever they did to their session, and what of them the
//! daemon has adopted.
//!
//! Reading is cheap and often; listing who is in the tree is not, and has a rhythm of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reading::{Resident, Statm};
use crate::core::ids::WorkerId;
use crate::sys::clock::Clock;
use crate::sys::mark;
use crate::worker::tree::{self, Orphan};

/// A listing may take one part in this many of the time between two.
const LIST_SHARE: u32 = 1000;
const LIST_SOONEST: Duration = Duration::from_millis(50);
const LIST_LATEST: Duration = Duration::from_secs(1);

/// Processes of one tree whose files are kept open. Those beyond are opened for each reading, so that a tree of thousands
/// does not use up the daemon's descriptors.
const KEPT_OPEN: usize = 64;

#[derive(Debug)]
pub struct Tree {
    leader: u32,
    processes: Vec<Process>,
    next_list: Duration,
}

#[derive(Debug)]
struct Process {
    pid: u32,
    statm: Option<Statm>,
}

/// What a tree holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeMemory {
    /// Resident memory of all its processes, summed.
    pub rss: u64,
    /// The part of it that is not shared.
    pub private: u64,
    /// The most that one of its processes shares.
    pub shared: u64,
}

impl Tree {
    pub fn new(leader: u32) -> Tree {
        Tree { leader, processes: Vec::new(), next_list: Duration::ZERO }
    }

    pub fn is_list_due(&self, now: Duration) -> bool {
        now >= self.next_list
    }

    /// Looks who is in the tree: below its leader, or below one of the `adopted`.
    pub fn list(&mut self, adopted: &[u32], clock: &Clock) {
        let started = clock.now();
        let mut found = Vec::with_capacity(self.processes.len());
        let mut to_visit = vec![self.leader];
        to_visit.extend_from_slice(adopted);
        while let Some(pid) = to_visit.pop() {
            if !found.contains(&pid) {
                found.push(pid);
                to_visit.append(&mut tree::children(pid));
            }
        }
        // Those that are not found any more but still read as something are between two parents: they stay.
        found.retain(|pid| self.processes.iter().all(|process| process.pid != *pid));
        for pid in found {
            let is_kept = self.processes.len() < KEPT_OPEN;
            // One that is gone already has no memory.
            let Ok(statm) = Statm::open(Some(pid)) else { continue };
            self.processes.push(Process { pid, statm: is_kept.then_some(statm) });
        }
        let now = clock.now();
        let pause = (now.saturating_sub(started) * LIST_SHARE).clamp(LIST_SOONEST, LIST_LATEST);
        self.next_list = now + pause;
    }

    /// Reads everybody who was in the tree at the last listing.
    pub fn read(&mut self) -> TreeMemory {
        let mut sum = TreeMemory::default();
        self.processes.retain(|process| {
            let resident = process.read();
            sum.rss += resident.rss;
            sum.private += resident.rss.saturating_sub(resident.shared);
            sum.shared = sum.shared.max(resident.shared);
            // The dead hold nothing; they are not listed as long as their parent leaves them unburied.
            resident.rss > 0
        });
        sum
    }
}

impl Process {
    fn read(&self) -> Resident {
        match &self.statm {
            Some(statm) => statm.read().unwrap_or_default(),
            None => Statm::open(Some(self.pid)).and_then(|statm| statm.read()).unwrap_or_default(),
        }
    }
}

/// What the daemon has adopted, and whose it is; asked of the kernel once a process.
#[derive(Debug)]
pub struct Orphans {
    instance: mark::Instance,
    known: BTreeMap<u32, Option<Orphan>>,
}

impl Orphans {
    pub fn new(instance: mark::Instance) -> Orphans {
        Orphans { instance, known: BTreeMap::new() }
    }

    pub fn list(&mut self) {
        let pids = tree::orphan_pids(|_| false).unwrap_or_default();
        self.known.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            let instance = self.instance;
            self.known.entry(pid).or_insert_with(|| tree::examine(instance, pid).ok());
        }
    }

    /// Those of one worker. `alone`: there is no other.
    pub fn of(&self, worker: WorkerId, leader: u32, alone: bool) -> Vec<u32> {
        let is_its = |orphan: &Orphan| orphan.belongs_to(worker, leader, alone);
        self.known.iter().filter(|(_, orphan)| orphan.as_ref().is_some_and(is_its)).map(|(pid, _)| *pid).collect()
    }
}
