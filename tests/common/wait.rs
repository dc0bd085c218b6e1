//! Conditions to wait for, with one generous limit: a test that fails says what did not come true.

use std::time::Duration;

/// Long enough for the slowest machine; nothing that works takes a noticeable part of it.
pub const LIMIT: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(5);

/// What `probe` finds, as soon as it finds something.
#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let mut waited = Duration::ZERO;
    while waited < LIMIT {
        if let Some(found) = probe() {
            return found;
        }
        pause();
        waited += PAUSE;
    }
    panic!("{what}: not within {} s", LIMIT.as_secs())
}

/// Waits until it is true.
#[track_caller]
pub fn soon(what: &str, mut probe: impl FnMut() -> bool) {
    until(what, || probe().then_some(()));
}

/// Looks again and again for what must not happen, until something else is true.
#[track_caller]
pub fn never_until<T: std::fmt::Debug>(
    what: &str,
    mut happens: impl FnMut() -> Option<T>,
    mut is_over: impl FnMut() -> bool,
) {
    soon("the end of the observation", || {
        if let Some(found) = happens() {
            panic!("{what}: {found:?}");
        }
        is_over()
    });
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a condition of another process")]
fn pause() {
    std::thread::sleep(PAUSE);
}
