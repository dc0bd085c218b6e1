//! Starting a program: clone(2) the way vfork(2) does it, so that it costs the same however large the daemon is.
//!
//! Why not fork: it copies the page tables and makes every page of the daemon be copied again on its next write. With
//! CLONE_VM and CLONE_VFORK, as in glibc's posix_spawn, the child borrows our memory on a stack of its own while this
//! thread stands still until the exec; and whatever fails before the exec is told in that memory, without a pipe.

use std::ffi::{CStr, CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use super::process::Child;
use super::user::User;

/// A program to start, and as what.
pub struct Launch<'a> {
    /// Paths of the program, tried in turn as execvp(3) does.
    pub programs: &'a [CString],
    pub arguments: &'a [CString],
    /// `NAME=value`; the whole environment.
    pub environment: &'a [CString],
    pub directory: &'a CStr,
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    pub user: Option<&'a User>,
    pub oom_score_adj: i32,
    /// The cgroup it is to be in from its first page on.
    pub cgroup: Option<Join<'a>>,
    /// Private writable memory, in bytes: RLIMIT_DATA of getrlimit(2), which every process of the tree has for itself.
    pub data_limit: Option<u64>,
    /// [`super::mark::Instance::mark`].
    pub mark: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("{step:?}: {error}")]
pub struct LaunchError {
    pub step: Step,
    pub error: io::Error,
}

/// What could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Process,
    Descriptors,
    DataLimit,
    User,
    Directory,
    Exec,
}

impl Step {
    const ALL: [Step; 6] = [Step::Process, Step::Descriptors, Step::DataLimit, Step::User, Step::Directory, Step::Exec];
}

/// Enough for the child's few frames in a build without optimization; pages it does not touch cost nothing.
const STACK_BYTES: usize = 64 * 1024;
/// linux/sched.h; libc's is an int, which has no such bit.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
const UMASK: libc::mode_t = 0o022;
/// Signals are 1 to 64 on every Linux this is built for (signal(7)).
const LAST_SIGNAL: libc::c_int = 64;
const KERNEL_SIGSET_BYTES: usize = LAST_SIGNAL as usize / 8;

/// What the child reads while it shares our memory, and where it writes why it failed.
struct Plan<'a> {
    launch: &'a Launch<'a>,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    oom_score_adj: CString,
    parent: libc::pid_t,
    nice: libc::c_int,
    /// Where it writes itself into a cgroup.
    procs: Option<BorrowedFd<'a>>,
    failure: &'a Failure,
}

/// What the child tells of itself.
struct Failure {
    step: AtomicI32,
    errno: AtomicI32,
    cgroup_errno: AtomicI32,
}

impl Failure {
    fn none() -> Failure {
        Failure { step: AtomicI32::new(-1), errno: AtomicI32::new(0), cgroup_errno: AtomicI32::new(0) }
    }
}

/// A way into a cgroup.
#[derive(Clone, Copy)]
pub enum Join<'a> {
    /// By itself, writing to `cgroup.procs`: the kernel waits for its read-copy-update, 8 to 16 ms where nobody has joined
    /// any group lately.
    Procs(BorrowedFd<'a>),
    /// Born in it, by the directory of a group of version 2 (clone(2), CLONE_INTO_CGROUP, Linux 5.7); where that is refused,
    /// by itself.
    Directory { directory: BorrowedFd<'a>, procs: BorrowedFd<'a> },
}

/// A program that runs.
pub struct Launched {
    pub child: Child,
    /// Why it is not in the cgroup it was to be in.
    pub cgroup_error: Option<io::Error>,
}

/// Starts a program as the leader of a new session: clean of signal masks and dispositions, with three descriptors,
/// umask 022, no core files, and dying with the *thread* that called this (prctl(2), PR_SET_PDEATHSIG).
pub fn launch(launch: &Launch<'_>) -> Result<Launched, LaunchError> {
    let process = |error| LaunchError { step: Step::Process, error };
    let failure = Shared::new().map_err(process)?;
    let (procs, directory) = match launch.cgroup {
        None => (None, None),
        Some(Join::Procs(procs)) => (Some(procs), None),
        Some(Join::Directory { directory, procs }) => (Some(procs), Some(directory)),
    };
    let mut plan = Plan {
        launch,
        arguments: null_terminated(launch.arguments),
        environment: null_terminated(launch.environment),
        oom_score_adj: CString::new(launch.oom_score_adj.to_string()).unwrap_or_default(),
        parent: std::process::id() as libc::pid_t,
        nice: super::priority::ordinary(),
        procs: None,
        failure: failure.get(),
    };
    let born = directory.and_then(|directory| blocked(|| clone_into(&plan, directory)).ok());
    let (pid, pidfd) = match born {
        Some(born) => born,
        None => {
            plan.procs = procs;
            let stack = Stack::new().map_err(process)?;
            blocked(|| clone_shared(&plan, &stack)).map_err(process)?
        }
    };
    let mut child = Child::new(pid, pidfd);
    let Ok(step) = usize::try_from(failure.get().step.load(Ordering::Relaxed)) else {
        let errno = failure.get().cgroup_errno.load(Ordering::Relaxed);
        return Ok(Launched { child, cgroup_error: (errno != 0).then(|| io::Error::from_raw_os_error(errno)) });
    };
    let error = io::Error::from_raw_os_error(failure.get().errno.load(Ordering::Relaxed));
    // It is on its way out of _exit(2): this takes microseconds.
    while let Err(error) = child.reap_blocking()
        && error.kind() == io::ErrorKind::Interrupted
    {}
    Err(LaunchError { step: Step::ALL[step], error })
}

