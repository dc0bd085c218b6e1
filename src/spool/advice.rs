//! What an operator can do about a file that cannot be written.

use std::io::{Error, ErrorKind};

/// What to do about this error in daemon.state_dir, as the second half of a message.
pub fn advice(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull => "make room in daemon.state_dir, or move it to a larger disk",
        ErrorKind::QuotaExceeded => "make room in daemon.state_dir, or raise the quota of the daemon's user",
        ErrorKind::FileTooLarge => "start the daemon with a higher limit of file sizes (ulimit -f)",
        ErrorKind::ReadOnlyFilesystem => "see in dmesg why the file system is read-only, and mount it read-write",
        _ => "see to the disk, room and permissions of daemon.state_dir",
    }
}
