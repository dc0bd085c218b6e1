//! `kurultaictl simulate` as a person runs it: what it prints, what it refuses, and that more or less of something has
//! the effect it should have.

mod common;

use common::{Daemon, Home, Ran};
use serde_json::Value;

const CONFIG: &str = "\
[memory]
limit_mb = LIMIT
[queue]
max_depth = 10
priority_limits = { normal = 10 }
[workers]
max = WORKERS
max_restarts_per_hour = 3600
[agents.a]
command = [\"a\"]
mode = \"persistent\"
";

const PROFILE: &str = "\
[[phases]]
name = \"day\"
duration_s = 120
agents = AGENTS
interval_s = 10
[agents.a]
run_s = { min = 2, max = 6 }
peak_mb = 100
checkpoint = true
";

/// Files of one simulation.
struct Case {
    home: Home,
    config: String,
    profile: String,
}

impl Case {
    fn new(limit_mb: u64, workers: usize, agents: usize) -> Case {
        let config = CONFIG.replace("LIMIT", &limit_mb.to_string()).replace("WORKERS", &workers.to_string());
        Case::with(&config, &PROFILE.replace("AGENTS", &agents.to_string()))
    }

    fn with(config: &str, profile: &str) -> Case {
        let home = Home::new("");
        let file = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::write(&path, text).expect("it can be written");
            path.to_str().expect("text").to_owned()
        };
        let (config, profile) = (file("c.toml", config), file("p.toml", profile));
        Case { home, config, profile }
    }

    fn run(&self, more: &[&str]) -> Ran {
        let arguments = ["simulate", "--config", &self.config, "--profile", &self.profile];
        self.home.ctl(&[&arguments[..], more].concat(), b"")
    }

    fn json(&self) -> Value {
        self.run(&["--json"]).expect(0).json()
    }
}

