//! The kernel's limit on a worker, kept to mean resident memory.
//!
//! A worker's limit counts its whole RSS. The kernel counts what was charged to the group, and a page of program text or of
//! a mapped file is charged to whoever read it first, often long ago in another group. So a worker whose text is in nobody's
//! or another's charge could hold that much more than its limit. The kernel's limit is lowered by what RSS has and the
//! group has not; page cache and kernel memory, which are the other way round, are the kernel's to reclaim and raise nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::groups;
use super::own::number;
use super::place;
use crate::core::ids::WorkerId;

/// Less than this is not worth a write.
const STEP: u64 = 128 * 1024;

/// A worker's group as the monitor sees it.
#[derive(Debug)]
pub struct Hold {
    usage: File,
    limit: File,
    hard_limit_bytes: u64,
    set_bytes: u64,
}

impl Hold {
    /// `None` if the process is not in a group that was made for this worker. `root` is `/`, or a directory that stands
    /// for it.
    pub fn of(root: &Path, pid: u32, worker: WorkerId, hard_limit_bytes: u64) -> Option<Hold> {
        let found = place::find_of(root, &pid.to_string());
        let name = Path::new(&groups::base_name()).join(worker.to_string());
        let versions =
            [(found.v2, "memory.current", "memory.max"), (found.v1, "memory.usage_in_bytes", "memory.limit_in_bytes")];
        versions.into_iter().find_map(|(hierarchy, usage, limit)| {
            let group = hierarchy?.own;
            let usage = File::open(group.ends_with(&name).then_some(group.join(usage))?).ok()?;
            let limit = OpenOptions::new().write(true).open(group.join(limit)).ok()?;
            Some(Hold { usage, limit, hard_limit_bytes, set_bytes: hard_limit_bytes })
        })
    }

    /// Has the kernel stop the worker at its limit, now that it holds `rss` bytes.
    pub fn adjust(&mut self, rss: u64) {
        // Far from the limit there is nothing to be exact about.
        if rss < self.hard_limit_bytes / 2 || rss > self.hard_limit_bytes {
            return;
        }
        let Some(usage) = number(&self.usage) else { return };
        let wanted = self.hard_limit_bytes - rss.saturating_sub(usage);
        if wanted.abs_diff(self.set_bytes) >= STEP && self.limit.write_at(wanted.to_string().as_bytes(), 0).is_ok() {
            self.set_bytes = wanted;
        }
    }
}
