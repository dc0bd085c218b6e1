//! A request on its way: what is known of it while it waits for the scheduler's word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::Sender;

use super::body::UNWANTED_MAX;
use super::conn::Conn;
use super::range::Conditions;
use super::routes::Part;
use super::upload::Upload;
use crate::metrics::Route;
use crate::scheduler::call::Follow;
use crate::sys::clock::wall_ms;
use crate::sys::eventfd::EventFd;

/// A request that has been understood and waits for the scheduler's word.
#[derive(Debug)]
pub struct Exchange {
    pub conn: Conn,
    pub plan: Plan,
    pub route: Route,
    pub is_head: bool,
    pub is_http_1_0: bool,
    pub keeps_alive: bool,
    pub request_id: Arc<str>,
    pub started: Duration,
    /// Whatever is wrong with the request, its body is out of the way.
    pub is_body_read: bool,
}

impl Exchange {
    /// Nobody wants the body, none of which has been read.
    pub fn decline_body(&mut self, length: u64, wants_leave: bool) {
        self.is_body_read = true;
        if length > 0 && wants_leave {
            // A client that waits for 100 Continue has not sent it, and may or may not.
            self.cut_short();
        } else {
            self.skip(length);
        }
    }

    /// So much of the body is left that nobody wants: the door gets it out of the way if it is little.
    pub fn skip(&mut self, rest: u64) {
        if rest > UNWANTED_MAX || (rest > 0 && !self.keeps_alive) {
            self.cut_short();
        } else {
            self.conn.skip(rest);
        }
    }

    /// The answer comes before the whole of the request: the connection ends with it.
    pub fn cut_short(&mut self) {
        self.keeps_alive = false;
        self.conn.is_cut_short = true;
    }
}

/// What the answer is to be made into.
#[derive(Debug)]
pub enum Plan {
    TaskObject,
    /// The result itself, for a raw submission with `wait`.
    ResultItself,
    Result(Conditions),
    /// Whether the body of a submission is worth reading.
    Upload(Box<Upload>),
    Status(Part),
    Metrics,
    Page,
    Follow(Follow),
    /// The outcome of a guarded call: there is nothing to say but that it was taken.
    Report,
    Plain,
}

/// Names for requests whose clients gave none: unique in this daemon's life, and hardly repeated by the next.
pub struct RequestIds {
    start_ms: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub fn new() -> RequestIds {
        RequestIds { start_ms: wall_ms(), next: AtomicU64::new(1) }
    }

    pub fn take(&self) -> Arc<str> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::from(format!("r-{:x}-{number}", self.start_ms & 0xFFFF_FFFF))
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        RequestIds::new()
    }
}

/// The way to the main thread: a bounded queue and a bell.
pub struct CommandPort {
    pub tx: Sender<Command>,
    pub bell: Arc<EventFd>,
}

/// What the gateway asks of the daemon's main thread.
pub enum Command {
    /// Answered with [`Answer::Reloaded`].
    Reload(Box<Exchange>),
    /// Answered with [`Answer::Draining`].
    Drain(Box<Exchange>),
}
