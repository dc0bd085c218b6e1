//! Seats for the supervisor's thread in the groups of version 1.
//!
//! A process that joins a group waits for the kernel's read-copy-update: 8 to 16 ms where nobody has joined one lately,
//! fifteen times what the start of a small program costs. But a thread of ours may sit in a group of version 1 by itself,
//! and what it starts is in that group from the beginning. So another thread, which has time to wait, seats the
//! supervisor's in a group for the next worker after each start. Where no seat is ready, the worker joins by itself: that is
//! quick then, since the kernel is at it anyway. (Memory is charged by the process's leader, which stays where it is.)

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};

use crate::sys::eventfd::EventFd;

/// The thread's name for its own group.
const SEAT: &str = "next-";

/// Seats whoever asked; to be served when its bell has rung.
#[derive(Debug)]
pub struct Usher {
    base: PathBuf,
    /// Thread ids.
    asked_rx: Receiver<u32>,
    ready_tx: Sender<PathBuf>,
    number: u64,
}

/// The side of the thread that is seated.
#[derive(Debug)]
pub struct Seat {
    asked_tx: Sender<u32>,
    ready_rx: Receiver<PathBuf>,
    bell: Arc<EventFd>,
    thread: Option<u32>,
    is_asked: bool,
}

/// At most one question and one answer are under way.
pub fn usher(base: &Path, bell: Arc<EventFd>) -> (Usher, Seat) {
    let (asked_tx, asked_rx) = bounded(1);
    let (ready_tx, ready_rx) = bounded(1);
    let usher = Usher { base: base.to_owned(), asked_rx, ready_tx, number: 0 };
    (usher, Seat { asked_tx, ready_rx, bell, thread: None, is_asked: false })
}

impl Usher {
    /// Blocks for as long as the kernel takes. `false`: nobody will ask any more.
    pub fn serve(&mut self) -> bool {
        loop {
            let thread = match self.asked_rx.try_recv() {
                Ok(thread) => thread,
                Err(error) => return error == TryRecvError::Empty,
            };
            self.number += 1;
            let seat = self.base.join(format!("{SEAT}{}", self.number));
            if let Err(error) = fs::create_dir(&seat).and_then(|()| sit(&seat, thread)) {
                // Nobody is seated any more: each worker joins its group by itself.
                log::warn!("cannot seat the supervisor in {}: {error}; workers start more slowly", seat.display());
                let _ = fs::remove_dir(&seat);
                return false;
            }
            let _ = self.ready_tx.try_send(seat);
        }
    }
}

fn sit(group: &Path, thread: u32) -> io::Result<()> {
    fs::write(group.join("tasks"), thread.to_string())
}

impl Seat {
    /// Asks for the next seat, for the thread that calls this.
    pub fn ask(&mut self) {
        let thread = *self.thread.get_or_insert_with(crate::sys::process::thread_id);
        if !self.is_asked && self.asked_tx.try_send(thread).is_ok() {
            self.is_asked = true;
            self.bell.ring();
        }
    }

    /// The group this thread sits in, if it has been seated since it last asked.
    pub fn take(&mut self) -> Option<PathBuf> {
        let seat = self.ready_rx.try_recv().ok()?;
        self.is_asked = false;
        Some(seat)
    }

    /// The usher is at it.
    pub fn is_being_made(&self) -> bool {
        self.is_asked && self.ready_rx.is_empty()
    }

    /// Leaves for the group where the whole process is, and gives up the seat.
    pub fn leave(&mut self, group: &Path) {
        let Some(thread) = self.thread else { return };
        // The usher may be seating us at this moment; its answer must not come after we have left.
        let seat = if self.is_asked { self.ready_rx.recv_timeout(super::LEAVE_PATIENCE).ok() } else { None };
        if let Err(error) = sit(group, thread) {
            log::debug!("cannot leave the seat for {}: {error}", group.display());
        }
        self.is_asked = false;
        if let Some(seat) = seat {
            let _ = fs::remove_dir(seat);
        }
    }
}
