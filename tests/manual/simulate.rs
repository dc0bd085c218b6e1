//! kurultai-simulate(7).

use std::collections::BTreeSet;
use std::fs;

use kurultai::ctl::{PROFILE_KEYS, ProfileKey, ProfileKind, Without};

use super::page::{SIMULATE, entries, names, root, section, source};

fn facts_of_profile(key: &ProfileKey) -> String {
    let kind = match key.kind {
        ProfileKind::Text => "Text, 1 to 64 characters".to_owned(),
        ProfileKind::Flag => "True or false".to_owned(),
        ProfileKind::Integer { min, max } => format!("Integer, {min} to {max}"),
        ProfileKind::Number { min, max } => format!("Number, {min} to {max}"),
        ProfileKind::Spread { min, max } => format!("Number or spread, {min} to {max}"),
        ProfileKind::Weights { max } => format!("Table of integers by priority, 0 to {max}"),
    };
    match key.absent {
        Without::Default => format!("{kind}; default {}.", key.example),
        Without::Required => format!("{kind}; required."),
        Without::Means(means) => format!("{kind}; default {means}."),
    }
}

#[test]
fn the_simulation_page_has_every_key_of_a_profile_with_its_facts_and_no_other() {
    for (name, heading) in
        [("", ".Ss Above all sections"), ("phases", ".Ss [[phases]]"), ("agents", ".Ss [agents.NAME] and [defaults]")]
    {
        let section = section(SIMULATE, heading);
        let keys = || PROFILE_KEYS.iter().filter(|key| key.section == name);
        assert_eq!(names(section, "Cm"), keys().map(|key| key.name).collect(), "{heading}");
        for key in keys() {
            let (_, text) = entries(section, "Cm").into_iter().find(|(head, _)| *head == key.name).expect("listed");
            assert_eq!(text.lines().next(), Some(facts_of_profile(key).as_str()), "{}", key.name);
        }
    }
    let mib = kurultai::ctl::PROFILE_MAX / 1024 / 1024;
    assert!(SIMULATE.contains(&format!("at most {mib} MiB")));
    assert!(SIMULATE.contains("at most 10,000,000\nsubmissions"));
    assert_eq!(kurultai::ctl::SUBMISSIONS_MAX, 10_000_000.0);
}

#[test]
fn the_simulation_page_has_every_column_and_names_the_profiles_that_are_shipped() {
    let output = source("src/ctl/simulate/output.rs");
    let (_, columns) = output.split_once("COLUMNS: &str").expect("the columns");
    let columns = columns.split('"').nth(1).expect("a text");
    assert!(columns.split(',').count() > 5, "{columns}");
    for column in columns.split(',') {
        assert!(SIMULATE.contains(&format!(".Cm {column}")), "{column}");
    }
    let shipped: BTreeSet<String> = fs::read_dir(root().join("conf/profiles"))
        .expect("conf/profiles")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    let files = section(SIMULATE, ".Sh FILES");
    let named = names(files, "Pa").into_iter().map(|path| path.rsplit('/').next().expect("a name").to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), shipped);
}
