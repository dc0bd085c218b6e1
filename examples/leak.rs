//! A program that leaks: it takes fresh memory at a steady rate up to a total, then holds it until it is killed.
//!
//! `leak MIB_PER_SECOND TOTAL_MIB`. It is what limits are tested with: `[agents.leak] command = ["leak", "1024", "4096"]`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Written in steps of this much, and late steps are caught up with: the rate holds however long a step takes.
const STEP: usize = 256 * 1024;
const PAGE: usize = 4096;

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let &[rate, total] = &numbers[..] else {
        eprintln!("usage: leak MIB_PER_SECOND TOTAL_MIB");
        return ExitCode::from(2);
    };
    leak(rate.max(1) << 20, total << 20);
    loop {
        std::thread::park();
    }
}

#[expect(clippy::disallowed_methods, reason = "a program of its own: it has no sys::clock and nothing to wait for")]
fn leak(bytes_per_second: u64, total: u64) {
    let started = Instant::now();
    let mut taken = 0;
    while taken < total {
        let mut step = Vec::<u8>::with_capacity(STEP);
        let room = step.spare_capacity_mut();
        // One byte a page: it is the page that counts.
        for byte in room.iter_mut().step_by(PAGE) {
            byte.write(1);
        }
        std::mem::forget(step);
        taken += STEP as u64;
        let due = started + Duration::from_secs_f64(taken as f64 / bytes_per_second as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
