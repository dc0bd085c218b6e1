//! The allocator, kept small: mallopt(3), malloc_trim(3).

/// One arena for all threads, and freed memory goes back to the system soon. A daemon that waits most of its life gains
/// nothing from an arena a thread.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain numbers; called before there are threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Gives back what is free.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers.
    unsafe {
        libc::malloc_trim(0);
    }
}
