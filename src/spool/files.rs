//! The files of one task: payload, checkpoint, result. Any thread may use it; names follow from the task's id, so two
//! tasks never share a file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::aside::Aside;
use super::damaged::{DamageKind, Damaged, open_plain};
use super::sealed::{seal, unseal};
use crate::core::ids::TaskId;
use crate::core::limits;
use crate::core::task::Stored;

/// Others may pass through to a file of theirs, not list.
const DIRECTORY_MODE: u32 = 0o711;

const PAYLOADS: &str = "payloads";
const CHECKPOINTS: &str = "checkpoints";
const RESULTS: &str = "results";

/// A checkpoint that came with progress: newer than the task's durable one, and maybe not on the disk. A power cut may
/// take it, and leaves the other.
const LATEST: &str = "latest";

#[derive(Debug, Clone)]
pub struct Files(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    fsync: bool,
    damaged: Damaged,
    /// Why the results of these tasks are lost, so that each is told and counted once. Whoever reads results finds them.
    lost_results: Mutex<BTreeMap<TaskId, String>>,
}

/// What the directories hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// They have a file of any kind; in order.
    pub tasks: Vec<TaskId>,
    /// What has the name of such a file and is none.
    pub strangers: Vec<PathBuf>,
}

/// Why a file of the spool does not hold what was put there.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("it is missing")]
    Missing,
    #[error("it is no plain file")]
    NotPlain,
    #[error("it has {found} bytes, and {expected} were written")]
    Length { found: u64, expected: u64 },
    #[error("its checksum is {found:08x}, and {expected:08x} was written")]
    Checksum { found: u32, expected: u32 },
    #[error("it is not whole: {0}")]
    Torn(String),
    #[error("the disk cannot read it: {0}")]
    Unreadable(io::Error),
    /// It was found so before, and is told again.
    #[error("{0}")]
    Before(String),
    /// It may be there: the daemon has no right or no descriptor to see.
    #[error("{0}")]
    Unknown(io::Error),
}

impl Lost {
    pub(super) fn of(error: io::Error) -> Lost {
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => Lost::Missing,
            (io::ErrorKind::InvalidData, None) | (_, Some(libc::ELOOP | libc::ENXIO)) => Lost::NotPlain,
            (_, Some(libc::EIO)) => Lost::Unreadable(error),
            _ => Lost::Unknown(error),
        }
    }

    /// Another attempt may do better: a disk that stumbles has not lost anything.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Lost::Unreadable(_) | Lost::Unknown(_))
    }
}

impl Files {
    /// Makes the directories under `root` where they are missing. `fsync = false` trades safety against a power cut
    /// for speed and changes nothing else.
    pub fn open(root: &Path, fsync: bool) -> io::Result<Files> {
        Files::with(root, fsync, Damaged::new(root))
    }

