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

/// Bytes of the heap that are in use, and bytes the allocator has from the system: mallinfo2(3). Zeros where the C library
/// has no such call.
pub fn heap() -> (u64, u64) {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no pointers; the structure is returned by value.
        let info = unsafe { libc::mallinfo2() };
        ((info.uordblks + info.hblkhd) as u64, (info.arena + info.hblkhd) as u64)
    }
    #[cfg(not(target_env = "gnu"))]
    (0, 0)
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
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(|line| clean_text(line, &program.to_string_lossy())) {
        // SAFETY: a mapping of our own program file that was never written to (see `clean_text`): the kernel reads the
        // same bytes again when they are touched.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of a mapping of the program's text or constants (proc(5), /proc/PID/maps). Not the one the linker
/// writes relocations to before it makes it read-only: its pages are in no file.
fn clean_text(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    let is_text = permissions == "r-xp";
    let is_constants = permissions == "r--p" && offset.bytes().all(|digit| digit == b'0');
    if path != program || !(is_text || is_constants) {
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
    fn text_and_constants_of_the_program_are_clean_and_nothing_else_is() {
        let found = |line: &str| clean_text(line, "/usr/sbin/kurultaid");
        assert_eq!(found("1000-3000 r-xp 00052000 fe:00 5333027    /usr/sbin/kurultaid"), Some((0x1000, 0x2000)));
        assert_eq!(found("1000-2000 r--p 00000000 fe:00 5333027 /usr/sbin/kurultaid"), Some((0x1000, 0x1000)));
        for line in [
            "1000-2000 r--p 001a4000 fe:00 5333027 /usr/sbin/kurultaid",
            "1000-2000 rw-p 001ae000 fe:00 5333027 /usr/sbin/kurultaid",
            "1000-2000 r-xp 00052000 fe:00 1 /usr/lib/x86_64-linux-gnu/libc.so.6",
            "1000-2000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }

    #[test]
    fn a_process_goes_on_after_it_settled() {
        settle();
        assert_eq!("after".to_string().len(), 5);
    }
}
