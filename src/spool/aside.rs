//! A file that is written aside under a temporary name and counted and checksummed on the way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::files::{remove, sync_directory};
use crate::core::task::Stored;

/// Readable by the daemon alone: payloads may hold secrets. A worker under another user is given its payload by chown.
const FILE_MODE: u32 = 0o600;

/// Dropped before it is kept, it leaves nothing behind.
#[derive(Debug)]
pub struct Aside {
    file: File,
    path: PathBuf,
    target: PathBuf,
    bytes: u64,
    crc: crc32fast::Hasher,
    fsync: bool,
    is_kept: bool,
}

impl Aside {
    /// `target`'s temporary name is its own with `.tmp` behind it.
    pub(super) fn create(target: PathBuf, fsync: bool) -> io::Result<Aside> {
        let path = target.with_extension("tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&path)?;
        Ok(Aside { file, path, target, bytes: 0, crc: crc32fast::Hasher::new(), fsync, is_kept: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It is complete and has its own name: it survives a power cut from here on (with `durability = "fsync"`).
    pub fn commit(mut self) -> io::Result<Stored> {
        if self.fsync {
            self.file.sync_data()?;
        }
        fs::rename(&self.path, &self.target)?;
        self.is_kept = true;
        if self.fsync
            && let Some(directory) = self.target.parent()
        {
            sync_directory(directory)?;
        }
        Ok(self.stored())
    }

    /// It is complete, and waits under its temporary name for somebody else to sync and name it.
    pub fn leave(mut self) -> Stored {
        self.is_kept = true;
        self.stored()
    }

    fn stored(&self) -> Stored {
        Stored { bytes: self.bytes, crc: Some(self.crc.clone().finalize()) }
    }
}

impl Write for Aside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.bytes += count as u64;
        self.crc.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.is_kept {
            remove(&self.path);
        }
    }
}
