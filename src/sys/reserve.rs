//! A descriptor kept for the day there are none: given up for a moment, it lets a daemon accept a connection only to
//! close it, instead of leaving the client hanging and the listener ready for ever.

use std::fs::File;
use std::io;

#[derive(Debug)]
pub struct ReserveFd(Option<File>);

impl ReserveFd {
    pub fn new() -> io::Result<ReserveFd> {
        File::open("/dev/null").map(|file| ReserveFd(Some(file)))
    }

    /// There is one descriptor more now.
    pub fn give(&mut self) {
        self.0 = None;
    }

    /// As soon as one is to be had, it is kept again.
    pub fn take_back(&mut self) {
        self.0 = File::open("/dev/null").ok();
    }
}
