//! The daemon is killed at random moments under load, again and again. What counts is what the agents did, not what the
//! daemon says: nothing accepted is lost, nothing runs twice at once, no process is left.
//!
//! `make crashes ROUNDS=200 SEED=1`: KURULTAI_ROUNDS and KURULTAI_SEED, which is printed.

mod common;
mod crashes {
    pub mod client;
    pub mod load;
    pub mod traces;
}

use common::{repository, shell, soon};
use crashes::load::{Ending, Load};

const ROUNDS: u64 = 12;

/// What a test for every day can afford beside the one above.
const FEWER_ROUNDS: u64 = 4;

#[test]
fn kills_at_random_moments_lose_nothing_and_repeat_nothing_at_once() {
    Load::new("fsync").rounds(ROUNDS, Ending::Killed);
}

#[test]
fn kills_lose_nothing_without_fsync_either() {
    Load::new("none").rounds(FEWER_ROUNDS, Ending::Killed);
}

#[test]
fn a_term_under_load_loses_nothing_and_everything_runs_once() {
    let report = Load::new("fsync").rounds(FEWER_ROUNDS, Ending::Drained);
    assert_eq!(report.crashed, 0, "a drain has the time for what runs: {report:?}");
}

/// The init script as it is, but for the paths that stand at its top.
#[test]
fn a_restart_by_the_init_script_under_load_loses_nothing() {
    let load = Load::new("fsync");
    let home = load.home();
    let script = std::fs::read_to_string(repository().join("scripts/init/kurultaid")).expect("it is there");
    let at = |name: &str| home.path().join(name).display().to_string();
    let script = script
        .replace("DAEMON=/usr/local/sbin/kurultaid", concat!("DAEMON=", env!("CARGO_BIN_EXE_kurultaid")))
        .replace("DAEMON_ARGS=\n", &format!("DAEMON_ARGS='--config {}'\n", at("kurultai.toml")))
        .replace("/var/log/kurultaid.log", &at("log"))
        .replace("/etc/default/kurultaid", &at("default"));
    std::fs::write(at("init"), script).expect("the directory can be written");
    let init = |verb: &str| shell(&format!("sh {} {verb}", at("init"))).expect(0);
    init("start");
    let stop_if_it_fails = Stop(at("init"));
    let ended = load.beside(|accepted| {
        for restarts in 1..=3 {
            soon("there is load", || accepted() >= restarts * 10);
            init("restart");
        }
    });
    init("stop");
    drop(stop_if_it_fails);
    let report = load.count(&ended);
    assert_eq!(report.crashed, 0, "a restart has the time for what runs: {report:?}");
}

/// Ends the daemon of an init script however the test ends.
struct Stop(String);

impl Drop for Stop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("stop: {:?}", shell(&format!("sh {} stop", self.0)));
        }
    }
}
