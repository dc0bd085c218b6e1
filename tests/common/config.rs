//! Configurations: what a test says, and around it what keeps it to its own directory.

use std::path::{Path, PathBuf};

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An agent of the repository: `path` from its top; `more` are further keys, one a line.
pub fn agent(name: &str, path: &str, more: &str) -> String {
    let path = repository().join(path);
    assert!(path.is_file(), "{} is missing", path.display());
    format!("[agents.{name}]\ncommand = [{:?}]\n{more}\n", path.display().to_string())
}

/// A persistent agent of the repository, as [`agent`].
pub fn worker(name: &str, path: &str, more: &str) -> String {
    agent(name, path, &format!("mode = \"persistent\"\n{more}"))
}

/// One of tests/agents/bad under its own name.
pub fn bad_agent(name: &str, mode: &str) -> String {
    agent(name, &format!("tests/agents/bad/{name}"), &format!("mode = {mode:?}"))
}

/// The whole file: what `fragment` leaves open in these sections is set so that the test depends on nothing else on
/// this machine.
pub fn complete(fragment: &str, home: &Path) -> String {
    let path = |name: &str| format!("{:?}", home.join(name).display().to_string());
    let defaults: [(&str, Vec<(&str, String)>); 5] = [
        (
            "daemon",
            vec![
                ("state_dir", path("state")),
                ("runtime_dir", path("run")),
                ("log_format", "\"json\"".to_owned()),
                ("log_level", "\"debug\"".to_owned()),
            ],
        ),
        ("gateway", vec![("listen", "\"\"".to_owned())]),
        (
            "memory",
            vec![
                ("sources", "[\"budget\"]".to_owned()),
                ("min_free_mb", "0".to_owned()),
                ("limit_mb", "4096".to_owned()),
            ],
        ),
        ("spool", vec![("min_free_mb", "0".to_owned())]),
        ("workers", vec![("restart_backoff_ms", "[10]".to_owned()), ("max_restarts_per_hour", "1000".to_owned())]),
    ];
    let mut text = fragment.to_owned();
    for (section, keys) in defaults {
        text = with_defaults(&text, section, &keys);
    }
    text
}

fn with_defaults(text: &str, section: &str, keys: &[(&str, String)]) -> String {
    let header = format!("[{section}]");
    let sets = |key: &str| {
        let mut in_section = false;
        text.lines().any(|line| {
            if line.starts_with('[') {
                in_section = line.trim() == header;
            }
            in_section && line.split_once('=').is_some_and(|(name, _)| name.trim() == key)
        })
    };
    let missing: String =
        keys.iter().filter(|(key, _)| !sets(key)).map(|(key, value)| format!("{key} = {value}\n")).collect();
    match text.find(&header) {
        Some(at) => format!("{}\n{missing}{}", &text[..at + header.len()], &text[at + header.len()..]),
        None => format!("{header}\n{missing}{text}"),
    }
}

/// Where the parts of a home are.
pub fn socket(home: &Path) -> PathBuf {
    home.join("run/kurultai.sock")
}
