//! What is found damaged is set aside for an operator to look at: moved, never overwritten, its reason logged and counted.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::{remove, sync_directory};
use crate::core::ids::TaskId;

const DIRECTORY: &str = "damaged";

/// What is kept of it, the newest first: a disk that damages everything does not fill up with the proof.
const FILES_MAX: usize = 64;
const BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    Journal,
    Payload,
    Checkpoint,
    Result,
    /// Something else stands where a file or directory of the spool has to be.
    Layout,
}

impl DamageKind {
    pub const ALL: [DamageKind; 5] =
        [DamageKind::Journal, DamageKind::Payload, DamageKind::Checkpoint, DamageKind::Result, DamageKind::Layout];

    pub fn name(self) -> &'static str {
        match self {
            DamageKind::Journal => "journal",
            DamageKind::Payload => "payload",
            DamageKind::Checkpoint => "checkpoint",
            DamageKind::Result => "result",
            DamageKind::Layout => "layout",
        }
    }
}

/// The folder, and how often something was found damaged since the start. Any thread may use it.
#[derive(Debug)]
pub(super) struct Damaged {
    folder: PathBuf,
    found: [AtomicU64; DamageKind::ALL.len()],
    last: AtomicU64,
}

impl Damaged {
    pub(super) fn new(root: &Path) -> Damaged {
        Damaged { folder: root.join(DIRECTORY), found: Default::default(), last: AtomicU64::new(0) }
    }

    pub(super) fn found(&self, kind: DamageKind) -> u64 {
        self.found[kind as usize].load(Ordering::Relaxed)
    }

    /// Counts and logs something that is not there to be moved.
    pub(super) fn note(&self, kind: DamageKind, what: &str, reason: &str) {
        self.count(kind);
        log::warn!("{what} is damaged or lost: {reason}");
    }

    /// Where a file of the daemon's own comes to be there is none that is waited for or cannot be replaced.
    pub(super) fn set_stranger_aside(&self, path: &Path) {
        if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            // On failure it is logged, and in the way.
            let _ = self.set_aside(DamageKind::Layout, path, "a plain file has to be there");
        }
    }

    /// Makes a directory unless there is one. What else stands there is set aside.
    pub(super) fn make_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        if !path.is_dir() && fs::symlink_metadata(path).is_ok() {
            self.set_aside(DamageKind::Layout, path, "a directory has to be there")?;
        }
        DirBuilder::new().recursive(true).mode(mode).create(path)
    }

    /// Moves `path` into the folder. On failure it stays where it was, which is logged.
    pub(super) fn set_aside(&self, kind: DamageKind, path: &Path, reason: &str) -> io::Result<()> {
        self.count(kind);
        self.take(kind, path, reason, |target| fs::rename(path, target)).inspect_err(|error| {
            log::error!("{} is damaged: {reason}; it cannot be set aside: {error}", path.display());
        })
    }

    /// Keeps what `path` is now under another name: it is about to be replaced, not written to. Counted once it is kept.
    pub(super) fn keep(&self, kind: DamageKind, path: &Path, reason: &str) -> io::Result<()> {
        // Why a link first: it takes no room, and the disk may have none.
        self.take(kind, path, reason, |target| match fs::hard_link(path, target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // A piece of it is worth nothing, and takes room.
                fs::copy(path, target).map(drop).inspect_err(|_| remove(target))
            }
            linked => linked,
        })?;
        self.count(kind);
        Ok(())
    }

    fn take(
        &self,
        kind: DamageKind,
        path: &Path,
        reason: &str,
        take: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        self.make_folder()?;
        let target = self.free_name(kind, path);
        take(&target)?;
        log::warn!("{} is damaged: {reason}; it is kept as {}", path.display(), target.display());
        if let Err(error) = sync_directory(&self.folder) {
            log::debug!("cannot sync {}: {error}", self.folder.display());
        }
        self.forget_oldest();
        Ok(())
    }

    fn count(&self, kind: DamageKind) {
        self.found[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What stands in the folder's place and is none goes into it.
    fn make_folder(&self) -> io::Result<()> {
        let stranger = self.folder.with_extension("tmp");
        let is_taken = fs::symlink_metadata(&self.folder).is_ok() && !self.folder.is_dir();
        if is_taken {
            fs::rename(&self.folder, &stranger)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        if is_taken { self.set_aside(DamageKind::Layout, &stranger, "a directory has to be there") } else { Ok(()) }
    }

    /// The tasks of which something is kept.
    pub(super) fn tasks(&self) -> Vec<TaskId> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let task = |name: String| name.split_once('-')?.1.split('.').next()?.parse().ok();
        // No daemon has got so far: somebody else's.
        names.filter_map(task).filter(|task: &TaskId| task.0 < u64::MAX / 2).collect()
    }

    /// `KIND-NAME.N`, which nothing is called yet.
    fn free_name(&self, kind: DamageKind, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        loop {
            let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
            let target = self.folder.join(format!("{}-{name}.{number}", kind.name()));
            if fs::symlink_metadata(&target).is_err() {
                return target;
            }
        }
    }

    fn forget_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut kept: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let metadata = entry.metadata().ok()?;
                use std::os::unix::fs::MetadataExt;
                let changed = (metadata.ctime(), metadata.ctime_nsec());
                metadata.is_file().then(|| (changed, entry.path(), metadata.len()))
            })
            .collect();
        kept.sort_unstable_by(|one, other| other.cmp(one));
        let mut bytes = 0;
        for (index, (_, path, length)) in kept.iter().enumerate() {
            bytes += length;
            // The newest stays however large it is.
            if index > 0 && (index >= FILES_MAX || bytes > BYTES_MAX) {
                match fs::remove_file(path) {
                    Ok(()) => log::warn!("{} gives way to what was damaged since", path.display()),
                    Err(error) => log::warn!("cannot remove {}: {error}; remove it by hand", path.display()),
                }
            }
        }
    }
}

/// Opens what should be a plain file and may be anything.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    // Why: a pipe would be waited for, and a link leads out of the directory.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no plain file"));
    }
    Ok(file)
}
