//! A bell that wakes a thread out of poll(2) or epoll_wait(2): eventfd(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    /// Rung and not yet heard: a second ring costs no system call.
    is_rung: AtomicBool,
}

impl EventFd {
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(EventFd { fd, is_rung: AtomicBool::new(false) })
    }

    /// Wakes the listener, now or when it next waits. What was sent before is visible to it.
    pub fn ring(&self) {
        if self.is_rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the buffer is 8 bytes, as eventfd(2) wants. It cannot fail: the counter is 0 or 1.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// To be called by the listener before it looks at what was sent.
    pub fn hear(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: the buffer is 8 bytes, as eventfd(2) wants. EAGAIN means it was not rung.
        unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        // Why: a swap, so that what the ringer sent before it found the bell rung is visible here.
        self.is_rung.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_once_until_it_is_heard() {
        let bell = EventFd::new().expect("an eventfd");
        bell.ring();
        bell.ring();
        let mut count = [0_u8; 8];
        // SAFETY: the buffer is 8 bytes.
        let read = unsafe { libc::read(bell.fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        assert_eq!((read, u64::from_ne_bytes(count)), (8, 1));
        bell.hear();
        bell.ring();
        // SAFETY: the buffer is 8 bytes.
        let read = unsafe { libc::read(bell.fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        assert_eq!(read, 8, "it rings again after it was heard");
    }
}
