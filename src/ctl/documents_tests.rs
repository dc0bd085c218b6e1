//! The manual and the completion scripts name every command and option, and no other.

use super::catalogue::{COMMANDS, CommandSpec, ENVIRONMENT, GLOBAL, SHELLS, STATES};
use super::error::exit;
use std::collections::BTreeSet;

const MANUAL: &str = include_str!("../../man/kurultaictl.1");

fn script(shell: &str) -> &'static str {
    SHELLS.iter().find(|(name, _)| *name == shell).expect("a known shell").1
}

fn option_names(command: &CommandSpec) -> BTreeSet<String> {
    command.options.iter().map(|option| option.name.to_owned()).collect()
}

/// The words after each `marker`, up to the first character no option has.
fn words_after(text: &str, marker: &str) -> BTreeSet<String> {
    let word = |rest: &str| rest.chars().take_while(|char| char.is_ascii_lowercase() || *char == '-').collect();
    text.split(marker).skip(1).map(word).collect()
}

#[test]
fn the_manual_has_every_command_and_option_and_no_other() {
    let commands: BTreeSet<String> = MANUAL
        .lines()
        .filter_map(|line| line.strip_prefix(".It Cm "))
        .map(|line| line.split(' ').take_while(|word| word.chars().all(|char| char.is_ascii_lowercase())))
        .map(|words| words.collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(commands, COMMANDS.iter().map(|command| command.name.to_owned()).collect());

    for command in COMMANDS {
        let start = MANUAL.find(&format!("\n.It Cm {}", command.name)).expect("the test above");
        let section = &MANUAL[start + 1..];
        let end = section.find("\n.It Cm ").or(section.find("\n.Sh ")).unwrap_or(section.len());
        assert_eq!(words_after(&section[..end], "\n.It Fl -"), option_names(command), "{}", command.name);
    }
    for option in GLOBAL {
        assert!(MANUAL.contains(&format!("\n.It Fl -{}", option.name)), "--{} is not in the manual", option.name);
    }
}

#[test]
fn the_manual_has_every_variable_status_and_state() {
    for name in ENVIRONMENT {
        assert!(MANUAL.contains(&format!(".It Ev {name}\n")), "{name} is not in the manual");
    }
    for status in exit::ALL {
        assert!(MANUAL.contains(&format!("\n.It {status}\n")), "exit status {status} is not in the manual");
    }
    for (state, _) in STATES {
        assert!(MANUAL.contains(&format!(".Cm {state}")), "{state} is not in the manual");
    }
    assert!(MANUAL.contains(super::DEFAULT_SOCKET));
}

#[test]
fn bash_completes_every_command_and_option_and_no_other() {
    let script = script("bash");
    for command in COMMANDS {
        let options: Vec<_> = command.options.iter().map(|option| format!("--{}", option.name)).collect();
        let line = format!("\n        '{}') words='{}' ;;\n", command.name, options.join(" "));
        assert!(script.contains(&line), "bash: {line}");
    }
    assert_eq!(script.matches("') words='").count(), COMMANDS.len());
    let global: Vec<_> = GLOBAL.iter().map(|option| format!("--{}", option.name)).collect();
    assert!(script.contains(&format!("global='{}'", global.join(" "))));
}

#[test]
fn zsh_completes_every_command_and_option_and_no_other() {
    let script = script("zsh");
    for command in COMMANDS {
        let marker = format!("\n        '{}') own=(", command.name);
        let (_, section) = script.split_once(&marker).unwrap_or_else(|| panic!("zsh: {}", command.name));
        let (section, _) = section.split_once(" ;;\n").expect("an end");
        assert_eq!(words_after(section, "'--"), option_names(command), "{}", command.name);
    }
    assert_eq!(script.matches("') own=(").count(), COMMANDS.len());
    for option in GLOBAL {
        assert!(script.contains(&format!("--{}", option.name)), "zsh: --{}", option.name);
    }
}

#[test]
fn fish_completes_every_command_and_option_and_no_other() {
    let script = script("fish");
    for command in COMMANDS {
        let offered = match command.name.split_once(' ') {
            Some((group, word)) => format!("'__kurultaictl_at --group {group}' -a {word} "),
            None => format!("'__kurultaictl_at' -a {} ", command.name),
        };
        assert!(script.contains(&offered), "fish: {}", command.name);
        let at = format!("-n '__kurultaictl_at {}' -l ", command.name);
        assert_eq!(words_after(script, &at), option_names(command), "{}", command.name);
    }
    assert_eq!(
        words_after(script, "complete -c kurultaictl -l "),
        GLOBAL.iter().map(|option| option.name.to_owned()).collect()
    );
}

#[test]
fn the_shells_offer_the_commands_words_in_their_places() {
    for (shell, script) in SHELLS {
        for command in COMMANDS {
            for word in command.name.split(' ') {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        for (state, _) in STATES {
            assert!(script.contains(state), "{shell}: {state}");
        }
    }
}