fn null_terminated(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// With all signals blocked: a handler of ours must not run in the child, on the memory it shares with us.
fn blocked<T>(clone: impl FnOnce() -> T) -> T {
    // SAFETY: the sets are initialized by sigfillset and pthread_sigmask before they are read.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let cloned = clone();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        cloned
    }
}

fn clone_shared(plan: &Plan<'_>, stack: &Stack) -> io::Result<(libc::pid_t, OwnedFd)> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: libc::c_int = -1;
    let argument = ptr::from_ref(plan).cast_mut().cast::<c_void>();
    // SAFETY: `child` gets a stack that nobody else uses and that outlives it, since CLONE_VFORK holds this thread until
    // the child has called exec or _exit; for the same reason `plan` is borrowed for as long as the child reads it. What
    // the child writes are atomics, and the errno of this thread. `pidfd` is where CLONE_PIDFD puts the new descriptor.
    let pid = unsafe { libc::clone(child, stack.top(), flags, argument, ptr::from_mut(&mut pidfd)) };
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: clone succeeded, so the descriptor is new and nobody else's.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Why on a copy of our memory and not in it: clone3(2) gives the child no function to begin with, and two processes cannot
/// return on one stack. The daemon is small, so the copy of its page tables costs far less than joining a group.
fn clone_into(plan: &Plan<'_>, directory: BorrowedFd<'_>) -> io::Result<(libc::pid_t, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zero is a valid clone_args: nothing is asked for.
    let mut arguments = unsafe { std::mem::zeroed::<libc::clone_args>() };
    arguments.flags = (libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_INTO_CGROUP;
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: the arguments are alive and of the size that is told. The child, a copy of this thread alone, makes system
    // calls only (see `child`) and never returns; its words go through shared memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&arguments), size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            become_program_or_exit(plan);
        }
        // SAFETY: clone3 succeeded, so the descriptor is new and nobody else's.
        pid => Ok((pid as libc::pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// Runs in the child until exec. INVARIANT: only system calls; no allocation, no lock, no panic, nothing of libc that
/// keeps state, for the memory is the daemon's.
extern "C" fn child(argument: *mut c_void) -> libc::c_int {
    // SAFETY: clone_shared passes a pointer to a Plan that lives until we exec or exit.
    become_program_or_exit(unsafe { &*argument.cast::<Plan<'_>>() })
}

/// INVARIANT: as for `child`.
fn become_program_or_exit(plan: &Plan<'_>) -> ! {
    let Err(step) = become_program(plan);
    plan.failure.errno.store(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
    plan.failure.step.store(step as i32, Ordering::Relaxed);
    // SAFETY: _exit runs no handlers and flushes nothing.
    unsafe { libc::_exit(127) }
}

/// Returns only what failed; errno says why.
fn become_program(plan: &Plan<'_>) -> Result<std::convert::Infallible, Step> {
    let launch = plan.launch;
    let check = |result: libc::c_int, step| if result == -1 { Err(step) } else { Ok(()) };
    // SAFETY: every pointer comes from a CStr, a null-terminated array of them or a live local; the calls are thin
    // wrappers of system calls that change this process alone (no CLONE_FILES, CLONE_FS or CLONE_SIGHAND).
    unsafe {
        // First of all, so that nothing unmarked can be left behind. It fails only under a lower hard limit.
        let limit = libc::rlimit { rlim_cur: launch.mark as libc::rlim_t, rlim_max: launch.mark as libc::rlim_t };
        libc::setrlimit(libc::RLIMIT_RSS, &limit);
        libc::setsid();
        if let Some(procs) = plan.procs
            && libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) == -1
        {
            // "0" is the writer (cgroups(7)). The worker runs without; the watchdog is there for all.
            plan.failure.cgroup_errno.store(*libc::__errno_location(), Ordering::Relaxed);
        }
        reset_signal_dispositions();
        for (target, source) in [(0, launch.stdin), (1, launch.stdout), (2, launch.stderr)] {
            // The sources are above 2: Rust's runtime opens 0, 1 and 2 before main if they were closed.
            check(libc::dup2(source.as_raw_fd(), target), Step::Descriptors)?;
        }
        close_from(3);
        libc::umask(UMASK);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        // The thread that starts us may be urgent, and have the right to be; neither is ours.
        libc::setpriority(libc::PRIO_PROCESS, 0, plan.nice);
        libc::setrlimit(libc::RLIMIT_NICE, &none);
        libc::setrlimit(libc::RLIMIT_RTPRIO, &none);
        if let Some(bytes) = launch.data_limit {
            let limit = libc::rlimit { rlim_cur: bytes as libc::rlim_t, rlim_max: bytes as libc::rlim_t };
            check(libc::setrlimit(libc::RLIMIT_DATA, &limit), Step::DataLimit)?;
        }
        // While we are still who the daemon is. Best effort: the governor does not depend on the kernel's choice.
        raise_oom_score(&plan.oom_score_adj);
        if let Some(user) = launch.user {
            // Raw: libc's setuid would change all threads of the daemon, which it takes for ours.
            check(libc::syscall(SET_GROUPS, user.groups.len(), user.groups.as_ptr()) as libc::c_int, Step::User)?;
            check(libc::syscall(SET_GID, user.gid) as libc::c_int, Step::User)?;
            check(libc::syscall(SET_UID, user.uid) as libc::c_int, Step::User)?;
        }
        check(libc::chdir(launch.directory.as_ptr()), Step::Directory)?;
        // After the change of user, which clears it. If the daemon died before this, nobody will tell us.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() != plan.parent {
            libc::_exit(127);
        }
        let mut nothing_blocked = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut nothing_blocked);
        libc::pthread_sigmask(libc::SIG_SETMASK, &nothing_blocked, ptr::null_mut());
        exec_first(plan);
    }
    Err(Step::Exec)
}

/// As execvp(3): the first that can be executed; a permission denied on the way is the error that is told at the end.
unsafe fn exec_first(plan: &Plan<'_>) {
    let mut denied = false;
    for program in plan.launch.programs {
        // SAFETY: the program ends with NUL, both arrays with null, and all of it is alive until the exec.
        let errno = unsafe {
            libc::execve(program.as_ptr(), plan.arguments.as_ptr(), plan.environment.as_ptr());
            *libc::__errno_location()
        };
        match errno {
            libc::EACCES => denied = true,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            _ => return,
        }
    }
    // SAFETY: errno of this thread, which waits for us.
    unsafe { *libc::__errno_location() = if denied { libc::EACCES } else { libc::ENOENT } };
}

/// Exec resets what is caught, but not what is ignored (such as PIPE by Rust's runtime); and until the exec a handler
/// must not run here. Raw, because libc refuses to touch the two signals it keeps to itself.
unsafe fn reset_signal_dispositions() {
    // The kernel's sigaction is at most this large on any architecture; all zero is SIG_DFL with an empty mask.
    let default = [0u64; 8];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the kernel reads the structure and writes nothing. KILL and STOP are refused.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<c_void>(), KERNEL_SIGSET_BYTES)
        };
    }
}

pub(super) unsafe fn close_from(first: libc::c_uint) {
    // SAFETY: closing descriptors this process does not use any more; both calls take plain numbers.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        // Linux before 5.9. All that the daemon opens is close-on-exec; this is for what it inherited.
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        for fd in first..(limit.rlim_cur as libc::c_uint).min(65_536) {
            libc::close(fd as libc::c_int);
        }
    }
}

