//! Questions about files that std does not ask.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether this process may write the file or make entries in the directory: access(2). It asks for the real user, whom a
/// daemon that is no set-user-ID program does not tell from the effective one.
pub fn may_write(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path ends with NUL.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

/// What `make` creates lacks these permission bits: umask(2), which is the whole process's. For the start, when there is one
/// thread.
pub fn with_umask<T>(mask: u32, make: impl FnOnce() -> T) -> T {
    // SAFETY: plain numbers; it cannot fail.
    let before = unsafe { libc::umask(mask as libc::mode_t) };
    let made = make();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    made
}

/// What this process may still put on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    pub bytes: u64,
    /// Files it may still make; `None` where the file system sets no number.
    pub inodes: Option<u64>,
}

/// What is free on the file system of `path`: statvfs(3). What is kept back for root does not count, for root either.
pub fn free(path: &Path) -> io::Result<Free> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut statistics = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with NUL; `statistics` outlives the call.
    if unsafe { libc::statvfs(path.as_ptr(), statistics.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled it.
    let statistics = unsafe { statistics.assume_init() };
    // Both are 32 bits wide on some targets.
    #[allow(clippy::useless_conversion, reason = "on 64-bit targets they are u64 already")]
    let (blocks, size) = (u64::from(statistics.f_bavail), u64::from(statistics.f_frsize));
    #[allow(clippy::useless_conversion, reason = "as above")]
    let (files, free_files) = (u64::from(statistics.f_files), u64::from(statistics.f_favail));
    Ok(Free { bytes: blocks.saturating_mul(size), inodes: (files > 0).then_some(free_files) })
}

/// Whether the file has the extended attribute with just this one byte: getxattr(2).
pub fn has_attribute(path: &Path, name: &CStr, value: u8) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut buffer = [0_u8; 2];
    // SAFETY: both names end with NUL; the length is the buffer's.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    length == 1 && buffer[0] == value
}

/// A FIFO: mkfifo(3).
#[cfg(test)]
pub fn make_pipe(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the path ends with NUL.
    if unsafe { libc::mkfifo(path.as_ptr(), 0o600) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_ours_may_be_written_and_what_is_not_there_may_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(may_write(dir.path()));
        assert!(!may_write(&dir.path().join("nothing")));
        assert!(free(dir.path()).unwrap().bytes > 0);
        assert!(free(&dir.path().join("nothing")).is_err());
        assert!(!has_attribute(dir.path(), c"user.kurultai", b'1'));
    }
}
