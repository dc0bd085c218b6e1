#![no_main]
//! What a worker writes to its standard output, from its bytes to the reports.

use std::sync::LazyLock;

use kurultai::spool::Files;
use tempfile::TempDir;

#[path = "../invariants.rs"]
#[allow(dead_code)]
mod invariants;

/// The directory lives as long as the process, and stays behind: libFuzzer ends with _exit(2).
static SPOOL: LazyLock<(TempDir, Files)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let files = Files::open(directory.path(), false).expect("a spool");
    (directory, files)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::protocol(bytes, &SPOOL.1));
