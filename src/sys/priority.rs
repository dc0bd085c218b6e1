//! How soon a thread gets a processor: sched(7), setpriority(2).
//!
//! On Linux both are a thread's own.

use std::io;
use std::mem::MaybeUninit;

/// How a thread is put before others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Urgency {
    /// At once, whatever else runs: SCHED_RR at its lowest priority. The kernel leaves ordinary threads a twentieth of each
    /// second (sched_rt_runtime_us) should one of ours ever run wild.
    RealTime,
    /// Soon: niceness -20.
    Nice,
    #[default]
    Ordinary,
}

impl Urgency {
    pub fn name(self) -> &'static str {
        match self {
            Urgency::RealTime => "realtime",
            Urgency::Nice => "nice",
            Urgency::Ordinary => "ordinary",
        }
    }
}

const LOWEST_REAL_TIME: libc::c_int = 1;
const MOST_URGENT_NICE: libc::c_int = -20;

/// The resource limit at which every niceness may be taken: 20 - nice (getrlimit(2), RLIMIT_NICE).
const ANY_NICE: libc::rlim_t = 40;

/// This thread goes before ordinary ones from now on, as far as the host lets it; what it starts does not.
pub fn become_urgent() -> Urgency {
    if set_policy(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, LOWEST_REAL_TIME).is_ok() {
        Urgency::RealTime
    } else if set_nice(MOST_URGENT_NICE).is_ok() {
        Urgency::Nice
    } else {
        Urgency::Ordinary
    }
}

/// What [`become_urgent`] would come to: the kernel is asked on a thread of its own, which ends with the answer.
pub fn possible_urgency() -> Urgency {
    let asked = std::thread::Builder::new().spawn(become_urgent);
    asked.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
}

/// So that threads may still become urgent when the process has another user. What is started loses it again: see
/// [`super::launch`].
pub fn keep_right_to_be_urgent() {
    for (resource, most) in [(libc::RLIMIT_RTPRIO, LOWEST_REAL_TIME as libc::rlim_t), (libc::RLIMIT_NICE, ANY_NICE)] {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: the structure is alive and only read. Where it is refused, so is urgency, which is told elsewhere.
        unsafe { libc::setrlimit(resource, &limit) };
    }
}

/// The niceness of the main thread: what the daemon was started with.
pub fn ordinary() -> libc::c_int {
    // SAFETY: plain numbers. -1 is a niceness like any other, and of our own process the call cannot fail.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, std::process::id()) }
}

fn set_policy(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // SAFETY: all zero is a valid sched_param, whatever fields a libc adds to it.
    let mut parameters = unsafe { MaybeUninit::<libc::sched_param>::zeroed().assume_init() };
    parameters.sched_priority = priority;
    // Raw: musl's own call refuses. SAFETY: the structure is alive and only read; 0 is the calling thread.
    checked(unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const parameters) } as libc::c_int)
}

fn set_nice(nice: libc::c_int) -> io::Result<()> {
    // SAFETY: plain numbers; 0 is the calling thread.
    checked(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policy and niceness of the calling thread.
    fn own() -> (libc::c_int, libc::c_int) {
        // SAFETY: plain numbers.
        unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) }
    }

    #[test]
    fn a_thread_becomes_as_urgent_as_was_foretold_and_no_other_does() {
        let before = own();
        let foretold = possible_urgency();
        assert_eq!(own(), before, "asking changes nothing");
        #[expect(clippy::disallowed_methods, reason = "a thread of its own, which the test must not share")]
        let urgent = std::thread::spawn(|| (become_urgent(), own()));
        let (urgency, (policy, nice)) = urgent.join().expect("it returns");
        assert_eq!(urgency, foretold);
        match urgency {
            Urgency::RealTime => assert_eq!(policy, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK),
            Urgency::Nice => assert_eq!(nice, MOST_URGENT_NICE),
            Urgency::Ordinary => assert_eq!((policy, nice), before),
        }
        assert_eq!(own(), before);
    }
}
