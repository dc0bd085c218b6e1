//! Real processes under a real supervisor. Agents are shell scripts; waiting is for reports, never for time.

pub(crate) mod bench;
mod oneshot;
mod persistent;
mod trees;
