//! kurultai-api(7).

use std::collections::BTreeSet;
use std::fs;

use kurultai::core::task::{FailureCode, TaskState};
use kurultai::metrics::Route;

use super::page::{API, entries, names, root, section, source};

#[test]
fn the_api_page_has_every_route_and_no_other() {
    let mut documented: BTreeSet<&str> = ["GET", "POST", "DELETE"]
        .iter()
        .flat_map(|method| API.match_indices(&format!("\n.It Cm {method} ")).map(|(at, _)| at).collect::<Vec<_>>())
        .map(|at| API[at + 1..].lines().next().expect("a line").rsplit(' ').next().expect("a path"))
        .collect();
    // Five routes of a breaker are one to the metrics.
    let calls: Vec<&str> = documented.iter().copied().filter(|path| path.starts_with("/v1/breakers/NAME/")).collect();
    let routes = source("src/gateway/routes.rs");
    for call in &calls {
        let word = call.rsplit('/').next().expect("a word");
        assert!(routes.contains(&format!("\"{word}\" =>")), "{call}");
        documented.remove(call);
    }
    assert_eq!(calls.len(), ["acquire", "success", "failure", "open", "close"].len());
    documented.insert("/v1/breakers/NAME");
    let served = Route::ALL.into_iter().filter(|route| *route != Route::Other).map(Route::pattern).collect();
    assert_eq!(documented, served);
}

/// Status and code of every refusal of the gateway's own making.
fn problems() -> BTreeSet<(String, String)> {
    let mut problems = BTreeSet::new();
    for entry in fs::read_dir(root().join("src/gateway")).expect("src/gateway") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            continue;
        }
        let text = source(path.strip_prefix(root()).expect("below the root").to_str().expect("text"));
        let compact: String = text.split_whitespace().collect();
        for made in compact.split("Problem::new(").skip(1) {
            let mut words = made.splitn(3, ',');
            let (status, code) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if status.parse::<u16>().is_ok() && code.starts_with('"') {
                problems.insert((status.to_owned(), code.trim_matches('"').to_owned()));
            }
        }
    }
    problems
}

/// `Refusal::A { .. } | Refusal::B { .. } => VALUE,` as pairs of a variant and its value.
fn arms(text: &str) -> Vec<(String, String)> {
    let mut arms = Vec::new();
    for arm in text.split("=>").zip(text.split("=>").skip(1)) {
        let value = arm.1.split([',', '\n']).next().expect("a value").trim().trim_matches('"').to_owned();
        // What stands before the last comma belongs to the arm before.
        let pattern = arm.0.rsplit_once(",\n").map_or(arm.0, |(_, pattern)| pattern);
        for variant in pattern.split("Refusal::").skip(1) {
            let name = variant.chars().take_while(char::is_ascii_alphanumeric).collect();
            arms.push((name, value.clone()));
        }
    }
    arms
}

/// Status and code of every refusal of the core.
fn refusals() -> BTreeSet<(String, String)> {
    let body = |path: &str, start: &str| {
        let text = source(path);
        let (_, body) = text.split_once(start).unwrap_or_else(|| panic!("{path} has no {start}"));
        body.split("\n    }\n").next().expect("a body").to_owned()
    };
    let statuses = arms(&body("src/gateway/render.rs", "let status = match refusal {"));
    let codes = arms(&body("src/core/refusal.rs", "pub fn code(&self)"));
    let code_of = |variant: &str| {
        let (_, code) = codes.iter().find(|(known, _)| known == variant).expect("a code for each status");
        code.clone()
    };
    statuses.into_iter().map(|(variant, status)| (status, code_of(&variant))).collect()
}

#[test]
fn the_api_page_has_every_error_code_with_its_status_and_no_other() {
    let page = section(API, ".Sh ERROR CODES");
    let documented: BTreeSet<(String, String)> = entries(page, "Sy")
        .into_iter()
        .map(|(head, _)| head.split_once(" Cm ").expect("a status and a code"))
        .map(|(status, code)| (status.to_owned(), code.to_owned()))
        .collect();
    let problems = problems();
    assert!(problems.len() > 15, "found only {problems:?}");
    let refusals = refusals();
    assert!(refusals.len() > 5, "found only {refusals:?}");
    let answered: BTreeSet<_> = problems.union(&refusals).cloned().collect();
    assert_eq!(documented, answered);
    let failed = section(API, ".Ss Failed tasks");
    assert_eq!(names(failed, "Cm"), FailureCode::ALL.into_iter().map(FailureCode::name).collect());
}

#[test]
fn the_api_page_has_every_state_field_and_parameter() {
    let states = section(API, ".Ss States");
    assert_eq!(names(states, "Cm"), TaskState::ALL.into_iter().map(TaskState::name).collect());
    // What the gateway puts into objects: put(&mut object, "id", …), "max": …, object["storage"].
    let json = source("src/gateway/json.rs");
    let compact: String = json.split_whitespace().collect();
    let mut fields = BTreeSet::new();
    for (marker, end) in [("put(&mutobject,\"", '"'), ("put(&mutinner,\"", '"'), ("object[\"", '"')] {
        fields.extend(compact.split(marker).skip(1).filter_map(|rest| rest.split_once(end)).map(|(name, _)| name));
    }
    fields.extend(compact.split("\":").map(|before| before.rsplit('"').next().expect("a word")));
    fields.retain(|name| !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric()));
    assert!(fields.len() > 80, "found only {fields:?}");
    for field in fields {
        let is_there = API.contains(&format!("\"{field}\""))
            || API.contains(&format!("\\(dq{field}\\(dq"))
            || API.split([' ', '\n']).any(|word| word == field);
        assert!(is_there, "{field} is not in kurultai-api(7)");
    }
    let submission = section(API, ".Sh TASKS");
    for field in
        ["agent", "payload", "priority", "timeoutS", "maxRetries", "preemptible", "skippable", "idempotencyKey"]
    {
        assert!(submission.contains(&format!("\n.It Va {field}\n")), "{field} of an envelope");
    }
    let mut parameters = BTreeSet::new();
    for path in ["src/gateway/routes.rs", "src/gateway/submit.rs", "src/gateway/query.rs"] {
        let text = source(path);
        for marker in [".take(\"", ".take_number(\"", ".take_seconds(\"", ".take_flag(\""] {
            let taken = text.split(marker).skip(1).filter_map(|rest| rest.split_once('"'));
            parameters.extend(taken.map(|(name, _)| name.to_owned()));
        }
    }
    assert!(parameters.len() > 10, "found only {parameters:?}");
    for name in parameters {
        assert!(API.contains(&format!("?{name}")) || API.contains(&format!("\n.Cm {name}")), "parameter {name}");
    }
}
