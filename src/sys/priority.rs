//! How soon a thread gets a processor: setpriority(2), sched(7).
//!
//! On Linux niceness is a thread's own, and what a thread starts begins with it.

use std::io;

/// The most there is without real-time scheduling, under which a slip of ours could take a processor for good.
const URGENT: libc::c_int = -20;

/// The resource limit at which every niceness may be taken: 20 - nice (getrlimit(2), RLIMIT_NICE).
const ANY_NICE: libc::rlim_t = 40;

/// This thread goes before ordinary ones from now on. Fails where the daemon may not: as an ordinary user.
pub fn become_urgent() -> io::Result<()> {
    set(URGENT)
}

/// Whether threads of this process may become urgent. Called by the main thread, which stays as it was.
pub fn may_be_urgent() -> bool {
    let before = ordinary();
    // Back to less is always allowed.
    become_urgent().and_then(|()| set(before)).is_ok()
}

/// So that threads may still become urgent when the process has another user. What is started gets it back: see
/// [`super::launch`].
pub fn keep_right_to_be_urgent() {
    let limit = libc::rlimit { rlim_cur: ANY_NICE, rlim_max: ANY_NICE };
    // SAFETY: the structure is alive and only read. Where it is refused, so is urgency, which is told elsewhere.
    unsafe { libc::setrlimit(libc::RLIMIT_NICE, &limit) };
}

/// The niceness of the main thread: what the daemon was started with.
pub fn ordinary() -> libc::c_int {
    // SAFETY: plain numbers. -1 is a niceness like any other, and of our own process the call cannot fail.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, std::process::id()) }
}

fn set(nice: libc::c_int) -> io::Result<()> {
    // SAFETY: plain numbers; 0 is the calling thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_becomes_urgent_where_it_may_and_the_main_thread_does_not() {
        let before = ordinary();
        #[expect(clippy::disallowed_methods, reason = "a thread of its own, which the test must not share")]
        let urgent = std::thread::spawn(|| {
            let became = become_urgent();
            // SAFETY: plain numbers.
            became.map(|()| unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
        });
        match urgent.join().expect("it returns") {
            Ok(nice) => assert_eq!(nice, URGENT),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)), "{error}"),
        }
        assert_eq!(ordinary(), before);
    }
}
