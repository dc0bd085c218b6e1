//! Pipes between the daemon and its workers.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd};

/// A pipe whose reading end never blocks. Both ends are closed on exec (pipe(2), O_CLOEXEC).
pub fn to_us() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    set_nonblocking(&reader)?;
    Ok((reader, writer))
}

/// A pipe whose writing end never blocks. Both ends are closed on exec.
pub fn from_us() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    set_nonblocking(&writer)?;
    Ok((reader, writer))
}

/// The flag belongs to this end alone: the two ends of a pipe are two open file descriptions (pipe(7)).
fn set_nonblocking(end: &impl AsFd) -> io::Result<()> {
    let fd = end.as_fd().as_raw_fd();
    // SAFETY: fcntl with F_GETFL and F_SETFL reads no memory of ours, and `fd` is open while `end` is borrowed.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        flags != -1 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) != -1
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
