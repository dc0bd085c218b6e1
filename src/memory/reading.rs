//! One figure each from /proc, through descriptors that stay open (proc(5)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sys::proc_self::page_size;

/// Memory of one process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    pub rss: u64,
    /// The part that is shared with others: program text and mapped files.
    pub shared: u64,
}

/// `/proc/PID/statm`, kept open: it goes on meaning the process it was opened for, and reads as an error once that has
/// been reaped.
#[derive(Debug)]
pub struct Statm {
    file: File,
    page_size: u64,
}

impl Statm {
    pub fn open(pid: Option<u32>) -> io::Result<Statm> {
        let process = pid.map_or("self".to_string(), |pid| pid.to_string());
        Ok(Statm { file: File::open(format!("/proc/{process}/statm"))?, page_size: page_size() })
    }

    pub fn read(&self) -> io::Result<Resident> {
        let mut buffer = [0_u8; 128];
        let text = read_text(&self.file, &mut buffer)?;
        let mut pages = text.split(' ').skip(1).map(|field| field.trim().parse::<u64>().unwrap_or(0));
        let mut next = || pages.next().unwrap_or(0) * self.page_size;
        Ok(Resident { rss: next(), shared: next() })
    }
}

/// Memory of the host, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Host {
    pub total: u64,
    /// `MemAvailable`: what can be had without swapping, page cache included.
    pub available: u64,
    pub swap_free: u64,
}

#[derive(Debug)]
pub struct Meminfo {
    file: File,
}

impl Meminfo {
    pub fn open() -> io::Result<Meminfo> {
        Ok(Meminfo { file: File::open("/proc/meminfo")? })
    }

    pub fn read(&self) -> io::Result<Host> {
        // Why: all three lines are among the first twenty.
        let mut buffer = [0_u8; 1024];
        Ok(parse_meminfo(read_text(&self.file, &mut buffer)?))
    }
}

fn parse_meminfo(text: &str) -> Host {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    Host { total: bytes("MemTotal:"), available: bytes("MemAvailable:"), swap_free: bytes("SwapFree:") }
}

/// What the host has in all; `None` where /proc does not say.
pub fn host_memory_bytes() -> Option<u64> {
    let host = Meminfo::open().and_then(|meminfo| meminfo.read()).ok()?;
    (host.total > 0).then_some(host.total)
}

/// The file from its beginning, as much as the buffer holds.
pub(super) fn read_text<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let count = file.read_at(buffer, 0)?;
    Ok(std::str::from_utf8(&buffer[..count]).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_by_name_and_in_kibibytes() {
        let text = "MemTotal:       24683512 kB\nMemFree: 1 kB\nMemAvailable:   23000000 kB\nSwapFree:  5 kB\nBuff";
        let expected = Host { total: 24_683_512 * 1024, available: 23_000_000 * 1024, swap_free: 5 * 1024 };
        assert_eq!(parse_meminfo(text), expected);
        assert_eq!(parse_meminfo("nonsense"), Host::default());
    }

    #[test]
    fn this_process_has_memory_and_so_has_the_host() {
        let resident = Statm::open(None).and_then(|statm| statm.read()).expect("readable");
        assert!(resident.rss > resident.shared && resident.shared > 0, "{resident:?}");
        let host = Meminfo::open().and_then(|meminfo| meminfo.read()).expect("readable");
        assert!(host.total > host.available && host.available > resident.rss, "{host:?}");
    }

    #[test]
    fn a_process_that_is_gone_reads_as_an_error() {
        assert!(Statm::open(Some(u32::MAX)).is_err());
    }
}
