//! Kurultai: a memory governor for small Linux hosts.
//!
//! `core` decides, the rooms around it do I/O, `daemon` starts the threads and joins them. A room's first lines say
//! what it owns, what it may import and what it must never know.

pub mod config;
pub mod core;
pub mod ctl;
pub mod daemon;
pub mod gateway;
pub mod memory;
pub mod metrics;
pub mod scheduler;
pub mod simulation;
pub mod spool;
pub mod sys;
pub mod worker;
