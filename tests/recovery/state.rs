//! State directories as tests make and look at them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::common::{Daemon, Home, metric, shell, worker};

pub const LONG_MS: u64 = 600_000;

pub const HOUR_MS: i64 = 3_600_000;

/// One worker and a long queue, an agent whose runs can be counted, and some plain ones; `more`: further sections.
pub fn config(home: &Home, more: &str) -> String {
    let effects = format!("env = {{ EFFECTS_FILE = {:?} }}", home.path().join("effects").display().to_string());
    format!(
        "{more}\n[workers]\nmax = 1\n[queue]\nmax_depth = 200\npriority_limits = {{ normal = 200, low = 200 }}\n{}{}\
         [agents.cat]\ncommand = [\"cat\"]\n[agents.large]\ncommand = [\"head\", \"-c\", \"100000\", \"/dev/zero\"]\n",
        worker("effects", "tests/agents/effects", &effects),
        worker("sleeper", "tests/agents/sleeper", "")
    )
}

pub fn home(more: &str) -> Home {
    let home = Home::new("");
    home.configure(&config(&home, more));
    home
}

pub fn state(home: &Home) -> PathBuf {
    home.path().join("state")
}

/// How often each task of the agent `effects` was started and ended, by its id.
pub fn effects(home: &Home) -> BTreeMap<String, (usize, usize)> {
    let mut counts = BTreeMap::<String, (usize, usize)>::new();
    for line in fs::read_to_string(home.path().join("effects")).unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let count = counts.entry(words[1].to_owned()).or_default();
        match words[0] {
            "start" => count.0 += 1,
            _ => count.1 += 1,
        }
    }
    counts
}

/// Each of these has run once, and nothing else has.
#[track_caller]
pub fn ran_once(home: &Home, tasks: &[String]) {
    let expected: BTreeMap<_, _> = tasks.iter().map(|task| (task.clone(), (1, 1))).collect();
    assert_eq!(effects(home), expected);
}

/// A task that keeps the one worker busy until the daemon ends.
#[track_caller]
pub fn block(daemon: &Daemon) -> String {
    let blocker = daemon.accept("sleeper", json!({ "ms": LONG_MS, "steps": 1 }));
    daemon.in_state(&blocker, &["running"]);
    blocker
}

/// A line of the journal, as kurultai-spool(5) has it.
pub fn line(record: &Value) -> String {
    sealed(&record.to_string())
}

pub fn sealed(json: &str) -> String {
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

/// A journal that says the same about another hour: every time in it, in milliseconds since 1970, is moved.
pub fn moved(journal: &str, by_ms: i64) -> String {
    journal
        .lines()
        .map(|line| {
            let mut json = String::new();
            for piece in line[9..].split_inclusive(|byte: char| !byte.is_ascii_digit()) {
                let digits = piece.trim_end_matches(|byte: char| !byte.is_ascii_digit());
                // No other number of a journal is so long.
                match digits.parse::<i64>() {
                    Ok(ms) if digits.len() == 13 => {
                        json.push_str(&(ms + by_ms).to_string());
                        json.push_str(&piece[13..]);
                    }
                    Ok(_) | Err(_) => json.push_str(piece),
                }
            }
            sealed(&json)
        })
        .collect()
}

/// The times of a journal, as [`moved`] finds them.
pub fn times(journal: &str) -> Vec<i64> {
    let numbers = journal.split(|byte: char| !byte.is_ascii_digit());
    numbers.filter(|digits| digits.len() == 13).filter_map(|digits| digits.parse().ok()).collect()
}

pub fn now_ms() -> i64 {
    UNIX_EPOCH.elapsed().expect("it is later than 1970").as_millis() as i64
}

pub fn rewrite(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).expect("it is there");
    fs::write(path, change(text)).expect("it can be written");
}

/// Where a link in its place leads to.
pub fn elsewhere(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}-elsewhere", path.display()))
}

