//! What a daemon that was killed still holds: its addresses and its state directory.
//!
//! A child on its way from clone(2) to the program it is to become has copies of all descriptors, and nobody can tell it
//! that its daemon is gone. It gets there, or ends, within milliseconds; until then, what it holds looks to be in use.

use std::time::Duration;

use crossbeam::channel::after;

const PAUSE: Duration = Duration::from_millis(20);

/// 2 s: a thousand times what it takes, on a host that swaps. A daemon that lives is told from it by then.
const ATTEMPTS: u32 = 100;

/// Makes the attempt again while `is_in_use` says so of its error, for a moment.
pub fn outlast<T, E>(is_in_use: impl Fn(&E) -> bool, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if is_in_use(&error) => {
                let _ = after(PAUSE).recv();
            }
            done => return done,
        }
    }
    attempt()
}
