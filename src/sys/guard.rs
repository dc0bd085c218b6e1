//! The guardian: a process that outlives a daemon killed with KILL just long enough to kill what it left behind.
//!
//! Its part after the fork is made of system calls alone: nothing is allocated, so it may be forked at any time, and
//! its memory is a handful of pages.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::launch::close_from;
use super::mark::{Instance, Owner};
use super::process::{Signal, open_pidfd, send_signal};

/// How long one killed process is waited for before the next one is looked at.
const DEATH_WAIT_MS: libc::c_int = 1000;
/// Scans that find something are repeated so often. More would mean processes that KILL does not end.
const SCANS_MAX: u32 = 100;

/// The daemon's end: as long as it is not dropped, the guardian waits.
#[derive(Debug)]
pub struct Guard {
    pid: libc::pid_t,
    lifeline: Option<PipeWriter>,
}

impl Guard {
    /// Forks the guardian. Early and before any thread: what the daemon changes of its memory later stays in the
    /// guardian as it was.
    pub fn fork(instance: Instance) -> io::Result<Guard> {
        let (watch, lifeline) = io::pipe()?;
        // SAFETY: the child calls `guard`, which makes system calls only and never returns.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => guard(instance, &watch),
            pid => Ok(Guard { pid, lifeline: Some(lifeline) }),
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid as u32
    }
}

/// The daemon ends in good order: so does the guardian, before this returns.
impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // SAFETY: waiting for our own child; a null status is allowed.
        unsafe {
            while libc::waitpid(self.pid, std::ptr::null_mut(), 0) == -1 && *libc::__errno_location() == libc::EINTR {}
        }
    }
}

fn guard(instance: Instance, watch: &PipeReader) -> ! {
    // SAFETY: system calls with plain numbers, NUL-terminated literals and a live buffer. Descriptor 0 becomes the
    // pipe and the rest is closed, the pipe's writing end above all, so that only the daemon holds that.
    unsafe {
        libc::setsid();
        for signal in
            [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE]
        {
            libc::signal(signal, libc::SIG_IGN);
        }
        // Marked like a worker, so that no other daemon that happens to adopt it takes it for an orphan of its own.
        let mark = instance.mark(0);
        let limit = libc::rlimit { rlim_cur: mark as libc::rlim_t, rlim_max: mark as libc::rlim_t };
        libc::setrlimit(libc::RLIMIT_RSS, &limit);
        libc::prctl(libc::PR_SET_NAME, c"kurultai-guard".as_ptr(), 0, 0, 0);
        libc::dup2(watch.as_raw_fd(), 0);
        close_from(1);
        libc::chdir(c"/".as_ptr());
        let mut byte = 0u8;
        // Nobody writes: this returns 0 when the last holder of the other end is gone.
        while libc::read(0, (&raw mut byte).cast(), 1) == -1 && *libc::__errno_location() == libc::EINTR {}
    }
    let mut clean_scans = 0;
    for _ in 0..SCANS_MAX {
        // Twice: a process may fork to a number the scan has passed and end before the scan gets to its own.
        clean_scans = if scan(instance) == 0 { clean_scans + 1 } else { 0 };
        if clean_scans == 2 {
            break;
        }
    }
    // SAFETY: _exit runs no handlers of the daemon's.
    unsafe { libc::_exit(0) }
}

/// Kills every process that bears the mark; returns how many there were.
fn scan(instance: Instance) -> u32 {
    let mut killed = 0;
    // SAFETY: getdents64(2) fills the buffer with whole records; `each_name` stays inside what it filled.
    unsafe {
        let directory = libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        if directory == -1 {
            return 0;
        }
        let directory = OwnedFd::from_raw_fd(directory);
        let mut buffer = [0u64; 256];
        loop {
            let bytes = size_of_val(&buffer);
            let got = libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), bytes);
            let Ok(got @ 1..) = usize::try_from(got) else { return killed };
            let records = std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), got.min(bytes));
            each_name(records, |name| killed += u32::from(kill_if_marked(instance, name)));
        }
    }
}

/// `struct linux_dirent64` of getdents64(2): the record's length is at 16, the name, ended by NUL, at 19.
fn each_name(mut records: &[u8], mut each: impl FnMut(&[u8])) {
    while let Some(length) = records.get(16..18) {
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        let Some(name) = records.get(19..length) else { return };
        each(name.split(|byte| *byte == 0).next().unwrap_or_default());
        records = &records[length..];
    }
}

fn kill_if_marked(instance: Instance, name: &[u8]) -> bool {
    let Some(pid) = parse_pid(name) else { return false };
    // SAFETY: getpid takes nothing and cannot fail.
    if pid == unsafe { libc::getpid() } as u32 {
        return false;
    }
    // The handle first, the mark second: if the number changes hands in between, the signal goes to the dead.
    let Ok(pidfd) = open_pidfd(pid) else { return false };
    if has_ended(&pidfd, 0) {
        return false;
    }
    let mut path = [0; 32];
    let parts: [&[u8]; 3] = [b"/proc/", name, b"/limits"];
    let mut end = 0;
    for part in parts {
        let Some(room) = path.get_mut(end..end + part.len()) else { return false };
        room.copy_from_slice(part);
        end += part.len();
    }
    let mut limits = [0u8; 2048];
    // SAFETY: the path is shorter than its zeroed buffer, so it ends with NUL; reads stay inside the buffer.
    let filled = unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd == -1 {
            return false;
        }
        let fd = OwnedFd::from_raw_fd(fd);
        usize::try_from(libc::read(fd.as_raw_fd(), limits.as_mut_ptr().cast(), limits.len())).unwrap_or(0)
    };
    match instance.owner(&limits[..filled]) {
        Owner::Worker(_) => {}
        Owner::Stranger | Owner::Unmarked => return false,
    }
    send_signal(pidfd.as_fd(), Signal::Kill);
    has_ended(&pidfd, DEATH_WAIT_MS);
    true
}

fn parse_pid(name: &[u8]) -> Option<u32> {
    if name.is_empty() || name.len() > 10 {
        return None;
    }
    name.iter().try_fold(0u32, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u32::from(digit - b'0')),
        _ => None,
    })
}

fn has_ended(pidfd: &OwnedFd, wait_ms: libc::c_int) -> bool {
    let mut entry = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd.
    unsafe { libc::poll(&mut entry, 1, wait_ms) > 0 }
}
