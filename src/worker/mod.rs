//! Every child process: started, heard, told, signalled and reaped by one supervisor thread over poll(2).
//!
//! Owns spawn, limits, pipes, the worker protocol, kill and reap. May import core's types, the spool's files,
//! the workers' cgroups and `sys`.
//! Must never know the order of the queue, why an order was given, or HTTP.
//!
//! A worker leads a session of its own and dies with the supervisor's thread. When it ends, its process group is
//! killed before it is reaped, and then, one generation after another, what is left of its tree, which the daemon
//! adopts ([`tree`]). What a daemon killed with KILL leaves behind is the [`guardian`]'s.

pub mod guardian;

mod compose;
#[doc(hidden)]
pub mod fuzzing;
mod lines;
mod message;
mod outbox;
mod process;
mod result;
mod room;
mod session;
mod spawn;
mod stderr;
mod supervisor;
mod text;
pub(crate) mod tree;

#[cfg(test)]
pub(crate) mod tests;

pub use spawn::programs_of;
pub use supervisor::{QueueFull, Supervisor, SupervisorHandle, SupervisorSettings, supervisor};
