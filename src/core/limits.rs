//! Bounds that are part of the contract rather than the configuration. Each is stated in the man page named beside it.

/// A payload up to this travels in memory with its task; a larger one stays in the spool. Bounds a queued task's memory.
pub const INLINE_PAYLOAD_MAX: usize = 1024;

/// A result up to this is kept in memory with its task; a larger one stays in the spool.
pub const INLINE_RESULT_MAX: usize = 1024;

/// A payload up to this is put into the TASK message, a larger one is named by path: kurultai-protocol(7).
pub const PAYLOAD_IN_MESSAGE_MAX: usize = 64 * 1024;

/// The longest line either side may send: kurultai-protocol(7).
pub const LINE_MAX: usize = 1024 * 1024;

/// The largest checkpoint: kurultai-protocol(7).
pub const CHECKPOINT_MAX: usize = 256 * 1024;

/// How much of a worker's standard error explains a failure: kurultai-api(7).
pub const STDERR_TAIL_MAX: usize = 2048;

/// The longest `error` or `stack` of a FAILED message that is kept; the rest is cut: kurultai-protocol(7).
pub const ERROR_TEXT_MAX: usize = 8 * 1024;

// A payload, a checkpoint and the other fields together fit one line.
const _: () = assert!(PAYLOAD_IN_MESSAGE_MAX * 6 + CHECKPOINT_MAX < LINE_MAX);
