//! Disks that fill up, turn read-only or have a limit, where the user of the tests may mount one.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::daemon::Daemon;
use super::outside::run;

/// A file system of its own, in memory, as small as is asked for.
pub struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None`: it may not be mounted here.
    pub fn mount(options: &str) -> Option<SmallDisk> {
        let disk = SmallDisk { dir: TempDir::with_prefix("kurultai-disk-").expect("a temporary directory") };
        mount(&["-t", "tmpfs", "-o", options, "tmpfs", text(disk.path())]).then_some(disk)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes until there is no room for another page.
    pub fn fill(&self) -> PathBuf {
        use std::io::Write;
        let path = self.path().join("ballast");
        let mut file = fs::File::create(&path).expect("there is room for an empty file");
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }

    /// `ro` or `rw`. While a file is open for writing there, it cannot become read-only.
    #[track_caller]
    pub fn remount(&self, how: &str) {
        run("mount", ["-o", &format!("remount,{how}"), text(self.path())], b"").expect(0);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", ["--lazy", text(self.path())], b"");
    }
}

/// A file system in a file, which can be made to give up as one does whose disk fails: ext4(5), `abort`.
pub struct FailingDisk {
    dir: TempDir,
    image: PathBuf,
}

impl FailingDisk {
    /// `None`: it may not be made or mounted here.
    pub fn mount() -> Option<FailingDisk> {
        let dir = TempDir::with_prefix("kurultai-disk-").expect("a temporary directory");
        let image = dir.path().join("image");
        fs::create_dir(dir.path().join("mounted")).expect("made");
        fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("made");
        let disk = FailingDisk { dir, image };
        let path = super::outside::path();
        let has = |program: &str| path.split(':').any(|folder| Path::new(folder).join(program).is_file());
        let is_made = ["mkfs.ext4", "e2fsck"].into_iter().all(has)
            && run("mkfs.ext4", ["-q", "-F", text(&disk.image)], b"").status == Some(0);
        (is_made && disk.attach()).then_some(disk)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// From here on it is read-only, whoever writes to it.
    #[track_caller]
    pub fn abort(&self) {
        run("mount", ["-o", "remount,abort", text(&self.path())], b"").expect(0);
    }

    /// What an operator does, when nobody has a file open there.
    #[track_caller]
    pub fn repair(&self) {
        run("umount", [text(&self.path())], b"").expect(0);
        let checked = run("e2fsck", ["-fy", text(&self.image)], b"");
        assert!(matches!(checked.status, Some(0 | 1)), "{checked:?}");
        assert!(self.attach(), "it is sound again");
    }

    fn attach(&self) -> bool {
        mount(&["-o", "loop", text(&self.image), text(&self.path())])
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        run("umount", ["--lazy", text(&self.path())], b"");
    }
}

/// Whether mount(8) may and can do that here.
pub fn mount(arguments: &[&str]) -> bool {
    run("mount", arguments, b"").status == Some(0)
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is text")
}

/// A soft limit of the daemon, as prlimit(1) says it; the hard one stays, so that it can be raised again.
#[track_caller]
pub fn limit(daemon: &Daemon, what: &str) {
    run("prlimit", ["--pid", &daemon.pid().to_string(), what], b"").expect(0);
}
