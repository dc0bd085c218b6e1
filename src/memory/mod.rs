//! Reading how much memory there is and who has it, and the cgroups that hold workers to their limits.
//!
//! Owns /proc's memory figures, cgroups, PSI and the sampling thread. May import core's types, `worker::tree` (who belongs
//! to a worker) and libc through `sys`. Must never know who will be preempted.

mod activity;
pub mod cgroup;
mod monitor;
mod pace;
mod reading;
mod stall;
mod tell;
#[cfg(test)]
mod tests;
mod tree;

pub use activity::Activity;
pub use monitor::{Message, Monitor, MonitorHandle, MonitorSettings, Sources, Surroundings};
pub use reading::host_memory_bytes;
