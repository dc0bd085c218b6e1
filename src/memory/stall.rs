//! Pressure stall information as a wake-up: the kernel tells when tasks wait for memory (psi(7),
//! Documentation/accounting/psi.rst).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Some task waited for memory for 200 ms of 2 s. Without CAP_SYS_RESOURCE the window must be a multiple of 2 s.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// Becomes urgent in poll(2) (POLLPRI), at most once a window, and broken (POLLERR) if it will not any more.
#[derive(Debug)]
pub struct Stall {
    file: File,
}

impl Stall {
    /// Fails on a kernel without it, or one that does not let us.
    pub fn arm(path: &Path) -> io::Result<Stall> {
        // As in the kernel's own example.
        let mut file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        file.write_all(TRIGGER)?;
        Ok(Stall { file })
    }
}

impl AsFd for Stall {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_such_file_there_is_no_trigger() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Stall::arm(&dir.path().join("memory")).is_err());
        let path = dir.path().join("present");
        std::fs::write(&path, "").unwrap();
        assert!(Stall::arm(&path).is_ok());
        assert_eq!(std::fs::read(&path).unwrap(), TRIGGER);
    }
}
