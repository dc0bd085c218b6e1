//! Where the cgroup hierarchies are mounted, and which cgroup is ours: mountinfo(5), cgroups(7).

use std::fs;
use std::path::{Path, PathBuf};

/// One hierarchy as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Our own cgroup's directory: the mount point or below it.
    pub own: PathBuf,
    pub is_read_only: bool,
}

/// The hierarchies that can have the memory controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    pub v2: Option<Hierarchy>,
    /// The one with version 1's memory controller.
    pub v1: Option<Hierarchy>,
}

/// Of this process. `root` is `/`, or a directory that stands for it. What cannot be read is not there.
pub fn find(root: &Path) -> Hierarchies {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (mounts, cgroups) = (read("proc/self/mountinfo"), read("proc/self/cgroup"));
    let hierarchy = |mount: &Mount, is_ours: &dyn Fn(&str, &str) -> bool| {
        let path = cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            is_ours(id, controllers).then_some(path)
        })?;
        // A mount may show a part of the hierarchy only, as in containers: then its root is our path or above it.
        let below = Path::new(path).strip_prefix(&mount.root).ok()?;
        let mount_point = root.join(mount.point.trim_start_matches('/'));
        Some(Hierarchy { own: mount_point.join(below), mount: mount_point, is_read_only: mount.is_read_only })
    };
    let mut found = Hierarchies::default();
    for mount in mounts.lines().filter_map(Mount::parse) {
        if mount.kind == "cgroup2" && found.v2.is_none() {
            found.v2 = hierarchy(&mount, &|id, _| id == "0");
        } else if mount.kind == "cgroup" && mount.has_memory && found.v1.is_none() {
            found.v1 = hierarchy(&mount, &|_, controllers| controllers.split(',').any(|name| name == "memory"));
        }
    }
    found
}

struct Mount {
    kind: String,
    root: String,
    point: String,
    is_read_only: bool,
    has_memory: bool,
}

impl Mount {
    /// `36 35 98:0 /root /point rw,noatime master:1 - cgroup cgroup rw,memory`
    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, point, options) = (before.next()?, before.next()?, before.next()?);
        let (kind, super_options) = (after.next()?, after.nth(1)?);
        let has = |options: &str, option: &str| options.split(',').any(|name| name == option);
        Some(Mount {
            kind: kind.to_owned(),
            root: unescape(root),
            point: unescape(point),
            is_read_only: has(options, "ro") || has(super_options, "ro"),
            has_memory: has(super_options, "memory"),
        })
    }
}

/// Space, tab, newline and backslash are written as octal escapes.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(mountinfo: &str, cgroup: &str) -> Hierarchies {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        fs::write(dir.path().join("proc/self/mountinfo"), mountinfo).unwrap();
        fs::write(dir.path().join("proc/self/cgroup"), cgroup).unwrap();
        let strip = |path: PathBuf| Path::new("/").join(path.strip_prefix(dir.path()).unwrap());
        let strip = |found: Hierarchy| Hierarchy { mount: strip(found.mount), own: strip(found.own), ..found };
        let found = find(dir.path());
        Hierarchies { v2: found.v2.map(strip), v1: found.v1.map(strip) }
    }

    fn hierarchy(mount: &str, own: &str, is_read_only: bool) -> Option<Hierarchy> {
        Some(Hierarchy { mount: mount.into(), own: own.into(), is_read_only })
    }

    #[test]
    fn our_cgroup_is_found_on_every_kind_of_host() {
        let table = [
            (
                "a systemd host",
                "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
                "0::/system.slice/kurultai.service\n",
                hierarchy("/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/kurultai.service", false),
                None,
            ),
            (
                "both versions",
                "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
                "4:memory:/a/b\n1:cpu:/\n0::/\n",
                hierarchy("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified", false),
                hierarchy("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/a/b", false),
            ),
            (
                "a container that sees its part, read-only",
                "35 31 0:32 /docker/x /sys/fs/cgroup/mem\\040ory ro master:9 - cgroup cgroup rw,hugetlb,memory\n",
                "4:hugetlb,memory:/docker/x\n",
                None,
                hierarchy("/sys/fs/cgroup/mem ory", "/sys/fs/cgroup/mem ory", true),
            ),
            (
                "a mount that does not show our cgroup",
                "35 31 0:32 /docker/y /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
                "4:memory:/docker/x\n",
                None,
                None,
            ),
            ("nothing", "", "", None, None),
            ("nonsense", "a b c\n - cgroup2\n1 2 3 4 5 6 - cgroup", "0\n::\n", None, None),
        ];
        for (what, mountinfo, cgroup, v2, v1) in table {
            assert_eq!(find_in(mountinfo, cgroup), Hierarchies { v2, v1 }, "{what}");
        }
    }
}
