//! All workers' cgroups: made, removed, and cleared away after a daemon that could not do it itself.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::usher::{self, Seat, Usher};
use super::worker_group::WorkerGroup;
use super::{Detected, Kind};
use crate::core::ids::WorkerId;
use crate::sys::eventfd::EventFd;
use crate::sys::process::{Signal, open_pidfd, send_signal};

/// Our own processes, where they must not be in the parent of the workers' groups.
const LEAF: &str = "kurultai-daemon";
/// Workers' groups of one daemon: its pid follows.
const PREFIX: &str = "kurultai-";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V2,
    V1,
}

/// The workers' groups; the supervisor's. None are made if it is off.
#[derive(Debug, Default)]
pub struct Cgroups {
    active: Option<Active>,
    has_warned: bool,
}

/// Where workers' groups are: `w-1` and so on in `base`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    pub version: Version,
    /// `kurultai-PID`.
    pub base: PathBuf,
}

#[derive(Debug)]
struct Active {
    groups: Groups,
    /// Version 1, if there is an usher: where the supervisor's thread sits.
    seat: Option<Seat>,
    /// Groups of ended workers that the kernel did not let us remove yet.
    left: Vec<PathBuf>,
}

impl Cgroups {
    pub fn off() -> Cgroups {
        Cgroups::default()
    }

    /// Makes the place for workers' groups where one was found. The error says why not; then there are none. `owner`: the
    /// user the daemon is about to become.
    pub fn prepare(detected: &Detected, owner: Option<(u32, u32)>) -> io::Result<Cgroups> {
        let (version, needs_leaf) = match detected.kind {
            Kind::V2 { needs_leaf } => (Version::V2, needs_leaf),
            Kind::V1 => (Version::V1, false),
            Kind::None => return Ok(Cgroups::off()),
        };
        remove_leftovers(&detected.path);
        if needs_leaf {
            move_into_leaf(&detected.path)?;
        }
        let base = detected.path.join(base_name());
        match fs::create_dir(&base) {
            // What a daemon of our own number left and did not let us remove: it will do.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        if version == Version::V2 {
            for parent in [&detected.path, &base] {
                fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
            }
        }
        if let Some((uid, gid)) = owner {
            give(version, &detected.path, &base, uid, gid)?;
        }
        Ok(Cgroups {
            active: Some(Active { groups: Groups { version, base }, seat: None, left: Vec::new() }),
            has_warned: false,
        })
    }

    /// Where the groups are, if there are any.
    pub fn groups(&self) -> Option<Groups> {
        self.active.as_ref().map(|active| active.groups.clone())
    }

    /// A group for a worker that is about to start; `None` if there is to be none, or if it could not be made, which is
    /// logged once: the watchdog stands behind it.
    pub fn create(&mut self, worker: WorkerId, limit_bytes: u64) -> Option<WorkerGroup> {
        let active = self.active.as_mut()?;
        active.retry();
        let Groups { version, base } = &active.groups;
        let seat = active.seat.as_mut().and_then(Seat::take);
        let group = match &seat {
            Some(seat) => WorkerGroup::seated(*version, seat, worker, limit_bytes),
            None => WorkerGroup::create(*version, base, worker, limit_bytes),
        };
        match group {
            Ok(group) => Some(group),
            Err(error) => {
                let base = base.display().to_string();
                self.warn(&format!("cannot make a cgroup for {worker} in {base}: {error}"));
                None
            }
        }
    }

    /// Has workers be born in their groups instead of joining them, where that is quicker: with version 1. The usher is served
    /// by a thread that may wait, when `bell` has rung.
    pub fn usher(&mut self, bell: Arc<EventFd>) -> Option<Usher> {
        let active = self.active.as_mut().filter(|active| active.groups.version == Version::V1)?;
        let (usher, seat) = usher::usher(&active.groups.base, bell);
        active.seat = Some(seat);
        Some(usher)
    }

    /// To be called by the thread that starts workers, after each.
    pub fn ask_for_seat(&mut self) {
        if let Some(seat) = self.active.as_mut().and_then(|active| active.seat.as_mut()) {
            seat.ask();
        }
    }

    /// Says once that a worker runs without a group.
    pub fn warn(&mut self, what: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            log::warn!("{what}; such workers are held by the watchdog alone");
        }
    }

    /// Removes the group of a worker whose tree is gone.
    pub fn remove(&mut self, group: WorkerGroup) {
        let path = group.path().to_owned();
        drop(group);
        if let Some(active) = &mut self.active {
            active.left.push(path);
            active.retry();
        }
    }
}

/// The parent of all groups of this daemon's workers.
pub(super) fn base_name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

impl Active {
    /// A dead process may hold its group for a moment longer, so what cannot be removed now is tried again later.
    fn retry(&mut self) {
        // Why: removing waits as long as somebody is being moved between groups, and nothing else depends on it.
        if self.seat.as_ref().is_none_or(|seat| !seat.is_being_made()) {
            self.left.retain(|path| !is_removed(path));
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if let (Some(seat), Some(parent)) = (&mut self.seat, self.groups.base.parent()) {
            seat.leave(parent);
        }
        self.retry();
        if !is_removed(&self.groups.base) {
            log::debug!("the cgroup {} stays behind; the next daemon removes it", self.groups.base.display());
        }
    }
}

fn is_removed(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// What dead daemons left: their number is in the name, and we, who have just started, have made none yet.
fn remove_leftovers(parent: &Path) {
    for base in children(parent) {
        let owner = base.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
        let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if owner != std::process::id() && Path::new("/proc").join(owner.to_string()).exists() {
            continue;
        }
        for group in children(&base) {
            kill_all(&group);
            is_removed(&group);
        }
        if is_removed(&base) {
            log::info!("removed the cgroup {}, left behind by a daemon that has ended", base.display());
        } else {
            log::warn!("the cgroup {} of a daemon that has ended cannot be removed: it is in use", base.display());
        }
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn kill_all(group: &Path) {
    let procs = || super::words(&group.join("cgroup.procs"));
    for pid in procs() {
        let Some(pidfd) = pid.parse().ok().and_then(|pid| open_pidfd(pid).ok()) else { continue };
        // The handle first, the look second: if the number changed hands in between, the new owner is not in the group.
        if procs().contains(&pid) {
            send_signal(pidfd.as_fd(), Signal::Kill);
        }
    }
}

fn move_into_leaf(parent: &Path) -> io::Result<()> {
    let leaf = parent.join(LEAF);
    fs::create_dir_all(&leaf)?;
    for pid in super::words(&parent.join("cgroup.procs")) {
        fs::write(leaf.join("cgroup.procs"), pid)?;
    }
    Ok(())
}

/// Whoever moves a process writes both the group it goes to and, in version 2, the lowest one above both (cgroup-v2.rst,
/// "Delegation Containment").
fn give(version: Version, parent: &Path, base: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(uid), Some(gid));
    own(base)?;
    own(&base.join("cgroup.procs"))?;
    if version == Version::V2 {
        own(&base.join("cgroup.subtree_control"))?;
        own(&parent.join("cgroup.procs"))?;
    }
    Ok(())
}