/// A way to ruin a file.
pub struct Ruin {
    pub name: &'static str,
    pub act: fn(&Path),
}

/// Every way. What a link leads to is as good as the file was: it must not be followed all the same.
pub const RUINS: [Ruin; 8] = [
    Ruin { name: "missing", act: |path| fs::remove_file(path).expect("there") },
    Ruin { name: "empty", act: |path| fs::write(path, b"").expect("written") },
    Ruin { name: "truncated", act: |path| write(path, |bytes| bytes.truncate(bytes.len() / 2)) },
    Ruin { name: "garbled", act: |path| write(path, |bytes| bytes[0] ^= 1) },
    Ruin { name: "longer", act: |path| write(path, |bytes| bytes.push(b'!')) },
    Ruin {
        name: "a directory",
        act: |path| {
            fs::remove_file(path).expect("there");
            fs::create_dir(path).expect("made");
            fs::write(path.join("mine"), b"mine").expect("written");
        },
    },
    Ruin {
        name: "a link",
        act: |path| {
            let elsewhere = elsewhere(path);
            fs::rename(path, &elsewhere).expect("there");
            symlink(elsewhere, path).expect("made");
        },
    },
    Ruin {
        name: "a pipe",
        act: |path| {
            fs::remove_file(path).expect("there");
            shell(&format!("mkfifo {}", path.display())).expect(0);
        },
    },
];

fn write(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("there");
    change(&mut bytes);
    fs::write(path, bytes).expect("written");
}

/// What stands somewhere, to tell whether it is the same afterwards.
pub fn look(path: &Path) -> Option<String> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    Some(if kind.is_file() {
        format!("a file: {:?}", fs::read(path).expect("readable"))
    } else if kind.is_dir() {
        let names = fs::read_dir(path).expect("readable").map(|entry| entry.expect("an entry").file_name());
        format!("a directory: {:?}", names.collect::<std::collections::BTreeSet<_>>())
    } else if kind.is_symlink() {
        format!("a link: {:?}", fs::read_link(path).expect("readable"))
    } else {
        "a pipe".to_owned()
    })
}

/// What was set aside as `KIND-NAME.N`.
pub fn aside(state: &Path, kind: &str, name: &str) -> Vec<Option<String>> {
    let prefix = format!("{kind}-{name}.");
    let entries = fs::read_dir(state.join("damaged")).into_iter().flatten();
    let names = entries.map(|entry| entry.expect("an entry").path());
    let is_of_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(&prefix).is_some_and(|number| number.parse::<u64>().is_ok())
    };
    names.filter(is_of_it).map(|path| look(&path)).collect()
}

/// Every place that tells of damage tells of so much.
#[track_caller]
pub fn damage_is_told(daemon: &Daemon, expected: &[(&str, u64)]) {
    for kind in ["journal", "payload", "checkpoint", "result", "layout"] {
        let count = expected.iter().find(|(name, _)| *name == kind).map_or(0, |(_, count)| *count);
        let series = format!("kurultai_spool_damaged_total{{kind=\"{kind}\"}}");
        assert_eq!(metric(daemon, &series), count as f64, "{series}");
    }
    let all: u64 = expected.iter().map(|(_, count)| count).sum();
    let told = if all > 0 { json!(all) } else { Value::Null };
    for path in ["/health", "/v1/status"] {
        let storage = daemon.get(path).expect(200).json()["storage"].clone();
        assert_eq!((&storage["damaged"], &storage["ok"]), (&told, &json!(true)), "{path}: {storage}");
    }
}

/// The daemon has said of this file, by its path, what is wrong with it.
#[track_caller]
pub fn is_logged(daemon: &Daemon, path: &Path, reason: &str) {
    let path = path.display().to_string();
    let is_there = daemon.logged_text(&path).iter().any(|line| line.contains(reason) && line.contains("damaged"));
    assert!(is_there, "{path}, {reason}: {}", daemon.log_text());
}
