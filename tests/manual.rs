//! The man pages say what the software is: every key, option, route, field, error code, event, metric and message is in
//! its page with its figures, and no page names one that does not exist.
//!
//! Each page has its module; here is what is true of all of them.

mod manual {
    mod api;
    mod config;
    mod daemon;
    pub mod page;
    mod protocol;
    mod simulate;
    mod spool;
}

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kurultai::core::limits;
use manual::page::{API, CONFIG, PROTOCOL, root, source};

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root().join("man")).expect("man").map(|entry| entry.expect("an entry").path()).collect();
    pages.sort();
    pages
}

fn mandoc(arguments: &[&str], page: &Path) -> std::process::Output {
    #[expect(clippy::disallowed_methods, reason = "a test runs the tool it is about")]
    let output = Command::new("mandoc").args(arguments).arg(page).output();
    output.unwrap_or_else(|error| panic!("mandoc: {error}; scripts/setup installs it"))
}

#[test]
fn mandoc_has_nothing_to_say_about_the_pages() {
    for page in pages() {
        let lint = mandoc(&["-T", "lint", "-W", "warning"], &page);
        let said = String::from_utf8_lossy(&lint.stdout);
        assert!(lint.status.success() && said.is_empty(), "{}:\n{said}", page.display());
    }
}

#[test]
fn no_line_of_a_page_is_wider_than_a_terminal() {
    for page in pages() {
        let shown = String::from_utf8(mandoc(&["-T", "utf8", "-O", "width=80"], &page).stdout).expect("UTF-8");
        assert!(shown.lines().count() > 100, "{} shows {} lines", page.display(), shown.lines().count());
        for line in shown.lines() {
            // Bold and underlined characters are struck twice, with a backspace between.
            let width = line.chars().count() - 2 * line.matches('\u{8}').count();
            assert!(width <= 80, "{}, {width} columns: {line}", page.display());
        }
    }
}

#[test]
fn pages_that_are_referred_to_exist() {
    let ours: BTreeSet<String> =
        pages().iter().map(|page| page.file_name().expect("a name").to_str().expect("text").to_owned()).collect();
    let mut texts: Vec<(String, String)> =
        pages().iter().map(|page| (page.display().to_string(), fs::read_to_string(page).expect("a text"))).collect();
    texts.push(("README.md".to_owned(), fs::read_to_string(root().join("README.md")).expect("README.md")));
    for (name, text) in &texts {
        for line in text.lines().filter_map(|line| line.strip_prefix(".Xr kurultai")) {
            let mut words = line.split(' ');
            let page = format!("kurultai{}.{}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
            assert!(ours.contains(&page), "{name} refers to {page}");
        }
        for page in text.split("(man/").skip(1).filter_map(|rest| rest.split_once(')')).map(|(page, _)| page) {
            assert!(ours.contains(page), "{name} refers to man/{page}");
        }
    }
}

#[test]
fn the_pages_have_the_limits_of_the_code() {
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    let mib = |bytes: usize| format!("{} MiB", bytes / 1024 / 1024);
    for (page, text, what) in [
        (API, kib(limits::INLINE_RESULT_MAX), "a small result"),
        (API, kib(limits::STDERR_TAIL_MAX), "the end of standard error"),
        (API, mib(kurultai::core::ledger::FINISHED_BYTES_MAX), "memory of finished tasks"),
        (CONFIG, mib(kurultai::core::ledger::FINISHED_BYTES_MAX), "memory of finished tasks"),
        (CONFIG, mib(kurultai::config::FILE_MAX as usize), "the configuration"),
        (PROTOCOL, mib(limits::LINE_MAX), "a line"),
        (PROTOCOL, kib(limits::PAYLOAD_IN_MESSAGE_MAX), "a payload in TASK"),
        (PROTOCOL, kib(limits::CHECKPOINT_MAX), "a checkpoint"),
        (PROTOCOL, kib(limits::ERROR_TEXT_MAX), "an error"),
        (PROTOCOL, kib(limits::STDERR_TAIL_MAX), "the end of standard error"),
    ] {
        assert!(page.contains(&text), "{what}: {text}");
    }
    for (path, constant) in [
        ("src/gateway/head.rs", "HEAD_MAX: usize = 8 * 1024;"),
        ("src/gateway/head.rs", "HEADERS_MAX: usize = 64;"),
        ("src/gateway/head.rs", "REQUEST_ID_MAX: usize = 64;"),
        ("src/gateway/head.rs", "IDEMPOTENCY_KEY_MAX: usize = 128;"),
        ("src/gateway/body.rs", "ENVELOPE_MAX: u64 = 256 * 1024;"),
        ("src/gateway/upload.rs", "SMALL_BODY_MAX: u64 = 16 * 1024;"),
        ("src/gateway/body.rs", "UNWANTED_MAX: u64 = 64 * 1024;"),
        ("src/gateway/conn.rs", "SHORT_CONNECTIONS: usize = 4;"),
        ("src/gateway/lingering.rs", "LONGEST: Duration = Duration::from_secs(10);"),
        ("src/gateway/lingering.rs", "MOST: u64 = 64 * 1024 * 1024;"),
        ("src/gateway/query.rs", "WAIT_MAX: f64 = 3600.0;"),
        ("src/gateway/submit.rs", "RETRIES_MAX: u32 = 1000;"),
        ("src/gateway/routes.rs", "LIST_DEFAULT: usize = 100;"),
        ("src/gateway/routes.rs", "LIST_MAX: usize = 1000;"),
        ("src/gateway/outgoing.rs", "BEHIND_MAX: usize = 64 * 1024;"),
        ("src/scheduler/mod.rs", "DECISIONS_MAX: usize = 256;"),
        ("src/scheduler/history.rs", "SLOTS: usize = 300;"),
        ("src/gateway/page/mod.rs", "DECISIONS: usize = 20;"),
        ("src/core/breaker.rs", "PROBE_TTL: Duration = Duration::from_secs(60);"),
        ("src/core/breaker.rs", "PERMITS_MAX: usize = 256;"),
    ] {
        assert!(source(path).contains(constant), "{path} no longer says {constant}: say so in kurultai-api(7)");
    }
}
