//! Durable tasks: what was accepted, with payloads, checkpoints and results, as files an operator can look at.
//!
//! Owns the state directory: its lock, journal, files, replay and retention. May import core's types. Must never know
//! HTTP or threads.

mod files;

pub use files::{Files, PayloadWriter};
