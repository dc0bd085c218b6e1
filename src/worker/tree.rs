//! Orphans: what a worker's tree leaves to us when its parent dies, and whose it was.
//!
//! The daemon is a subreaper, so a process whose parent has died becomes the daemon's child, in the list of its main
//! thread. Nobody but the supervisor reaps, so what is in the list stays there, and its pid means that process, until
//! the supervisor takes it out. When a worker has died, every process left of its tree is such a child or below one: to
//! kill those that are its own, again and again until there are none, is to kill the tree.

use std::fs;
use std::io;

use crate::core::ids::WorkerId;
use crate::sys::mark::{self, Owner};

/// A child of ours that we did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    pub pid: u32,
    group: u32,
    session: u32,
    owner: Owner,
}

impl Orphan {
    /// `alone`: no other worker lives, so what bears no mark can only be from this one.
    pub fn belongs_to(&self, worker: WorkerId, leader: u32, alone: bool) -> bool {
        let ours_by_place = self.group == leader || self.session == leader;
        match self.owner {
            Owner::Worker(owner) => ours_by_place || mark::Instance::is_worker(owner, worker.0),
            Owner::Unmarked => ours_by_place || alone,
            Owner::Stranger => false,
        }
    }

    /// A worker of this daemon may be its owner.
    pub fn may_be_ours(&self) -> bool {
        self.owner != Owner::Stranger
    }
}

/// The pids of all orphans, zombies included. `known` are the children we did start.
pub fn orphan_pids(known: impl Fn(u32) -> bool) -> io::Result<Vec<u32>> {
    let us = std::process::id();
    // Of the main thread, where adopted children go: kernel/exit.c, find_new_reaper.
    let children = match fs::read(format!("/proc/self/task/{us}/children")) {
        Ok(list) => numbers(&list),
        // A kernel without CONFIG_PROC_CHILDREN: the long way.
        Err(error) if error.kind() == io::ErrorKind::NotFound => children_by_parent(us)?,
        Err(error) => return Err(error),
    };
    Ok(children.into_iter().filter(|pid| !known(*pid)).collect())
}

/// The children of a process, of all its threads: proc_tid_children(5), or a look at everybody without
/// CONFIG_PROC_CHILDREN. Quick, and so not exact while processes come and go; nothing if it has ended.
pub fn children(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        match fs::read(thread.path().join("children")) {
            Ok(list) => children.extend(numbers(&list)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !has_children_files() => {
                return children_by_parent(pid).unwrap_or_default();
            }
            // The thread has ended.
            Err(_) => {}
        }
    }
    children
}

fn has_children_files() -> bool {
    let us = std::process::id();
    fs::exists(format!("/proc/self/task/{us}/children")).unwrap_or(false)
}

/// What is known of an orphan. Its files stay readable until it is reaped.
pub fn examine(instance: mark::Instance, pid: u32) -> io::Result<Orphan> {
    let stat = Stat::read(pid)?;
    let owner = fs::read(format!("/proc/{pid}/limits")).map_or(Owner::Unmarked, |limits| instance.owner(&limits));
    Ok(Orphan { pid, group: stat.group, session: stat.session, owner })
}

fn numbers(list: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(list);
    text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn children_by_parent(parent: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the listing and the reading; then it is no orphan any more.
        if Stat::read(pid).is_ok_and(|stat| stat.parent == parent) {
            children.push(pid);
        }
    }
    Ok(children)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    group: u32,
    session: u32,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Stat> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Stat::parse(&String::from_utf8_lossy(&text))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as in proc(5)")))
    }

    /// proc_pid_stat(5): after the name in parentheses, which may hold anything, come state, ppid, pgrp and session.
    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(1).map(|field| field.parse().ok());
        Some(Stat { parent: fields.next()??, group: fields.next()??, session: fields.next()?? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_any_name() {
        let line = "42 (a) b) S 0 1 2) R 7 40 41 0 -1 4194304\n";
        assert_eq!(Stat::parse(line), Some(Stat { parent: 7, group: 40, session: 41 }));
        for broken in ["", "42 (a", "42 (a) R", "42 (a) R 7 40", "42 (a) R x 40 41"] {
            assert_eq!(Stat::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn an_orphan_is_known_by_mark_place_or_for_want_of_others() {
        let orphan = |group, session, owner| Orphan { pid: 9, group, session, owner };
        let table = [
            (orphan(1, 1, Owner::Worker(3)), false, true, "its mark"),
            (orphan(1, 1, Owner::Worker(4)), true, false, "another's mark"),
            (orphan(50, 1, Owner::Unmarked), false, true, "its group"),
            (orphan(1, 50, Owner::Unmarked), false, true, "its session"),
            (orphan(1, 1, Owner::Unmarked), false, false, "nothing, and others live"),
            (orphan(1, 1, Owner::Unmarked), true, true, "nothing, and nobody else lives"),
            (orphan(1, 1, Owner::Stranger), true, false, "another daemon's mark"),
        ];
        for (orphan, alone, expected, what) in table {
            assert_eq!(orphan.belongs_to(WorkerId(3), 50, alone), expected, "{what}");
        }
    }

    #[test]
    fn children_are_found_from_their_parent() {
        let us = Stat::read(std::process::id()).unwrap();
        assert!(children(us.parent).contains(&std::process::id()));
        assert!(children(u32::MAX).is_empty());
    }

    #[test]
    fn the_long_way_finds_a_parent() {
        let us = Stat::read(std::process::id()).unwrap();
        assert!(children_by_parent(us.parent).unwrap().contains(&std::process::id()));
    }
}
