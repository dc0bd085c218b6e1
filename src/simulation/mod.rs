//! The daemon's policy in a world of its own: virtual time, simulated processes and memory, chance from one seed.
//!
//! Owns the stand-ins for everything around the core: a scheduler, a spool, a monitor, workers and clients. May import
//! core and std's collections. Must never do I/O, read a clock or know what a configuration file or a screen is. Random
//! walks of the tests and `kurultaictl simulate` run on it; the daemon has no use for it, and pays nothing for it.

pub mod agenda;
pub mod desk;
pub mod dice;
pub mod figures;
pub mod fleet;
pub mod load;
pub mod run;
pub mod spool;
#[cfg(test)]
mod tests;
