//! Version 2 over a directory that stands for the kernel's; what needs the kernel is tested where there is one to write to.

use crate::core::governor::Fill;
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::core::ids::WorkerId;

const V2_MOUNT: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

/// A root with /proc/self and a cgroup of ours.
struct Fake {
    dir: TempDir,
    own: PathBuf,
}

impl Fake {
    fn v2(path: &str) -> Fake {
        let fake = Fake::new(V2_MOUNT, &format!("0::{path}\n"), &format!("sys/fs/cgroup{path}"));
        fake.own("cgroup.controllers", "cpu memory pids\n");
        fake.own("cgroup.type", "domain\n");
        fake.own("cgroup.subtree_control", "");
        fake.own("cgroup.procs", &format!("{}\n", std::process::id()));
        fake
    }

    fn new(mountinfo: &str, cgroup: &str, own: &str) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(own);
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        fs::write(dir.path().join("proc/self/mountinfo"), mountinfo).unwrap();
        fs::write(dir.path().join("proc/self/cgroup"), cgroup).unwrap();
        Fake { dir, own }
    }

    fn own(&self, file: &str, text: &str) {
        fs::write(self.own.join(file), text).unwrap();
    }

    fn detect(&self) -> Detected {
        Cgroups::detect(self.dir.path())
    }

    fn base(&self) -> PathBuf {
        self.own.join(format!("kurultai-{}", std::process::id()))
    }
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A directory of the kernel's is removed though it has files; a real one is not.
fn empty(group: &Path) {
    fs::read_dir(group).unwrap().flatten().for_each(|file| fs::remove_file(file.path()).unwrap());
}

#[test]
fn what_the_host_allows_is_found_and_what_it_forbids_is_explained() {
    let found = |fake: &Fake| (fake.detect().kind, fake.detect().finding);
    let own = Fake::v2("/kurultai");
    assert_eq!(own.detect().kind, Kind::V2 { needs_leaf: true });
    assert_eq!(own.detect().path, own.own);

    let unit = Fake::v2("/system.slice/kurultai.service");
    let (kind, why) = found(&unit);
    assert!(kind == Kind::None && why.contains("Delegate=yes"), "{why}");

    let shared = Fake::v2("/kurultai");
    shared.own("cgroup.procs", &format!("{}\n4000000000\n", std::process::id()));
    let (kind, why) = found(&shared);
    assert!(kind == Kind::None && why.contains("other processes"), "{why}");

    let guarded = Fake::v2("/kurultai");
    guarded.own("cgroup.procs", &format!("{}\n77\n", std::process::id()));
    fs::create_dir_all(guarded.dir.path().join("proc/77")).unwrap();
    let stat = format!("77 (a) b) S {} 77 77\n", std::process::id());
    fs::write(guarded.dir.path().join("proc/77/stat"), stat).unwrap();
    assert_eq!(guarded.detect().kind, Kind::V2 { needs_leaf: true }, "a child of ours is no stranger");

    let top = Fake::v2("/");
    fs::remove_file(top.own.join("cgroup.type")).unwrap();
    assert_eq!(top.detect().kind, Kind::V2 { needs_leaf: false }, "the root may have processes");

    let uncontrolled = Fake::v2("/kurultai");
    uncontrolled.own("cgroup.controllers", "cpu pids\n");
    let (kind, why) = found(&uncontrolled);
    assert!(kind == Kind::None && why.contains("does not reach"), "{why}");

    let v1_mount = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    let v1 = Fake::new(v1_mount, "4:memory:/a\n", "sys/fs/cgroup/memory/a");
    assert_eq!((v1.detect().kind, v1.detect().path), (Kind::V1, v1.own.clone()));
    let sealed = Fake::new(&v1_mount.replace(" rw ", " ro "), "4:memory:/a\n", "sys/fs/cgroup/memory/a");
    assert!(found(&sealed).1.contains("read-only"), "{:?}", found(&sealed));
    let (kind, why) = found(&Fake::new("", "", "nothing"));
    assert!(kind == Kind::None && why.contains("no cgroup hierarchy"), "{why}");
}

#[test]
fn a_worker_of_version_2_gets_a_limited_group_that_is_removed_when_it_ended() {
    let fake = Fake::v2("/kurultai");
    let mut cgroups = Cgroups::prepare(&fake.detect(), None).unwrap();
    assert_eq!(text(fake.own.join("kurultai-daemon/cgroup.procs")), std::process::id().to_string());
    for parent in [&fake.own, &fake.base()] {
        assert_eq!(text(parent.join("cgroup.subtree_control")), "+memory");
    }
    let group = cgroups.create(WorkerId(3), 300 << 20).unwrap();
    let path = group.path().to_owned();
    assert_eq!(path, fake.base().join("w-3"));
    for (file, value) in [("memory.max", "314572800"), ("memory.swap.max", "0"), ("memory.oom.group", "1")] {
        assert_eq!(text(path.join(file)), value, "{file}");
    }
    assert!(group.oom_bell().is_none(), "the kernel kills the whole group itself");
    assert!(!group.was_oom_killed());
    for (events, expected) in [("low 0\noom 5\noom_kill 0\n", false), ("oom 1\noom_kill 1\noom_group_kill 1\n", true)] {
        fs::write(path.join("memory.events"), events).unwrap();
        assert_eq!(group.was_oom_killed(), expected, "{events}");
    }
    group.kill();
    assert!(!path.join("cgroup.kill").exists(), "an older kernel has no such file, and gets none");
    fs::write(path.join("cgroup.kill"), "").unwrap();
    group.kill();
    assert_eq!(text(path.join("cgroup.kill")), "1");

    cgroups.remove(group);
    assert!(path.exists(), "it is held for a moment");
    empty(&path);
    let other = cgroups.create(WorkerId(4), 1).unwrap();
    assert!(!path.exists(), "the next worker is the occasion to try again");
    assert!(cgroups.create(WorkerId(4), 1).is_none(), "a name is used once");
    empty(other.path());
    empty(&fake.own.join("kurultai-daemon"));
    cgroups.remove(other);
    empty(&fake.base());
    drop(cgroups);
    assert!(!fake.base().exists());
}

