//! The journal, and what stands where files and directories of the spool have to be.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::state::*;
use crate::common::Home;

/// A directory with one finished task, whose result is a file, and three that wait; their ids.
struct Spool {
    home: Home,
    done: String,
    queued: Vec<String>,
}

impl Spool {
    fn make() -> Spool {
        let daemon = home("").start();
        let done = daemon.run_task("large", json!(1))["id"].as_str().expect("an id").to_owned();
        block(&daemon);
        let queued = (0..3).map(|_| daemon.accept("effects", json!({}))).collect();
        Spool { home: daemon.kill(), done, queued }
    }
}

/// What happens to the journal.
struct Case {
    name: &'static str,
    ruin: fn(&Path),
    /// What is said of it.
    reason: &'static str,
    /// Which of the waiting tasks are known after it.
    left: &'static [usize],
    knows_done: bool,
}

const ALL: &[usize] = &[0, 1, 2];

fn lines(journal: &Path, change: impl FnOnce(&mut Vec<String>)) {
    rewrite(journal, |text| {
        let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        change(&mut lines);
        lines.concat()
    });
}

/// Three tasks that wait were accepted last.
const CASES: [Case; 9] = [
    Case {
        name: "a garbled line in the middle",
        ruin: |path| {
            lines(path, |lines| {
                let place = lines.len() - 2;
                lines[place] = lines[place].replacen("effects", "effectz", 1);
            })
        },
        reason: "its checksum is not",
        left: &[0, 2],
        knows_done: true,
    },
    Case {
        name: "a torn tail",
        ruin: |path| rewrite(path, |text| text + "0123abcd {\"op\":\"fini"),
        reason: "cut off",
        left: ALL,
        knows_done: true,
    },
    Case {
        name: "zeros at the end",
        ruin: |path| {
            let mut bytes = fs::read(path).expect("there");
            bytes.resize(bytes.len() + 600_000, 0);
            fs::write(path, bytes).expect("written");
        },
        reason: "cut off",
        left: ALL,
        knows_done: true,
    },
    Case {
        name: "zeros in place of the end",
        ruin: |path| {
            let mut bytes = fs::read(path).expect("there");
            let last = bytes.len() - 100;
            bytes[last..].fill(0);
            fs::write(path, bytes).expect("written");
        },
        reason: "cut off",
        left: &[0, 1],
        knows_done: true,
    },
    Case {
        name: "garbage",
        ruin: |path| fs::write(path, (0..20_000_u32).map(|n| (n * n / 7) as u8).collect::<Vec<_>>()).expect("written"),
        reason: "the journal is damaged: line 1:",
        left: &[],
        knows_done: false,
    },
    Case {
        name: "empty",
        ruin: |path| fs::write(path, b"").expect("written"),
        reason: "it does not say where numbers begin",
        left: &[],
        knows_done: false,
    },
    Case {
        name: "missing",
        ruin: |path| fs::remove_file(path).expect("there"),
        reason: "it is missing",
        left: &[],
        knows_done: false,
    },
    Case {
        name: "a directory",
        ruin: |path| (RUINS[5].act)(path),
        reason: "it is no plain file",
        left: &[],
        knows_done: false,
    },
    Case {
        name: "a pipe",
        ruin: |path| (RUINS[7].act)(path),
        reason: "it is no plain file",
        left: &[],
        knows_done: false,
    },
];

#[test]
fn a_damaged_journal_costs_what_was_in_its_damaged_lines_and_is_kept() {
    for Case { name, ruin, reason, left, knows_done } in CASES {
        let Spool { home, done, queued } = Spool::make();
        let state = state(&home);
        let path = state.join("journal");
        ruin(&path);
        let found = look(&path);
        let daemon = home.start();
        let left: Vec<String> = left.iter().map(|place| queued[*place].clone()).collect();
        for id in &left {
            assert_eq!(daemon.finished(id)["state"], "completed", "{name}");
        }
        for id in queued.iter().filter(|id| !left.contains(id)) {
            assert_eq!(daemon.get(&format!("/v1/tasks/{id}")).status, 404, "{name}: nobody knows of it");
        }
        let result = state.join("results").join(&done);
        let mut damaged = vec![("journal", 1)];
        if knows_done {
            assert_eq!(daemon.get(&format!("/v1/tasks/{done}/result")).expect(200).body, vec![0; 100_000], "{name}");
        } else {
            // Without the journal nobody can ask for it; it is there for the operator.
            let kept = aside(&state, "result", &done);
            assert_eq!((kept.len(), result.exists()), (1, false), "{name}");
            damaged.push(("result", 1));
        }
        assert_eq!(
            aside(&state, "journal", "journal"),
            if found.is_some() { vec![found] } else { Vec::new() },
            "{name}"
        );
        assert!(!daemon.logged_text(reason).is_empty(), "{name}: {}", daemon.log_text());
        damage_is_told(&daemon, &damaged);
        // Nobody is given a number that another was given.
        let next = daemon.accept("effects", json!({}));
        let number = |id: &str| id[2..].parse::<u64>().expect("a number");
        let last = number(if knows_done { &queued[2] } else { &done });
        assert!(number(&next) > last, "{name}: {next} after t-{last}");
        daemon.finished(&next);
        let ran: Vec<String> = left.into_iter().chain([next]).collect();
        ran_once(&daemon.kill(), &ran);
    }
}

