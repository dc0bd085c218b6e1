//! Processes of ours: signals that cannot hit a stranger, and how they ended.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A child that has not been reaped. As long as that is so, its pid and its process group's number are its own: the
/// kernel gives them to nobody else. After [`Child::reap`] has returned its end, nothing is signalled any more.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    reaped: bool,
}

/// How a process ended: one of the two is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    /// `ru_maxrss` of getrusage(2), in bytes: of the process or of the largest child it waited for. Never less than what
    /// the daemon itself held at the spawn, since that address space is what the process started in.
    pub peak_rss_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Kill,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        }
    }
}

impl Child {
    pub(super) fn new(pid: libc::pid_t, pidfd: OwnedFd) -> Child {
        Child { pid, pidfd, reaped: false }
    }

    /// A child that became ours by adoption. `pid` must be one of our children, and the caller the only one who reaps.
    pub fn adopted(pid: u32) -> io::Result<Child> {
        Ok(Child::new(pid as libc::pid_t, open_pidfd(pid)?))
    }

    pub fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Sends a signal to the process: pidfd_send_signal(2). One that has ended is not an error.
    pub fn signal(&self, signal: Signal) {
        if !self.reaped {
            send_signal(self.pidfd.as_fd(), signal);
        }
    }

    /// The most memory it has held so far, in bytes: VmHWM of proc_pid_status(5); 0 if it has ended.
    pub fn peak_rss_bytes(&self) -> u64 {
        let status = if self.reaped { String::new() } else { self.status() };
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    fn status(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default()
    }

    /// Helps a killed process to give its memory back at once, even if it is stuck: process_mrelease(2), Linux 5.15.
    /// Best effort; it does nothing for a process that is not dying or shares its memory.
    pub fn release_memory(&self) {
        if !self.reaped {
            // SAFETY: process_mrelease takes a descriptor, which is open, and no pointers.
            unsafe { libc::syscall(libc::SYS_process_mrelease, self.pidfd.as_raw_fd(), 0) };
        }
    }

    /// Sends a signal to everybody in the process group it leads: kill(2). It must have been started by
    /// [`super::launch::launch`], which makes it the leader of its session for good.
    pub fn signal_group(&self, signal: Signal) {
        if !self.reaped {
            // SAFETY: kill takes no pointers. The group's number is the pid of an unreaped child, so it is ours.
            unsafe { libc::kill(-self.pid, signal.number()) };
        }
    }

    /// How it ended; `None` while it runs. Does not block: wait4(2), WNOHANG.
    pub fn reap(&mut self) -> io::Result<Option<Ended>> {
        self.wait(libc::WNOHANG)
    }

    pub(super) fn reap_blocking(&mut self) -> io::Result<Option<Ended>> {
        self.wait(0)
    }

    fn wait(&mut self, flags: libc::c_int) -> io::Result<Option<Ended>> {
        if self.reaped {
            return Err(io::Error::from_raw_os_error(libc::ECHILD));
        }
        let mut status = 0;
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // Why by pid: waitid(2) by pidfd gives no rusage through libc, and the pid of an unreaped child is unique.
        // SAFETY: both pointers are to live locals of the types wait4 fills in.
        let pid = unsafe { libc::wait4(self.pid, &mut status, flags, usage.as_mut_ptr()) };
        if pid == -1 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            return Ok(None);
        }
        self.reaped = true;
        // SAFETY: all zero is a valid rusage, and wait4 has filled it in.
        let usage = unsafe { usage.assume_init() };
        let exited = libc::WIFEXITED(status);
        Ok(Some(Ended {
            status: exited.then(|| libc::WEXITSTATUS(status)),
            signal: (!exited).then(|| libc::WTERMSIG(status)),
            peak_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        }))
    }
}

/// Readable once the process has ended (pidfd_open(2)).
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A handle on the process that has this pid now; later users of the pid are not meant by it. Linux 5.3.
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes no pointers; the descriptor it returns is new, close-on-exec and owned by nobody else.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
        if fd == -1 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as libc::c_int)) }
    }
}

pub fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) {
    // SAFETY: a null siginfo is allowed and means what kill(2) sends. ESRCH, it has ended, is what the caller wanted.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal.number(),
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
}

/// From now on, orphans below us become our children instead of init's: prctl(2), PR_SET_CHILD_SUBREAPER.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: this prctl takes plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The calling thread's number, as /proc and cgroups know it: gettid(2).
pub fn thread_id() -> u32 {
    // SAFETY: no pointers; it cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Ends the process now: no destructors, no exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) does not return.
    unsafe { libc::_exit(status) }
}
