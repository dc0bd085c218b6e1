//! Limits of this process: getrlimit(2).

use std::io;

/// Makes the soft limit of open descriptors at least this, as far as the hard limit lets it. Returns what it is then.
pub fn raise_descriptors(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
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