/// With CLONE_VFORK the score of this process alone is changed, though the memory is shared (fs/proc/base.c,
/// `__set_oom_adj`).
unsafe fn raise_oom_score(adjustment: &CStr) {
    // SAFETY: the path and the text end with NUL; the length written is the text's.
    unsafe {
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd != -1 {
            libc::write(fd, adjustment.as_ptr().cast(), adjustment.count_bytes());
            libc::close(fd);
        }
    }
}

// On 32-bit ARM and x86 the plain calls take 16-bit ids.
#[cfg(not(any(target_arch = "arm", target_arch = "x86")))]
use libc::{SYS_setgid as SET_GID, SYS_setgroups as SET_GROUPS, SYS_setuid as SET_UID};
#[cfg(any(target_arch = "arm", target_arch = "x86"))]
use libc::{SYS_setgid32 as SET_GID, SYS_setgroups32 as SET_GROUPS, SYS_setuid32 as SET_UID};

/// Words that both processes see, whether the child has our memory or a copy of it.
struct Shared {
    failure: *mut Failure,
}

impl Shared {
    fn new() -> io::Result<Shared> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let bytes = size_of::<Failure>();
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let page = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let failure = page.cast::<Failure>();
        // SAFETY: a page of ours, aligned for anything, and large enough.
        unsafe { failure.write(Failure::none()) };
        Ok(Shared { failure })
    }

    fn get(&self) -> &Failure {
        // SAFETY: initialized above and mapped until the drop; atomics may be written by others.
        unsafe { &*self.failure }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the borrow of `get` has ended.
        unsafe { libc::munmap(self.failure.cast(), size_of::<Failure>()) };
    }
}