    pub(super) fn with(root: &Path, fsync: bool, damaged: Damaged) -> io::Result<Files> {
        let lost_results = Mutex::default();
        let files = Files(Arc::new(Inner { root: root.to_path_buf(), fsync, damaged, lost_results }));
        // What the journal and the format are written to first.
        ["journal.tmp", "format.tmp"].iter().for_each(|name| files.damaged().set_stranger_aside(&root.join(name)));
        match files.make_folders() {
            // They are made with the journal, once that can be written.
            Err(error) if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull) => {
                log::error!("cannot make the folders of {}: {error}", root.display());
                Ok(files)
            }
            made => made.map(|()| files),
        }
    }

    pub(super) fn make_folders(&self) -> io::Result<()> {
        let mut names = [PAYLOADS, CHECKPOINTS, RESULTS].into_iter();
        names.try_for_each(|name| self.damaged().make_directory(&self.0.root.join(name), DIRECTORY_MODE))
    }

    pub fn payload_path(&self, task: TaskId) -> PathBuf {
        self.path(PAYLOADS, task)
    }

    pub fn result_path(&self, task: TaskId) -> PathBuf {
        self.path(RESULTS, task)
    }

    /// A new payload file under a temporary name; [`Aside::commit`] gives it its own.
    pub fn create_payload(&self, task: TaskId) -> io::Result<Aside> {
        Aside::create(self.payload_path(task), self.0.fsync)
    }

    /// A payload that has as many bytes as were accepted. Its checksum was looked at when the daemon started.
    pub fn open_payload(&self, task: TaskId, stored: Stored) -> Result<File, Lost> {
        check(&self.payload_path(task), Stored::unchecked(stored.bytes))
    }

    /// A result that comes in, under a temporary name; [`Files::keep_result`] gives it its own.
    pub fn create_result(&self, task: TaskId) -> io::Result<Aside> {
        Aside::create(self.result_path(task), self.0.fsync)
    }

    /// Gives a complete result its name; it survives a power cut when this returns.
    pub fn keep_result(&self, task: TaskId) -> io::Result<()> {
        let target = self.result_path(task);
        self.keep(&target.with_extension("tmp"), &target, RESULTS)
    }

    /// A result as it was written: checked before a byte of it goes out.
    ///
    /// # Errors
    ///
    /// What is wrong with it. It is set aside if it was damaged.
    pub fn open_result(&self, task: TaskId, stored: Stored) -> Result<File, Lost> {
        if let Some(reason) = self.lost_results().get(&task) {
            return Err(Lost::Before(reason.clone()));
        }
        check(&self.result_path(task), stored).inspect_err(|lost| {
            // Why not one that is missing: it may have been forgotten since the caller heard of it.
            if !matches!(lost, Lost::Missing) {
                self.lose_result(task, lost);
            }
        })
    }

    /// Whether the file of a result is there and as long as it has to be. Cheaper than reading it.
    pub(super) fn look_at_result(&self, task: TaskId, stored: Stored) {
        if let Err(lost) = check(&self.result_path(task), Stored::unchecked(stored.bytes)) {
            self.lose_result(task, &lost);
        }
    }

    fn lose_result(&self, task: TaskId, lost: &Lost) {
        if matches!(lost, Lost::Unknown(_)) {
            return;
        }
        // Of two who read it at once, one.
        if self.lost_results().insert(task, lost.to_string()).is_none() {
            self.lose(DamageKind::Result, &self.result_path(task), lost);
        }
    }

    fn lost_results(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, String>> {
        self.0.lost_results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the payload is what was accepted.
    pub(super) fn check_payload(&self, task: TaskId, stored: Stored) -> Result<(), Lost> {
        let path = self.payload_path(task);
        check(&path, stored).map(drop).inspect_err(|lost| self.lose(DamageKind::Payload, &path, lost))
    }

    /// Replaces the task's latest checkpoint. It survives the end of the daemon when this returns, and a power cut after
    /// [`Files::keep_checkpoint`]; until then the one before it is there.
    pub fn write_checkpoint(&self, task: TaskId, checkpoint: &[u8]) -> io::Result<()> {
        let target = self.path(CHECKPOINTS, task).with_extension(LATEST);
        let mut aside = Aside::create(target.clone(), false)?;
        aside.write_all(&seal(checkpoint)?)?;
        aside.commit().map(drop)
    }

    /// The latest checkpoint, if there is one, survives a power cut when this returns: a preemption rests on it.
    pub fn keep_checkpoint(&self, task: TaskId) -> io::Result<()> {
        let target = self.path(CHECKPOINTS, task);
        let latest = target.with_extension(LATEST);
        match fs::symlink_metadata(&latest) {
            Ok(_) => self.keep(&latest, &target, CHECKPOINTS),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether there is a file of one; not whether that is whole.
    pub fn has_checkpoint(&self, task: TaskId) -> bool {
        let kept = self.path(CHECKPOINTS, task);
        kept.exists() || kept.with_extension(LATEST).exists()
    }

    /// The newest checkpoint that is whole, as JSON. Those that are damaged are set aside.
    ///
    /// # Errors
    ///
    /// What is wrong with the newest one there is.
    pub fn read_checkpoint(&self, task: TaskId) -> Result<Vec<u8>, Lost> {
        let kept = self.path(CHECKPOINTS, task);
        let latest = kept.with_extension(LATEST);
        let mut wrong = Lost::Missing;
        for path in [&latest, &kept] {
            match twice(|| read_sealed(path), Lost::may_pass) {
                Ok(json) => return Ok(json),
                Err(Lost::Missing) => {}
                // The other one is older, and this one may be there yet.
                Err(unknown @ Lost::Unknown(_)) => return Err(unknown),
                Err(lost) => {
                    self.lose(DamageKind::Checkpoint, path, &lost);
                    wrong = lost;
                }
            }
        }
        Err(wrong)
    }

    /// Removes a payload and checkpoint that nobody will ask for again.
    pub fn remove_inputs(&self, task: TaskId) {
        remove(&self.payload_path(task));
        self.remove_checkpoint(task);
    }

    pub fn remove_checkpoint(&self, task: TaskId) {
        let path = self.path(CHECKPOINTS, task);
        remove(&path.with_extension(LATEST));
        remove(&path);
    }

    /// Kept or not yet.
    pub fn remove_result(&self, task: TaskId) {
        let path = self.result_path(task);
        remove(&path.with_extension("tmp"));
        remove(&path);
        self.lost_results().remove(&task);
    }

    /// How often a file of this kind was found damaged since the start.
    pub fn found_damaged(&self, kind: DamageKind) -> u64 {
        self.0.damaged.found(kind)
    }

    /// How often any was, and the journal.
    pub fn all_damaged(&self) -> u64 {
        DamageKind::ALL.into_iter().map(|kind| self.found_damaged(kind)).sum()
    }

    pub(super) fn damaged(&self) -> &Damaged {
        &self.0.damaged
    }

    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// What there is, for clearing away what no task owns any more. What was being written when the last daemon ended is
    /// nobody's, and removed; what is not the daemon's is let alone.
    pub(super) fn look_through(&self) -> Found {
        let mut found = Found::default();
        for name in [PAYLOADS, CHECKPOINTS, RESULTS] {
            let folder = self.0.root.join(name);
            let entries = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let entries = entries.unwrap_or_else(|error| {
                log::error!("cannot list {}: {error}; what is nobody's there stays", folder.display());
                Vec::new()
            });
            for entry in entries {
                let is_plain = entry.file_type().is_ok_and(|kind| kind.is_file());
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let (stem, extension) = name.split_once('.').map_or((&*name, None), |(stem, rest)| (stem, Some(rest)));
                match (stem.parse::<TaskId>(), extension) {
                    (Ok(_), Some("tmp")) if is_plain => remove(&entry.path()),
                    (Ok(_), Some("tmp")) => self.damaged().set_stranger_aside(&entry.path()),
                    (Ok(task), None | Some(LATEST)) => {
                        found.tasks.push(task);
                        found.strangers.extend((!is_plain).then(|| entry.path()));
                    }
                    (Ok(_), Some(_)) | (Err(_), _) => {
                        log::warn!("{} is no file of the spool; it is let alone", entry.path().display());
                    }
                }
            }
        }
        found.tasks.sort_unstable();
        found.tasks.dedup();
        found
    }

    /// Moves all that this task has out of the way: the journal that knew it is damaged.
    pub(super) fn set_task_aside(&self, task: TaskId) {
        let kinds =
            [(PAYLOADS, DamageKind::Payload), (CHECKPOINTS, DamageKind::Checkpoint), (RESULTS, DamageKind::Result)];
        for (folder, kind) in kinds {
            let path = self.path(folder, task);
            for path in [path.with_extension(LATEST), path] {
                if fs::symlink_metadata(&path).is_ok() {
                    self.set_aside(kind, &path, "no task of the journal owns it, and the journal is damaged");
                }
            }
        }
    }

    /// The directory is synced too, or after a power cut the name may be the old one's.
    fn keep(&self, aside: &Path, target: &Path, folder: &str) -> io::Result<()> {
        if self.0.fsync {
            sync_if_possible(aside, |file| file.sync_data())?;
        }
        fs::rename(aside, target)?;
        if self.0.fsync {
            sync_if_possible(&self.0.root.join(folder), |folder| folder.sync_all())?;
        }
        Ok(())
    }

    fn lose(&self, kind: DamageKind, path: &Path, lost: &Lost) {
        match lost {
            Lost::Missing => self.0.damaged.note(kind, &path.display().to_string(), &lost.to_string()),
            Lost::NotPlain | Lost::Length { .. } | Lost::Checksum { .. } | Lost::Torn(_) | Lost::Unreadable(_) => {
                self.set_aside(kind, path, &lost.to_string());
            }
            Lost::Before(_) | Lost::Unknown(_) => {}
        }
    }

    /// What cannot be moved either is told by the log, and stays.
    fn set_aside(&self, kind: DamageKind, path: &Path, reason: &str) {
        let _ = self.0.damaged.set_aside(kind, path, reason);
    }

    fn path(&self, kind: &str, task: TaskId) -> PathBuf {
        self.0.root.join(kind).join(task.to_string())
    }
}

/// Opens a file that holds what was stored, at its start. Its contents are read only if a checksum of them is known.
fn check(path: &Path, stored: Stored) -> Result<File, Lost> {
    twice(|| check_once(path, stored), Lost::may_pass)
}

/// Makes a second attempt where that may do better.
pub(super) fn twice<T, E>(read: impl Fn() -> Result<T, E>, may_pass: impl Fn(&E) -> bool) -> Result<T, E> {
    match read() {
        Err(error) if may_pass(&error) => read(),
        done => done,
    }
}

fn check_once(path: &Path, stored: Stored) -> Result<File, Lost> {
    let mut file = open_plain(path).map_err(Lost::of)?;
    let found = file.metadata().map_err(Lost::of)?.len();
    if found != stored.bytes {
        return Err(Lost::Length { found, expected: stored.bytes });
    }
    let Some(expected) = stored.crc else { return Ok(file) };
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match file.read(&mut buffer).map_err(Lost::of)? {
            0 => break,
            count => crc.update(&buffer[..count]),
        }
    }
    let found = crc.finalize();
    if found != expected {
        return Err(Lost::Checksum { found, expected });
    }
    file.rewind().map_err(Lost::of)?;
    Ok(file)
}

fn read_sealed(path: &Path) -> Result<Vec<u8>, Lost> {
    let mut line = Vec::new();
    // One byte over what is taken, with the seal and a newline.
    let most = limits::CHECKPOINT_MAX as u64 + 16;
    open_plain(path).and_then(|file| file.take(most).read_to_end(&mut line)).map_err(Lost::of)?;
    match unseal(&line) {
        Ok(json) => Ok(json.to_vec()),
        // Format 1 kept the JSON alone.
        Err(_) if serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_ok() => Ok(line),
        Err(reason) => Err(Lost::Torn(reason)),
    }
}

/// Without a descriptor to sync it by, a whole result is worth more than its safety from a power cut.
fn sync_if_possible(path: &Path, sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => sync(&file),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            log::error!("cannot sync {}: {error}; it may not survive a power cut: raise LimitNOFILE", path.display());
            Ok(())
        }
        Err(error) => Err(error),
    }
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            log::warn!("cannot remove {}: {error}; it takes room until it is removed by hand", path.display())
        }
    }
}
