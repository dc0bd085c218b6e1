//! How full the daemon's own cgroup is: the nearest one above it that has a limit.

use std::fs::File;
use std::path::Path;

use super::place::{self, Hierarchy};
use crate::core::governor::Fill;
use crate::memory::reading::read_text;

/// A version 1 group without a limit has the largest number of pages there can be, a little below 2^63.
const UNLIMITED: u64 = 1 << 62;

/// Kept open. Its workers' groups count in it, as they are below it.
#[derive(Debug)]
pub struct OwnCgroup {
    usage: File,
    limit: File,
    stat: File,
    inactive_file: &'static str,
}

impl OwnCgroup {
    /// `None` if no cgroup of ours has a limit. `root` is `/`, or a directory that stands for it.
    pub fn find(root: &Path) -> Option<OwnCgroup> {
        let found = place::find(root);
        let v2 = found.v2.and_then(|v2| OwnCgroup::limited(&v2, OwnCgroup::open_v2));
        v2.or_else(|| found.v1.and_then(|v1| OwnCgroup::limited(&v1, OwnCgroup::open_v1)))
    }

    fn limited(hierarchy: &Hierarchy, open: fn(&Path) -> Option<OwnCgroup>) -> Option<OwnCgroup> {
        let groups = hierarchy.own.ancestors().take_while(|group| group.starts_with(&hierarchy.mount));
        groups.filter_map(open).find(|group| group.read().is_some())
    }

    fn open_v2(group: &Path) -> Option<OwnCgroup> {
        let open = |file: &str| File::open(group.join(file)).ok();
        Some(OwnCgroup {
            usage: open("memory.current")?,
            limit: open("memory.max")?,
            stat: open("memory.stat")?,
            inactive_file: "inactive_file ",
        })
    }

    fn open_v1(group: &Path) -> Option<OwnCgroup> {
        let open = |file: &str| File::open(group.join(file)).ok();
        Some(OwnCgroup {
            usage: open("memory.usage_in_bytes")?,
            limit: open("memory.limit_in_bytes")?,
            stat: open("memory.stat")?,
            inactive_file: "total_inactive_file ",
        })
    }

    /// `None` while it has no limit. The page cache that nobody used lately does not count: it is given back before anybody
    /// is killed.
    pub fn read(&self) -> Option<Fill> {
        let limit = number(&self.limit).filter(|limit| (1..UNLIMITED).contains(limit))?;
        let usage = number(&self.usage)?;
        let mut buffer = [0_u8; 4096];
        let stat = read_text(&self.stat, &mut buffer).ok()?;
        Some(Fill { used: usage.saturating_sub(statistic(stat, self.inactive_file)), limit })
    }
}

/// A line of `memory.stat`, its name with the space behind it; 0 if there is none.
pub(super) fn statistic(stat: &str, name: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// `None` also for `max`.
pub(super) fn number(file: &File) -> Option<u64> {
    let mut buffer = [0_u8; 32];
    read_text(file, &mut buffer).ok()?.trim().parse().ok()
}
