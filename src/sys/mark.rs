//! A mark that every process of a worker's tree bears, whatever it does to its session, group, parent or environment.
//!
//! The mark is the hard limit of RLIMIT_RSS. It is inherited over fork and exec, every process may read it of every
//! other one in /proc/PID/limits, and the kernel has made nothing of it since Linux 2.4.30 (getrlimit(2)). Values are
//! so high that a program which does look (GNU sort) takes it for "no limit". Only a program that changes this very
//! limit loses the mark; its session and process group still tell whose it was, unless it left those too.

use std::io;

/// 2^62: beyond any memory, below RLIM_INFINITY.
#[cfg(target_pointer_width = "64")]
const BASE: u64 = 1 << 62;
#[cfg(target_pointer_width = "64")]
const WORKER_BITS: u32 = 20;

/// The kernel's limits are one machine word: the bits there are must do.
#[cfg(not(target_pointer_width = "64"))]
const BASE: u64 = 1 << 30;
#[cfg(not(target_pointer_width = "64"))]
const WORKER_BITS: u32 = 12;

const WORKER_MASK: u64 = (1 << WORKER_BITS) - 1;
const INSTANCE_MASK: u64 = (BASE - 1) & !WORKER_MASK;

/// One run of the daemon, as the marks of its workers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance(u64);

/// Whose a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The low bits of the worker's number, as in [`Instance::mark`].
    Worker(u64),
    /// A worker of another daemon.
    Stranger,
    Unmarked,
}

impl Instance {
    /// A new one, told from others by random bits: getrandom(2).
    pub fn random() -> io::Result<Instance> {
        let mut bytes = [0; 8];
        // SAFETY: the pointer and length are those of a live array.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got != bytes.len() as isize {
            return Err(io::Error::last_os_error());
        }
        Ok(Instance(u64::from_ne_bytes(bytes) & INSTANCE_MASK))
    }

    pub fn mark(self, worker: u64) -> u64 {
        BASE | self.0 | (worker & WORKER_MASK)
    }

    /// Whether a mark's worker is this one. Numbers a million apart look alike; no two such workers live at once.
    pub fn is_worker(owner: u64, worker: u64) -> bool {
        owner == worker & WORKER_MASK
    }

    /// Reads the mark out of /proc/PID/limits (proc_pid_limits(5)). Allocates nothing.
    pub fn owner(self, limits: &[u8]) -> Owner {
        match hard_rss_limit(limits) {
            Some(limit) if limit & !(BASE - 1) != BASE => Owner::Unmarked,
            Some(limit) if limit & INSTANCE_MASK == self.0 => Owner::Worker(limit & WORKER_MASK),
            Some(_) => Owner::Stranger,
            None => Owner::Unmarked,
        }
    }
}

/// `None` for `unlimited`, and for text that is no such file.
fn hard_rss_limit(limits: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"Max resident set";
    let line = limits.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(NAME))?;
    let hard = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1)?;
    if hard.is_empty() {
        return None;
    }
    hard.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(hard: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max cpu time              unlimited            unlimited            seconds   \n\
             Max resident set          {hard:<21}{hard:<21}bytes     \n\
             Max processes             96000                96000                processes \n"
        )
    }

    #[test]
    fn a_mark_tells_the_worker_and_the_daemon() {
        let (ours, theirs) = (Instance::random().unwrap(), Instance::random().unwrap());
        assert_ne!(ours, theirs);
        let marked = limits(&ours.mark(77).to_string());
        assert_eq!(ours.owner(marked.as_bytes()), Owner::Worker(77));
        assert_eq!(theirs.owner(marked.as_bytes()), Owner::Stranger);
        assert!(Instance::is_worker(77, 77) && !Instance::is_worker(77, 78));
        for unmarked in ["unlimited", "0", "1073741825000", "-4", "99999999999999999999999"] {
            assert_eq!(ours.owner(limits(unmarked).as_bytes()), Owner::Unmarked, "{unmarked}");
        }
        for broken in ["", "Max resident set", "Max resident set unlimited"] {
            assert_eq!(ours.owner(broken.as_bytes()), Owner::Unmarked, "{broken}");
        }
    }

    #[test]
    fn this_very_process_is_unmarked() {
        let text = std::fs::read("/proc/self/limits").unwrap();
        assert_eq!(Instance::random().unwrap().owner(&text), Owner::Unmarked);
    }
}
