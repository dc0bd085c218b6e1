//! Signals as flags and a bell: a handler does nothing else.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

/// What somebody wants of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Stop,
    Reload,
    ReopenLog,
    LogState,
}

const ALL: [(i32, Signal); 5] = [
    (SIGTERM, Signal::Stop),
    (SIGINT, Signal::Stop),
    (SIGHUP, Signal::Reload),
    (SIGUSR1, Signal::ReopenLog),
    (SIGUSR2, Signal::LogState),
];

#[derive(Debug)]
pub struct Signals {
    flags: Vec<(Signal, Arc<AtomicBool>)>,
    bell: UnixStream,
}

impl Signals {
    pub fn register() -> io::Result<Signals> {
        let (bell, ringer) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        let mut flags = Vec::new();
        for (number, signal) in ALL {
            let flag = Arc::new(AtomicBool::new(false));
            // INVARIANT: the flag first. Handlers run in the order they were registered, and the bell may be heard at
            // once.
            signal_hook::flag::register(number, flag.clone())?;
            signal_hook::low_level::pipe::register(number, OwnedFd::from(ringer.try_clone()?))?;
            flags.push((signal, flag));
        }
        Ok(Signals { flags, bell })
    }

    /// Readable when a signal has come.
    pub fn bell(&self) -> &UnixStream {
        &self.bell
    }

    /// What has come since the last look.
    pub fn take(&self) -> Vec<Signal> {
        let mut buffer = [0_u8; 64];
        while std::io::Read::read(&mut &self.bell, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
        self.flags.iter().filter(|(_, flag)| flag.swap(false, Ordering::AcqRel)).map(|(signal, _)| *signal).collect()
    }
}