#[test]
fn whatever_stands_in_the_places_of_the_spool_the_daemon_starts_and_keeps_it() {
    const FILES: [&str; 4] = ["format", "lock", "journal.tmp", "format.tmp"];
    const FOLDERS: [&str; 4] = ["payloads", "checkpoints", "results", "damaged"];
    for Ruin { name, act } in &RUINS {
        let is_stranger = ["a directory", "a link", "a pipe"].contains(name);
        // Of a folder, those that put something else in its place.
        let are_folders_ruined = ["missing", "empty", "a link", "a pipe"].contains(name);
        let Spool { home, done, queued } = Spool::make();
        let state = state(&home);
        let mut stood = Vec::new();
        for place in FOLDERS.iter().filter(|_| are_folders_ruined).chain(&FILES) {
            let path = state.join(place);
            if FOLDERS.contains(place) {
                let _ = fs::remove_dir_all(&path);
            }
            // A number that is larger by one is a format of the future, which is refused.
            if *place == "format" && *name == "garbled" {
                continue;
            }
            if *place != "format" {
                fs::write(&path, b"something").expect("written");
            }
            act(&path);
            let elsewhere = elsewhere(&path);
            stood.push((*place, look(&path), look(&elsewhere), elsewhere));
        }
        let daemon = home.start();
        for id in &queued {
            assert_eq!(daemon.finished(id)["state"], "completed", "{name}");
        }
        let result = daemon.get(&format!("/v1/tasks/{done}/result"));
        assert_eq!(result.status, if are_folders_ruined { 410 } else { 200 }, "{name}");
        let mut damaged = 0;
        for (place, found, other, elsewhere) in stood {
            let is_damage = match place {
                // What is in it does not matter, and it is locked whatever it is.
                "lock" => false,
                // Without its newline it is the same number.
                "format" => !["missing", "truncated"].contains(name),
                // One that is a file was being written when the last daemon ended.
                "journal.tmp" | "format.tmp" => is_stranger,
                _ => *name != "missing",
            };
            // The folder for all of these is made first.
            let kept_as = if place == "damaged" { "damaged.tmp" } else { place };
            assert_eq!(
                aside(&state, "layout", kept_as),
                if is_damage { vec![found] } else { Vec::new() },
                "{name} as {place}"
            );
            assert_eq!(look(&elsewhere), other, "{name} as {place}: what a link leads to is not the daemon's");
            damaged += u64::from(is_damage);
        }
        damage_is_told(&daemon, &[("layout", damaged), ("result", u64::from(are_folders_ruined))]);
        assert_eq!(fs::read_to_string(state.join("format")).expect("there").trim(), "2", "{name}");
        let next = daemon.accept("effects", json!({}));
        daemon.finished(&next);
        assert_eq!(daemon.run_task("large", json!(1))["resultBytes"], 100_000, "{name}");
        let ran: Vec<String> = queued.into_iter().chain([next]).collect();
        ran_once(&daemon.kill(), &ran);
    }
}

#[test]
fn a_directory_of_a_later_format_is_refused_and_let_alone() {
    let Spool { home, .. } = Spool::make();
    let state = state(&home);
    fs::write(state.join("format"), "3\n").expect("written");
    let before = look(&state.join("journal"));
    let ended = crate::common::run_command(&mut home.kurultaid(), b"").expect(71);
    assert!(ended.stderr.contains("has format 3, and this kurultaid knows 2 and older ones"), "{}", ended.stderr);
    assert_eq!((look(&state.join("journal")), state.join("damaged").exists()), (before, false));
}
