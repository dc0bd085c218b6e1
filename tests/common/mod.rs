//! What the tests of the real programs share: a daemon in a directory of its own, a client that says exactly what it is
//! told to, and conditions to wait for.
//!
//! Every test has its own daemon, so all of them can run at once.

#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

mod config;
mod daemon;
mod disk;
mod http;
mod memory;
mod outside;
mod process;
mod wait;

pub use config::{agent, bad_agent, repository, worker};
pub use daemon::{Daemon, Home};
pub use disk::{FailingDisk, SmallDisk, limit, mount, text};
pub use http::{Connection, Request, Response, free_port};
pub use memory::{Ballast, MIB, Memory, ballast, leak, metric};
pub use outside::{Ran, command, run, run_command, shell};
pub use process::{Footprint, children, descendants, is_alive, signal, start_time};
pub use wait::{LIMIT, never_until, soon, until};