fn count(object: &Value, name: &str) -> u64 {
    object["total"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", object["total"]))
}

#[test]
fn a_load_that_fits_prints_exactly_this() {
    let profile = "[[phases]]\nname = \"calm\"\nduration_s = 100\nagents = 1\ninterval_s = 10\n\
                   [agents.a]\nrun_s = 2\npeak_mb = 60\nready_s = 0.5\n";
    let config = "[workers]\nidle_timeout_s = 60\n[agents.a]\ncommand = [\"a\"]\nmode = \"persistent\"\n";
    let case = Case::with(config, profile);
    let text = case.run(&[]).expect(0).text();
    let (head, rest) = text.split_once('\n').expect("a first line");
    assert_eq!(head, format!("1m40s of {} on {}, seed 1: over after 1m40s", case.profile, case.config));
    let expected = "
TASKS  SENT  ACCEPTED  REFUSED  DONE  FAILED  PREEMPTED  KILLED  RETRIED
a        10        10        0    10       0          0       0        0

SECONDS   P50   P95   P99   MAX
waiting  0.00  0.50  0.50  0.50
running  2.00  2.00  2.00  2.00
in all   2.00  2.50  2.50  2.50

peak       63.0 of 1024 MiB, 6.2 %
workers    1 started
";
    assert_eq!(rest, expected);
}

#[test]
fn the_same_seed_prints_the_same_and_another_does_not() {
    let case = Case::new(512, 2, 5);
    let [first, again, other] = ["7", "7", "8"].map(|seed| case.run(&["--seed", seed, "--csv"]).expect(0).text());
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(first.lines().count() > 120, "a line a second: {}", first.lines().count());
    let columns = first.lines().next().expect("a head").split(',').count();
    assert!(first.lines().all(|line| line.split(',').count() == columns), "{first}");
}

#[test]
fn more_workers_refuse_no_more() {
    let refused = [1, 2, 4, 8].map(|workers| count(&Case::new(4096, workers, 20).json(), "refused"));
    assert!(refused.is_sorted_by(|fewer, more| fewer >= more) && refused[0] > refused[3], "{refused:?}");
}

#[test]
fn a_tighter_limit_preempts_and_then_kills() {
    let roomy = Case::new(2048, 4, 10).json();
    let tight = Case::new(220, 4, 10).json();
    // Without checkpoints there is nothing to preempt.
    let config = CONFIG.replace("LIMIT", "220").replace("WORKERS", "4");
    let profile = PROFILE.replace("AGENTS", "10").replace("checkpoint = true", "checkpoint = false");
    let stubborn = Case::with(&config, &profile).json();
    // What grows on after a preemption until it is an emergency is killed.
    for (object, preempts, kills) in [(&roomy, false, false), (&tight, true, true), (&stubborn, false, true)] {
        let did = (count(object, "preempted") > 0, count(object, "killed") > 0);
        let has_incidents = object["memory"]["incidents"].as_u64() > Some(0);
        assert_eq!((did, has_incidents), ((preempts, kills), preempts || kills), "{}", object["total"]);
        assert_eq!(count(object, "accepted"), count(object, "completed") + count(object, "failed"));
        assert_eq!(count(object, "submitted"), count(object, "accepted") + count(object, "refused"));
    }
    assert!(count(&tight, "killed") < count(&stubborn, "killed"), "{} {}", tight["total"], stubborn["total"]);
    assert!(count(&tight, "completed") < count(&roomy, "completed"), "{}", tight["total"]);
}

#[test]
fn the_profiles_that_are_shipped_go_with_the_configuration_that_is() {
    let home = Home::new("");
    let root = env!("CARGO_MANIFEST_DIR");
    let config = format!("{root}/conf/dev.toml");
    for (name, submitted, lasts_s) in [("steady", 20, 600.0), ("peak", 3000, 300.0), ("spike", 12_000, 60.0)] {
        let profile = format!("{root}/conf/profiles/{name}.toml");
        let ran = home.ctl(&["simulate", "--config", &config, "--profile", &profile, "--json"], b"");
        let object = ran.expect(0).json();
        assert_eq!((count(&object, "submitted"), object["durationS"].as_f64()), (submitted, Some(lasts_s)), "{name}");
        assert_eq!(count(&object, "unfinished"), 0, "{name}");
    }
}

#[test]
fn the_manual_s_example_can_be_run() {
    let page = include_str!("../man/kurultai-simulate.7");
    let block = |before: &str| {
        let (_, rest) = page.split_once(before).expect("the sentence before it");
        let (_, rest) = rest.split_once(".Bd -literal\n").expect("a block");
        rest.split_once("\n.Ed").expect("its end").0.to_owned()
    };
    let case = Case::with(&block(".Pa kurultai.toml :"), &block(".Pa monday.toml :"));
    let printed = case.run(&[]).expect(0).text();
    let shown = block("The answer, on a terminal");
    for line in ["TASKS ", "SECONDS ", "peak ", "host ", "workers ", "levels "] {
        let has = |text: &str| text.lines().any(|other| other.starts_with(line));
        assert!(has(&printed) && has(&shown), "{line}\n{printed}\n{shown}");
    }
}

#[test]
fn mistakes_are_told_with_their_line_and_cost_status_1() {
    let case = Case::with(CONFIG, PROFILE);
    let config = case.run(&[]).expect(1).stderr;
    assert!(config.contains("c.toml:2: column 12: "), "{config}");
    let case = Case::with("[agents.b]\ncommand = [\"b\"]\n", &PROFILE.replace("AGENTS", "0.5"));
    let profile = case.run(&[]).expect(1).stderr;
    for part in ["p.toml:4: phases.day.agents: ", "p.toml:6: agents.a: the configuration has no such agent; "] {
        assert!(profile.contains(part), "{part}: {profile}");
    }
    let missing = case.home.ctl(&["simulate", "--config", &case.config, "--profile", "/nowhere/p.toml"], b"");
    assert!(missing.expect(1).stderr.contains("/nowhere/p.toml: cannot be read"), "the file is named");
}

#[test]
fn what_does_not_go_together_is_a_mistake_of_usage() {
    let case = Case::new(512, 2, 1);
    case.run(&["--csv", "--json"]).expect(2);
    case.run(&["--record"]).expect(2);
    assert!(case.home.ctl(&["simulate"], b"").expect(2).stderr.contains("--profile"), "it says what is missing");
}

#[test]
fn a_profile_recorded_from_a_daemon_can_be_simulated() {
    let fragment = "[agents.cat]\ncommand = [\"cat\"]\n";
    let daemon = Daemon::start(fragment);
    let empty = daemon.home().ctl(&["simulate", "--record"], b"").expect(1).stderr;
    assert!(empty.contains("no task that has run"), "{empty}");
    for _ in 0..5 {
        daemon.home().ctl(&["submit", "cat", "-", "--wait", "--priority", "high"], b"x").expect(0);
    }
    let profile = daemon.home().ctl(&["simulate", "--record"], b"").expect(0).text();
    assert!(profile.contains("[agents.cat]") && profile.contains("priorities = { high = 5 }"), "{profile}");
    daemon.stop();
    let case = Case::with(fragment, &profile);
    assert!(count(&case.json(), "completed") > 0, "{profile}");
}
