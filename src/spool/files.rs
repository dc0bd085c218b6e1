//! The files of one task: payload, checkpoint, result. Any thread may use it; names follow from the task's id, so two
//! tasks never share a file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::core::ids::TaskId;

/// Readable by the daemon alone: payloads may hold secrets. A worker under another user is given its payload by chown.
const FILE_MODE: u32 = 0o600;
/// Others may pass through to a file of theirs, not list.
const DIRECTORY_MODE: u32 = 0o711;

const PAYLOADS: &str = "payloads";
const CHECKPOINTS: &str = "checkpoints";
const RESULTS: &str = "results";

#[derive(Debug, Clone)]
pub struct Files {
    root: Arc<Path>,
    fsync: bool,
}

impl Files {
    /// Makes the directories under `root` where they are missing. `fsync = false` trades safety against a power cut
    /// for speed and changes nothing else.
    pub fn open(root: &Path, fsync: bool) -> io::Result<Files> {
        for name in [PAYLOADS, CHECKPOINTS, RESULTS] {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(root.join(name))?;
        }
        Ok(Files { root: Arc::from(root), fsync })
    }

    pub fn payload_path(&self, task: TaskId) -> PathBuf {
        self.path(PAYLOADS, task)
    }

    pub fn result_path(&self, task: TaskId) -> PathBuf {
        self.path(RESULTS, task)
    }

    pub fn checkpoint_path(&self, task: TaskId) -> PathBuf {
        self.path(CHECKPOINTS, task)
    }

    /// A new payload file under a temporary name; [`PayloadWriter::commit`] gives it its own.
    pub fn create_payload(&self, task: TaskId) -> io::Result<PayloadWriter> {
        let aside = self.payload_path(task).with_extension("tmp");
        let file = create(&aside)?;
        Ok(PayloadWriter { file, aside, target: self.payload_path(task), fsync: self.fsync, committed: false })
    }

    pub fn open_payload(&self, task: TaskId) -> io::Result<File> {
        File::open(self.payload_path(task))
    }

    /// An empty result file, in place of one that an earlier attempt left.
    pub fn create_result(&self, task: TaskId) -> io::Result<File> {
        create(&self.result_path(task))
    }

    pub fn open_result(&self, task: TaskId) -> io::Result<File> {
        File::open(self.result_path(task))
    }

    /// Makes a finished result file survive a power cut.
    pub fn sync_result(&self, task: TaskId) -> io::Result<()> {
        if self.fsync {
            self.open_result(task)?.sync_data()?;
            sync_directory(&self.root.join(RESULTS))?;
        }
        Ok(())
    }

    /// Replaces the task's checkpoint. `durable`: it must survive a power cut when this returns (a preemption rests
    /// on it; one that merely came with progress does not).
    pub fn write_checkpoint(&self, task: TaskId, checkpoint: &[u8], durable: bool) -> io::Result<()> {
        let target = self.checkpoint_path(task);
        let aside = target.with_extension("tmp");
        let sync = durable && self.fsync;
        let written = create(&aside).and_then(|mut file| {
            file.write_all(checkpoint)?;
            if sync { file.sync_data() } else { Ok(()) }
        });
        if let Err(error) = written.and_then(|()| fs::rename(&aside, &target)) {
            remove(&aside);
            return Err(error);
        }
        if sync {
            sync_directory(&self.root.join(CHECKPOINTS))?;
        }
        Ok(())
    }

    pub fn read_checkpoint(&self, task: TaskId) -> io::Result<Vec<u8>> {
        fs::read(self.checkpoint_path(task))
    }

    /// Removes a payload and checkpoint that nobody will ask for again.
    pub fn remove_inputs(&self, task: TaskId) {
        remove(&self.payload_path(task));
        remove(&self.checkpoint_path(task));
    }

    pub fn remove_checkpoint(&self, task: TaskId) {
        remove(&self.checkpoint_path(task));
    }

    pub fn remove_result(&self, task: TaskId) {
        remove(&self.result_path(task));
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The task ids that have a file of any kind, for clearing away what no task owns any more. What was being written
    /// when the last daemon ended is nobody's, and removed.
    pub(super) fn tasks_with_files(&self) -> io::Result<Vec<TaskId>> {
        let mut tasks = Vec::new();
        for name in [PAYLOADS, CHECKPOINTS, RESULTS] {
            for entry in fs::read_dir(self.root.join(name))? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.ends_with(".tmp") {
                    remove(&entry.path());
                } else {
                    tasks.extend(name.parse::<TaskId>().ok());
                }
            }
        }
        tasks.sort_unstable();
        tasks.dedup();
        Ok(tasks)
    }

    fn path(&self, kind: &str, task: TaskId) -> PathBuf {
        self.root.join(kind).join(task.to_string())
    }
}

/// A payload that is being received. Dropped without commit, it leaves nothing behind.
pub struct PayloadWriter {
    file: File,
    aside: PathBuf,
    target: PathBuf,
    fsync: bool,
    committed: bool,
}

impl PayloadWriter {
    pub fn path(&self) -> &Path {
        &self.aside
    }

    /// The payload is complete: it survives a power cut from here on (with `durability = "fsync"`).
    pub fn commit(mut self) -> io::Result<()> {
        if self.fsync {
            self.file.sync_data()?;
        }
        fs::rename(&self.aside, &self.target)?;
        self.committed = true;
        if self.fsync
            && let Some(directory) = self.target.parent()
        {
            sync_directory(directory)?;
        }
        Ok(())
    }
}

impl Write for PayloadWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PayloadWriter {
    fn drop(&mut self) {
        if !self.committed {
            remove(&self.aside);
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            log::warn!("cannot remove {}: {error}; it takes room until it is removed by hand", path.display())
        }
    }
}
