//! What a daemon that was killed still holds: its addresses and its state directory.
//!
//! A child on its way from clone(2) to the program it is to become has copies of all descriptors, and nobody can tell it
//! that its daemon is gone. It gets there, or ends, within milliseconds; until then, what it holds looks to be in use. The
//! kernel says when it has let go, of each thing in its own way. (A pidfd would not: it tells of an end, not of an exec.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crossbeam::channel::bounded;

use crate::spool::SpoolError;
use crate::sys::clock::Clock;
use crate::sys::poll::PollSet;

/// A thousand times what it takes, on a host that swaps. A daemon that lives is told from it by then.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A few frames around one system call.
const STACK: usize = 64 * 1024;

/// Makes the attempt again where the address is in use, once whoever holds it has let go or has been waited for.
///
/// `connect` goes to the holder. What nobody has accepted when the last descriptor of a listening socket is closed, the
/// kernel resets: `inet_csk_listen_stop` of net/ipv4, `unix_release_sock` of net/unix. A daemon that lives accepts it, and
/// is still there at the second attempt.
pub fn outlast_listener<T, Stream: AsFd>(
    connect: impl FnOnce() -> io::Result<Stream>,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    match attempt() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Refused: it has let go meanwhile.
            if let Ok(stream) = connect() {
                await_end(stream.as_fd());
            }
            attempt()
        }
        done => done,
    }
}

/// Until it is reset, or something is said on it.
fn await_end(stream: BorrowedFd<'_>) {
    let clock = Clock::start();
    let mut set = PollSet::default();
    let place = set.readable(Some(stream));
    // Again after a signal.
    while !set.is_ready(place) && clock.now() < PATIENCE {
        if set.wait(Some(PATIENCE.saturating_sub(clock.now()))).is_err() {
            return;
        }
    }
}

/// As [`outlast_listener`], where the state directory is in use.
pub fn outlast<T>(mut attempt: impl FnMut() -> Result<T, SpoolError>) -> Result<T, SpoolError> {
    match attempt() {
        Err(SpoolError::InUse { path }) => {
            await_lock(&path.join("lock"));
            attempt()
        }
        done => done,
    }
}

/// Until nobody has the file locked. The lock goes with the last descriptor that was copied from its owner's (flock(2)).
fn await_lock(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let (free_tx, free_rx) = bounded(1);
    let wait = move || {
        while file.lock().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
        // INVARIANT: given back before it is told that it is free.
        drop(file);
        let _ = free_tx.send(());
    };
    // Why a thread: flock(2) takes no timeout. Where it comes to nothing, the daemon ends, and the thread with it.
    if thread::Builder::new().name("lock".to_string()).stack_size(STACK).spawn(wait).is_ok() {
        let _ = free_rx.recv_timeout(PATIENCE);
    }
}
