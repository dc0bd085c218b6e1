//! A file that is written aside under a temporary name, and counted and checksummed on the way.

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
    name: TemporaryName,
    target: PathBuf,
    bytes: u64,
    crc: crc32fast::Hasher,
    fsync: bool,
}

/// Removed with its file, unless that is kept: a full disk has no room for pieces.
#[derive(Debug)]
struct TemporaryName {
    path: PathBuf,
    is_kept: bool,
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        if !self.is_kept {
            remove(&self.path);
        }
    }
}

impl Aside {
    /// `target`'s temporary name is its own with the extension `tmp`.
    pub(super) fn create(target: PathBuf, fsync: bool) -> io::Result<Aside> {
        let path = target.with_extension("tmp");
        let mut options = OpenOptions::new();
        // Not through a link, which would have another file emptied, nor waiting for who reads a pipe.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        options.write(true).create(true).truncate(true).mode(FILE_MODE).custom_flags(flags);
        let file = options.open(&path)?;
        let name = TemporaryName { path, is_kept: false };
        Ok(Aside { file, name, target, bytes: 0, crc: crc32fast::Hasher::new(), fsync })
    }

    pub fn path(&self) -> &Path {
        &self.name.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It is complete and has its own name: it survives a power cut from here on (with `durability = "fsync"`).
    pub fn commit(self) -> io::Result<Stored> {
        self.commit_open().map(|(_, stored)| stored)
    }

    /// As [`Aside::commit`], and what is written to the file from now on is added to it.
    pub(super) fn commit_open(mut self) -> io::Result<(File, Stored)> {
        if self.fsync {
            self.file.sync_data()?;
        }
        fs::rename(&self.name.path, &self.target)?;
        self.name.is_kept = true;
        if self.fsync
            && let Some(directory) = self.target.parent()
        {
            sync_directory(directory)?;
        }
        let stored = self.stored();
        Ok((self.file, stored))
    }

    /// It is complete, and waits under its temporary name for somebody else to sync and name it.
    pub fn leave(mut self) -> Stored {
        self.name.is_kept = true;
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
