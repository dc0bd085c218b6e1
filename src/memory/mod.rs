//! Reading how much memory there is and who has it.
//!
//! Owns /proc and the sampling thread. May import core's types and libc through `sys`. Must never know who will be
//! preempted.

mod monitor;
mod reading;

pub use monitor::{Message, Monitor, MonitorSettings};
pub use reading::host_memory_bytes;
