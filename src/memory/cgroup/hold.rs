//! The kernel's limit on a worker, kept to mean resident memory.
//!
//! A worker's limit counts its whole RSS. The kernel counts what was charged to the group, and a page of program text or of
//! a mapped file is charged to whoever read it first, often long ago in another group. So a worker whose text is in nobody's
//! or another's charge could hold that much more than its limit. The kernel's limit is lowered by what RSS has and the
//! group has not. What the group has besides, page cache above all, raises nothing: it is reclaimed before anybody is killed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use super::groups::{Groups, Version};
use super::own::{number, statistic};
use crate::core::ids::WorkerId;
use crate::memory::reading::read_text;

/// Less than this is not worth a write.
const STEP: u64 = 128 * 1024;

/// Readings of a worker that has not changed, of which one looks into its group again: `memory.stat` costs more than all
/// else of a reading.
const LOOK_EVERY: u32 = 16;

/// As the two versions call things.
#[derive(Debug, Clone, Copy)]
struct Names {
    usage: &'static str,
    limit: &'static str,
    /// In `memory.stat`: page cache, and the part of it that is mapped.
    cache: &'static str,
    mapped: &'static str,
}

const V2: Names = Names { usage: "memory.current", limit: "memory.max", cache: "file ", mapped: "file_mapped " };
const V1: Names = Names {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    cache: "total_cache ",
    mapped: "total_mapped_file ",
};

/// A worker's group as the monitor sees it.
#[derive(Debug)]
pub struct Hold {
    usage: File,
    stat: File,
    limit: File,
    names: Names,
    hard_limit_bytes: u64,
    set_bytes: u64,
    /// What the worker held when its group was last looked into, and readings since.
    looked_at: u64,
    readings: u32,
    is_inside: bool,
}

impl Hold {
    /// `None` if no group was made for this worker.
    ///
    /// Why not by /proc/PID/cgroup: who reads that waits as long as anybody, anywhere, is being moved between groups.
    pub fn of(groups: &Groups, worker: WorkerId, hard_limit_bytes: u64) -> Option<Hold> {
        let names = match groups.version {
            Version::V2 => V2,
            Version::V1 => V1,
        };
        let group = groups.base.join(worker.to_string());
        let open = |file: &str| File::open(group.join(file)).ok();
        let (usage, stat) = (open(names.usage)?, open("memory.stat")?);
        let limit = OpenOptions::new().write(true).open(group.join(names.limit)).ok()?;
        Some(Hold {
            usage,
            stat,
            limit,
            names,
            hard_limit_bytes,
            set_bytes: hard_limit_bytes,
            looked_at: 0,
            readings: 0,
            is_inside: true,
        })
    }

    /// Has the kernel stop the worker at its limit, now that it holds `rss` bytes. `false`: what it holds is not in the
    /// group; it could not join.
    pub fn adjust(&mut self, rss: u64) -> bool {
        // Far from the limit there is nothing to be exact about.
        if rss < self.hard_limit_bytes / 2 || rss > self.hard_limit_bytes {
            return true;
        }
        self.readings += 1;
        if rss.abs_diff(self.looked_at) < STEP && self.readings < LOOK_EVERY {
            return self.is_inside;
        }
        (self.looked_at, self.readings) = (rss, 0);
        let held = self.held().unwrap_or(0);
        self.is_inside = held >= rss / 4;
        if !self.is_inside {
            return false;
        }
        let wanted = self.hard_limit_bytes - rss.saturating_sub(held);
        if wanted.abs_diff(self.set_bytes) >= STEP && self.limit.write_at(wanted.to_string().as_bytes(), 0).is_ok() {
            self.set_bytes = wanted;
        }
        true
    }

    /// What is charged to the group and cannot be reclaimed by dropping cache.
    fn held(&self) -> Option<u64> {
        let mut buffer = [0_u8; 4096];
        let stat = read_text(&self.stat, &mut buffer).ok()?;
        let unmapped = statistic(stat, self.names.cache).saturating_sub(statistic(stat, self.names.mapped));
        Some(number(&self.usage)?.saturating_sub(unmapped))
    }
}
