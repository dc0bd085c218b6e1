//! Limits of this process: getrlimit(2), and what happens at them.

use std::io;

/// A file at its limit of size (RLIMIT_FSIZE) is an error of the write, EFBIG, and not the end of the process by SIGXFSZ.
/// Programs that are launched have the signal's default again.
pub fn outlive_file_size() {
    // SAFETY: SIG_IGN is no handler that could do anything.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The soft limit of open descriptors.
pub fn descriptors() -> io::Result<u64> {
    Ok(read_descriptors()?.rlim_cur)
}

/// Makes the soft limit of open descriptors at least this, as far as the hard limit lets it. Returns what it is then.
pub fn raise_descriptors(wanted: u64) -> io::Result<u64> {
    let mut limit = read_descriptors()?;
    let raised = (wanted as libc::rlim_t).min(limit.rlim_max);
    if limit.rlim_cur < raised {
        limit.rlim_cur = raised;
        // SAFETY: `limit` outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

fn read_descriptors() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { Ok(limit) } else { Err(io::Error::last_os_error()) }
}
