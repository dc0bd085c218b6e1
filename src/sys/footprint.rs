//! The daemon's own memory, kept small: mallopt(3), malloc_trim(3), madvise(2).

use std::fs;

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

/// The heap, in bytes: mallinfo2(3). Zeros where the C library has no such call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heap {
    pub used: u64,
    /// What the allocator has from the system, in use or not.
    pub total: u64,
    /// Large blocks beside the heap, each a mapping of its own.
    pub mapped: u64,
}

pub fn heap() -> Heap {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no pointers; the structure is returned by value.
        let info = unsafe { libc::mallinfo2() };
        Heap { used: info.uordblks as u64, total: info.arena as u64, mapped: info.hblkhd as u64 }
    }
    #[cfg(not(target_env = "gnu"))]
    Heap::default()
}

/// Gives back what is free, and the program text that was only needed for what is over: a start, a burst. What is needed
/// again comes back from the page cache, a fault at a time.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(text) {
        // SAFETY: program text that was never written to (see `text`): the kernel reads the same bytes again from the
        // file when they are touched.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of a mapping of program text, our own or a library's (proc(5), /proc/PID/maps). Not of anything
/// else: what the linker writes relocations to is in no file.
fn text(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let is_file = fields.nth(3)?.starts_with('/');
    if permissions != "r-xp" || !is_file {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_programs_and_libraries_is_clean_and_nothing_else_is() {
        assert_eq!(text("1000-3000 r-xp 00052000 fe:00 5333027    /usr/sbin/kurultaid"), Some((0x1000, 0x2000)));
        for line in [
            "1000-2000 r--p 001a4000 fe:00 5333027 /usr/sbin/kurultaid",
            "1000-2000 rw-p 001ae000 fe:00 5333027 /usr/sbin/kurultaid",
            "1000-2000 rwxp 001ae000 fe:00 5333027 /usr/sbin/kurultaid",
            "1000-2000 r-xp 00000000 00:00 0 [vdso]",
            "1000-2000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(text(line), None, "{line}");
        }
    }

    #[test]
    fn a_process_goes_on_after_it_settled() {
        settle();
        assert_eq!("after".to_string().len(), 5);
    }
}
