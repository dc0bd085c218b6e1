//! Every decision of the daemon, as a pure state machine: `handle(now, event)` gives actions, `next_deadline()` says
//! when it wants to be asked again.
//!
//! Owns the rules: queue, pool, governor, breakers, schedules, retries. May import std's collections; time comes in as
//! a value. Must never know a clock, files, sockets, channels, pids' meaning, or JSON. The same code runs in the daemon
//! and in the simulation tests.

pub mod ids;
pub mod limits;
pub mod order;
pub mod settings;
pub mod task;