#[test]
fn what_a_dead_daemon_left_is_removed_and_what_a_living_one_has_is_not() {
    let fake = Fake::v2("/kurultai");
    let (dead, ours, living) = (fake.own.join("kurultai-4000000000"), fake.base(), fake.own.join("kurultai-1"));
    let stranger = fake.own.join("kurultai-of-mine");
    for group in [dead.join("w-1"), dead.join("w-2"), ours.join("w-9"), living.join("w-1"), stranger.clone()] {
        fs::create_dir_all(group).unwrap();
    }
    let cgroups = Cgroups::prepare(&fake.detect(), None).unwrap();
    assert!(!dead.exists() && !ours.join("w-9").exists());
    assert!(living.join("w-1").exists() && stranger.exists());
    drop(cgroups);
}

#[test]
fn nothing_is_made_where_nothing_was_found() {
    let nothing = Fake::new("", "", "nothing");
    let mut cgroups = Cgroups::prepare(&nothing.detect(), None).unwrap();
    assert!(cgroups.create(WorkerId(1), 1 << 20).is_none());
    assert!(Cgroups::off().create(WorkerId(1), 1 << 20).is_none());
    let vanished = Detected { kind: Kind::V1, path: nothing.own.join("gone"), finding: String::new() };
    assert!(Cgroups::prepare(&vanished, None).is_err());
}

#[test]
fn the_own_cgroup_is_the_nearest_with_a_limit_and_cache_is_not_pressure() {
    let fake = Fake::v2("/a/b");
    let parent = fake.own.parent().unwrap().to_owned();
    for (group, limit, usage) in [(&fake.own, "max\n", "7\n"), (&parent, "1000\n", "800\n")] {
        fs::write(group.join("memory.max"), limit).unwrap();
        fs::write(group.join("memory.current"), usage).unwrap();
        fs::write(group.join("memory.stat"), "anon 5\ninactive_anon 9\ninactive_file 300\n").unwrap();
    }
    let own = OwnCgroup::find(fake.dir.path()).expect("a limited parent");
    assert_eq!(own.read(), Some(Fill { used: 500, limit: 1000 }));
    fs::write(parent.join("memory.max"), "max\n").unwrap();
    assert_eq!(own.read(), None, "the limit was lifted");
    assert!(OwnCgroup::find(fake.dir.path()).is_none());

    let v1_mount = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    let v1 = Fake::new(v1_mount, "4:memory:/a\n", "sys/fs/cgroup/memory/a");
    v1.own("memory.usage_in_bytes", "600\n");
    v1.own("memory.stat", "inactive_file 1\ntotal_inactive_file 100\n");
    v1.own("memory.limit_in_bytes", "9223372036854771712\n");
    assert!(OwnCgroup::find(v1.dir.path()).is_none(), "no limit at all");
    v1.own("memory.limit_in_bytes", "1000\n");
    let own = OwnCgroup::find(v1.dir.path()).expect("a limit");
    assert_eq!(own.read().map(|fill| fill.ratio()), Some(0.5));
}

#[test]
fn the_kernels_limit_follows_what_resident_memory_counts() {
    let fake = Fake::v2("/kurultai");
    let group = fake.base().join("w-5");
    fs::create_dir_all(&group).unwrap();
    let groups = Cgroups::prepare(&fake.detect(), None).unwrap().groups().expect("there are groups");
    fs::create_dir_all(&group).unwrap();
    const MIB: u64 = 1 << 20;
    let hard = 100 * MIB;
    fs::write(group.join("memory.max"), hard.to_string()).unwrap();
    fs::write(group.join("memory.current"), (60 * MIB).to_string()).unwrap();
    let cache = |file: u64, mapped: u64| {
        fs::write(group.join("memory.stat"), format!("anon 1\nfile {file}\nfile_mapped {mapped}\n")).unwrap();
    };
    cache(0, 0);
    assert!(Hold::of(&groups, WorkerId(6), hard).is_none(), "another worker's group");
    let mut hold = Hold::of(&groups, WorkerId(5), hard).expect("its group");
    // Resident memory, and what the kernel's limit becomes.
    for (rss, unmapped, expected, what) in [
        (40 * MIB, 0, hard, "far from the limit"),
        (60 * MIB, 0, hard, "all is charged to the group"),
        (60 * MIB + 4096, 0, hard, "a page is charged elsewhere"),
        (63 * MIB, 0, 97 * MIB, "its text is charged elsewhere"),
        (60 * MIB, 4 * MIB, 96 * MIB, "and page cache hides it"),
        (55 * MIB, 0, hard, "the group has kernel memory besides"),
    ] {
        cache(unmapped + MIB, MIB);
        assert!(hold.adjust(rss), "{what}");
        let limit = text(group.join("memory.max"));
        assert!(limit.starts_with(&expected.to_string()), "{what}: {limit}");
    }
    fs::write(group.join("memory.current"), "4096").unwrap();
    assert!(!hold.adjust(60 * MIB), "its memory is not in the group at all");
}
