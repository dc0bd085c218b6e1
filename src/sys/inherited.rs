//! Sockets that a service manager opened and handed over: sd_listen_fds(3).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    TcpListener,
    UnixListener,
    /// No socket, no stream, not listening, or of another family.
    Other,
}

/// The descriptors meant for this process, close-on-exec from now on; none without a service manager. The variables that
/// told of them are removed, so that no program started from here takes them for its own.
///
/// Call it before the first thread starts, and once: the second time there is nothing.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    // SAFETY: there are no other threads yet, which could read the environment meanwhile.
    let fds = unsafe { sd_notify::listen_fds_with_names_and_unset_env() }?;
    // SAFETY: the service manager left them open for this process, and nothing else here knows them.
    Ok(fds.map(|(fd, _)| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

pub fn kind(fd: BorrowedFd<'_>) -> Kind {
    let option = |name| get_option(fd, name);
    if option(libc::SO_TYPE) != Some(libc::SOCK_STREAM) || option(libc::SO_ACCEPTCONN) != Some(1) {
        return Kind::Other;
    }
    match option(libc::SO_DOMAIN) {
        Some(libc::AF_INET | libc::AF_INET6) => Kind::TcpListener,
        Some(libc::AF_UNIX) => Kind::UnixListener,
        Some(_) | None => Kind::Other,
    }
}

fn get_option(fd: BorrowedFd<'_>, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: both outputs are live locals, and the length is that of the value.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
    (result == 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn listening_streams_are_told_from_everything_else() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (pair, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(kind(tcp.as_fd()), Kind::TcpListener);
        for (fd, what) in [(pair.as_fd(), "connected"), (datagrams.as_fd(), "datagrams"), (file.as_fd(), "a file")] {
            assert_eq!(kind(fd), Kind::Other, "{what}");
        }
    }
}