/// Memory for the child's stack, given back when it has called exec.
struct Stack {
    bottom: *mut c_void,
}

impl Stack {
    fn new() -> io::Result<Stack> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let bottom =
            unsafe { libc::mmap(ptr::null_mut(), STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if bottom == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Stack { bottom }) }
    }

    /// Stacks grow downwards on every architecture this is built for.
    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping, which is page-aligned and so aligned for any stack.
        unsafe { self.bottom.byte_add(STACK_BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody runs on it any more: the clone has returned.
        unsafe { libc::munmap(self.bottom, STACK_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::sys::process::Signal;

    fn start(program: &str, cgroup: Join<'_>) -> Result<Launched, LaunchError> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        let words = [program, "1000"].map(|word| CString::new(word).unwrap());
        launch(&Launch {
            programs: &words[..1],
            arguments: &words,
            environment: &[],
            directory: c"/",
            stdin: null.as_fd(),
            stdout: null.as_fd(),
            stderr: null.as_fd(),
            user: None,
            oom_score_adj: 0,
            cgroup: Some(cgroup),
            data_limit: None,
            mark: u64::MAX,
        })
    }

    fn end(mut child: Child) {
        child.signal(Signal::Kill);
        child.reap_blocking().unwrap();
    }

    fn procs(directory: &Path) -> File {
        OpenOptions::new().write(true).create(true).truncate(false).open(directory.join("cgroup.procs")).unwrap()
    }

    /// A new group of version 2, with or without controllers; `None` where none can be made.
    fn new_group() -> Option<PathBuf> {
        let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let place = places.into_iter().find(|place| place.join("cgroup.controllers").exists())?;
        let group = place.join(format!("kurultai-test-launch-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        Some(group)
    }

    #[test]
    fn a_program_is_born_in_its_group_and_what_is_wrong_with_it_is_told() {
        let Some(group) = new_group() else { return a_program_joins_where_it_cannot_be_born() };
        let (directory, procs) = (File::open(&group).unwrap(), procs(&group));
        let join = Join::Directory { directory: directory.as_fd(), procs: procs.as_fd() };
        let started = start("/bin/sleep", join);
        let missing = start("/no/such/program", join);
        let cgroup = started
            .as_ref()
            .map(|launched| fs::read_to_string(format!("/proc/{}/cgroup", launched.child.pid())).unwrap_or_default());
        let in_group = cgroup.is_ok_and(|cgroup| cgroup.contains("/kurultai-test-launch-"));
        let started = started.map(|launched| (launched.cgroup_error.is_none(), end(launched.child)));
        fs::remove_dir(&group).unwrap();
        assert!(in_group && started.is_ok_and(|(joined, ())| joined));
        let error = missing.err().expect("there is no such program");
        assert_eq!((error.step, error.error.kind()), (Step::Exec, io::ErrorKind::NotFound));
    }

    #[test]
    fn a_program_joins_where_it_cannot_be_born() {
        let group = tempfile::tempdir().unwrap();
        let (directory, procs) = (File::open(group.path()).unwrap(), procs(group.path()));
        let join = Join::Directory { directory: directory.as_fd(), procs: procs.as_fd() };
        let launched = start("/bin/sleep", join).unwrap();
        assert!(launched.cgroup_error.is_none());
        end(launched.child);
        assert_eq!(fs::read_to_string(group.path().join("cgroup.procs")).unwrap(), "0");
        let refused = Join::Procs(directory.as_fd());
        let launched = start("/bin/sleep", refused).unwrap();
        assert_eq!(
            launched.cgroup_error.and_then(|error| error.raw_os_error()),
            Some(libc::EBADF),
            "it runs all the same"
        );
        end(launched.child);
    }
}
