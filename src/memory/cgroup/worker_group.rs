//! The cgroup of one worker.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::groups::Version;
use crate::core::ids::WorkerId;
use crate::sys::eventfd::EventFd;
use crate::sys::launch::Join;

/// A charge is made in batches of this much a CPU (mm/memcontrol.c, MEMCG_CHARGE_BATCH), so a group that is refused a page
/// may look this far from its limit on a few CPUs.
const BATCHES: u64 = 1024 * 1024;

/// A limited cgroup. Its worker joins it before its first instruction, so that its whole tree is in it.
#[derive(Debug)]
pub struct WorkerGroup {
    version: Version,
    path: PathBuf,
    procs: Option<File>,
    /// Version 2.
    directory: Option<File>,
    oom: Option<OomBell>,
}

/// Version 1 kills one process of a group that is out of memory, and tells: the rest is for us to kill.
#[derive(Debug)]
struct OomBell {
    bell: EventFd,
    _control: File,
}

impl WorkerGroup {
    pub(super) fn create(version: Version, base: &Path, worker: WorkerId, limit_bytes: u64) -> io::Result<WorkerGroup> {
        let path = base.join(worker.to_string());
        fs::create_dir(&path)?;
        WorkerGroup::limited(version, path, limit_bytes, false)
    }

    /// From the group that the calling thread sits in: what it starts need not join.
    pub(super) fn seated(version: Version, seat: &Path, worker: WorkerId, limit_bytes: u64) -> io::Result<WorkerGroup> {
        let path = seat.with_file_name(worker.to_string());
        fs::rename(seat, &path)?;
        WorkerGroup::limited(version, path, limit_bytes, true)
    }

    fn limited(version: Version, path: PathBuf, limit_bytes: u64, is_joined: bool) -> io::Result<WorkerGroup> {
        let made = WorkerGroup::limit(version, &path, limit_bytes, is_joined);
        if made.is_err() {
            let _ = fs::remove_dir(&path);
        }
        made
    }

    fn limit(version: Version, path: &Path, limit_bytes: u64, is_joined: bool) -> io::Result<WorkerGroup> {
        let set = |file: &str, value: &str| fs::write(path.join(file), value);
        let limit = limit_bytes.to_string();
        match version {
            Version::V2 => {
                set("memory.max", &limit)?;
                // Without swap accounting there is no such file. One kill for the whole tree: Linux 4.19.
                let _ = set("memory.swap.max", "0");
                let _ = set("memory.oom.group", "1");
            }
            Version::V1 => {
                set("memory.limit_in_bytes", &limit)?;
                // After the other, which it must not be below; not there without swap accounting.
                let _ = set("memory.memsw.limit_in_bytes", &limit);
            }
        }
        let open = || OpenOptions::new().write(true).create(true).truncate(false).open(path.join("cgroup.procs"));
        let procs = if is_joined { None } else { Some(open()?) };
        let directory = match version {
            Version::V2 => Some(File::open(path)?),
            Version::V1 => None,
        };
        let oom = match version {
            Version::V2 => None,
            // A kernel that does not tell still counts; only then the rest of a tree outlives the one that was killed.
            Version::V1 => OomBell::hang(path).ok(),
        };
        Ok(WorkerGroup { version, path: path.to_owned(), procs, directory, oom })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How a worker gets into the group; `None` if it is in it by where the calling thread sits.
    pub fn join(&self) -> Option<Join<'_>> {
        let procs = self.procs.as_ref()?.as_fd();
        Some(match &self.directory {
            Some(directory) => Join::Directory { directory: directory.as_fd(), procs },
            None => Join::Procs(procs),
        })
    }

    /// Readable when the group, or one above it, was out of memory; see [`WorkerGroup::heard_of_oom`].
    pub fn oom_bell(&self) -> Option<BorrowedFd<'_>> {
        self.oom.as_ref().map(|oom| oom.bell.as_fd())
    }

    /// To be asked when the bell has rung. Whether it was for this group: the kernel rings in all groups below the one that
    /// was out of memory, before it chooses whom to kill.
    pub fn heard_of_oom(&self) -> bool {
        let Some(oom) = &self.oom else { return false };
        oom.bell.hear();
        let read = |file: &str| fs::read_to_string(self.path.join(file)).ok()?.trim().parse::<u64>().ok();
        // The limit as it is now: the monitor lowers it (see `Hold`).
        let (usage, limit) = (read("memory.usage_in_bytes"), read("memory.limit_in_bytes"));
        usage.zip(limit).is_some_and(|(usage, limit)| usage.saturating_add(BATCHES) >= limit) || self.was_oom_killed()
    }

    /// The kernel has killed a process of the group for memory: for this group's limit, or for one above it, or the host's.
    pub fn was_oom_killed(&self) -> bool {
        let file = match self.version {
            Version::V2 => "memory.events",
            Version::V1 => "memory.oom_control",
        };
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
    }

    /// KILL to everybody in the group at once: `cgroup.kill` of version 2, Linux 5.14. Nothing elsewhere.
    pub fn kill(&self) {
        match self.version {
            Version::V2 => {
                let file = OpenOptions::new().write(true).open(self.path.join("cgroup.kill"));
                let _ = file.and_then(|mut file| io::Write::write_all(&mut file, b"1"));
            }
            Version::V1 => {}
        }
    }
}

impl OomBell {
    fn hang(path: &Path) -> io::Result<OomBell> {
        let (bell, control) = (EventFd::new()?, File::open(path.join("memory.oom_control"))?);
        let order = format!("{} {}", bell.as_fd().as_raw_fd(), control.as_raw_fd());
        // Not created where it is missing: an open without a kernel behind it would never ring.
        let mut file = OpenOptions::new().write(true).open(path.join("cgroup.event_control"))?;
        io::Write::write_all(&mut file, order.as_bytes())?;
        Ok(OomBell { bell, _control: control })
    }
}
