//! The promise that nothing a worker started outlives the daemon, not even a daemon killed with KILL.
//!
//! A worker dies with the daemon (PR_SET_PDEATHSIG), but its own children do not inherit that. So every process of a
//! worker's tree bears a mark ([`crate::sys::mark`]), and the guardian, a process forked at start, sleeps in a read of a
//! pipe whose other end only the daemon holds. When that ends, however the daemon ended, the guardian kills whatever
//! bears the mark, and ends itself. It ignores the signals a terminal or a service manager sends round.

use std::io;

use crate::sys::guard::Guard;
use crate::sys::mark;

/// Keep it until all workers are gone; dropping it ends the guardian and waits for that.
#[derive(Debug)]
pub struct Guardian {
    instance: mark::Instance,
    guard: Guard,
}

/// One run of the daemon, for [`super::SupervisorSettings`].
#[derive(Debug, Clone, Copy)]
pub struct Instance {
    pub(super) mark: mark::Instance,
    pub(super) guardian: Option<u32>,
}

/// Forks the guardian. Call it before the first thread starts and before much memory is in use: the guardian keeps the
/// pages the daemon has by then.
pub fn start() -> io::Result<Guardian> {
    let instance = mark::Instance::random()?;
    Ok(Guardian { instance, guard: Guard::fork(instance)? })
}

impl Guardian {
    pub fn pid(&self) -> u32 {
        self.guard.pid()
    }

    pub fn instance(&self) -> Instance {
        Instance { mark: self.instance, guardian: Some(self.pid()) }
    }
}

impl Instance {
    /// What all processes of its workers bear.
    pub fn mark(&self) -> mark::Instance {
        self.mark
    }

    /// Without a guardian: grandchildren that left their session outlive a daemon that is killed.
    pub fn unguarded() -> io::Result<Instance> {
        Ok(Instance { mark: mark::Instance::random()?, guardian: None })
    }
}
