//! What std does not do with sockets and files.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Sends up to `count` bytes of `file` from `offset` without passing them through this process (sendfile(2)). 0: the
/// file is shorter than it was.
pub fn send_file(socket: impl AsFd, file: &File, offset: u64, count: u64) -> io::Result<u64> {
    let mut position = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = usize::try_from(count.min(1 << 30)).unwrap_or(1 << 30);
    // SAFETY: `position` outlives the call; both descriptors are open.
    let sent = unsafe { libc::sendfile(socket.as_fd().as_raw_fd(), file.as_raw_fd(), &raw mut position, count) };
    u64::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Bytes that were written to the socket and that its peer has not read, or not acknowledged: tcp(7), unix(7), SIOCOUTQ.
pub fn unsent(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: an open descriptor, and an integer that outlives the call, as TIOCOUTQ (the same number) wants it.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(usize::try_from(bytes).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// Seconds without a sign of a TCP peer until it is asked for one, between two questions, and how many stay unanswered.
const KEEP_ALIVE: [(libc::c_int, libc::c_int); 3] =
    [(libc::TCP_KEEPIDLE, 60), (libc::TCP_KEEPINTVL, 15), (libc::TCP_KEEPCNT, 4)];

/// Notices peers that vanish without a word, such as a host that lost its power (tcp(7)). What is set on a listener is
/// set on every connection it accepts.
pub fn notice_vanished_peers(socket: impl AsFd) -> io::Result<()> {
    let options = KEEP_ALIVE.map(|(name, value)| (libc::IPPROTO_TCP, name, value));
    for (level, name, value) in options.into_iter().chain([(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)]) {
        let length = size_of_val(&value) as libc::socklen_t;
        // SAFETY: `value` outlives the call, and the length is its own.
        let result =
            unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits until there is something to read; `false` after `timeout`.
pub fn wait_readable(socket: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
    // SAFETY: one entry, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut entry, 1, millis) };
    match ready {
        ready if ready > 0 => Ok(true),
        0 => Ok(false),
        _ => {
            let error = io::Error::last_os_error();
            // A signal: the caller's deadline decides whether to wait again.
            if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) }
        }
    }
}
