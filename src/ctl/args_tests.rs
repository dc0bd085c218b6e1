//! What command lines mean, and how wrong ones are told.

use super::super::error::exit;
use super::*;

fn parsed(line: &str) -> Result<Asked, CtlError> {
    parse(line.split_whitespace().map(OsString::from), &Env::default())
}

fn command(line: &str) -> Command {
    match parsed(line) {
        Ok(Asked::Run(invocation)) => invocation.command,
        other => panic!("{line}: {other:?}"),
    }
}

fn plain_submit() -> Submit {
    Submit {
        agent: "wc".to_owned(),
        payload: PayloadSource::Empty,
        priority: None,
        wait: Wait::No,
        timeout_s: None,
        retries: None,
        idempotency_key: None,
        json_payload: false,
    }
}

#[test]
fn every_command_of_the_catalogue_is_understood() {
    for spec in COMMANDS {
        let operand = if spec.operands.contains("ID") || spec.operands.contains("TASK") { "t-1" } else { "bash" };
        let line = format!("{} {}", spec.name, operand.repeat(spec.operands_min));
        assert!(parsed(&line).is_ok(), "{line}");
    }
}

#[test]
fn every_option_of_the_catalogue_is_understood() {
    for spec in COMMANDS {
        for option in spec.options {
            let value = match option.name {
                "priority" => "high",
                "state" => "queued",
                _ => "1",
            };
            let operands = if spec.name == "submit" { "wc file" } else { "" };
            let given = match option.value {
                ValueSpec::None | ValueSpec::Optional(_) => format!("--{}", option.name),
                ValueSpec::Required(_) => format!("--{} {value}", option.name),
            };
            let line = format!("{} {operands} {given}", spec.name);
            assert!(parsed(&line).is_ok(), "{line}: {:?}", parsed(&line));
        }
    }
}

#[test]
fn a_submission_carries_what_was_asked() {
    for (line, expected) in [
        ("submit wc", plain_submit()),
        ("submit wc -", Submit { payload: PayloadSource::StandardInput, ..plain_submit() }),
        ("submit wc --wait in.txt", Submit { wait: Wait::Forever, payload: file("in.txt"), ..plain_submit() }),
        ("submit --wait=30 wc", Submit { wait: Wait::Seconds(30), ..plain_submit() }),
        ("submit wc -- --odd", Submit { payload: file("--odd"), ..plain_submit() }),
        (
            "submit wc --priority HIGH --timeout=60 --retries 2 --idempotency-key k1",
            Submit {
                priority: Some(Priority::High),
                timeout_s: Some(60),
                retries: Some(2),
                idempotency_key: Some("k1".to_owned()),
                ..plain_submit()
            },
        ),
        (
            "submit wc x.json --json-payload --priority 4",
            Submit {
                priority: Some(Priority::Heartbeat),
                payload: file("x.json"),
                json_payload: true,
                ..plain_submit()
            },
        ),
    ] {
        assert_eq!(command(line), Command::Submit(expected), "{line}");
    }
}

fn file(name: &str) -> PayloadSource {
    PayloadSource::File(PathBuf::from(name))
}

#[test]
fn wrong_command_lines_end_with_2_and_say_what_to_do() {
    for (line, expected) in [
        ("", "commands are: status"),
        ("tasks", "tasks: what about them?"),
        ("statsu", "did you mean kurultaictl status?"),
        ("tasks lst", "did you mean kurultaictl tasks list?"),
        ("status --wach", "did you mean --watch?"),
        ("status extra", "one operand too many"),
        ("submit", "AGENT [FILE|-] is missing"),
        ("--watch status", "belongs after the command: kurultaictl status --watch"),
        ("queue --priority 1", "it is an option of kurultaictl submit"),
        ("status -q", "unknown option -q"),
        ("status --json=1", "--json"),
        ("submit wc --priority", "--priority"),
        ("submit wc --priority urgent", "expected critical, high, normal, low, heartbeat"),
        ("submit wc --timeout 0", "no number from 1"),
        ("submit wc --retries -1", "no number from 0"),
        ("submit wc --wait=soon", "\"soon\" is no number"),
        ("submit wc --json-payload", "name a FILE"),
        ("submit wc --idempotency-key ü", "visible ASCII"),
        ("submit ..", "names no agent"),
        ("tasks show 17", "expected t-<number>"),
        ("tasks list --limit 1001", "from 1 to 1000"),
        ("tasks list --state queued,lost", "\"lost\" is no state"),
        ("completions ksh", "bash, zsh and fish"),
        ("status --socket a --url b", "two daemons"),
    ] {
        let error = parsed(line).expect_err(line);
        assert_eq!(error.exit_status(), exit::USAGE, "{line}");
        assert!(error.to_string().contains(expected), "{line}: {error}");
    }
}

#[test]
fn an_option_beats_the_environment_and_a_url_beats_a_socket_there() {
    let both = Env { url: Some("http://e:1".into()), socket: Some("/e".into()), ..Env::default() };
    let socket_only = Env { socket: Some("/e".into()), ..Env::default() };
    for (line, env, expected) in [
        ("queue", &Env::default(), Address::Socket(PathBuf::from("/run/kurultai/kurultai.sock"))),
        ("queue", &socket_only, Address::Socket(PathBuf::from("/e"))),
        ("queue", &both, Address::Url("http://e:1".to_owned())),
        ("queue --socket /o", &both, Address::Socket(PathBuf::from("/o"))),
        ("--url http://o:2 queue", &both, Address::Url("http://o:2".to_owned())),
    ] {
        let asked = parse(line.split_whitespace().map(OsString::from), env).expect(line);
        let Asked::Run(invocation) = asked else { panic!("{line}") };
        assert_eq!(invocation.address, expected, "{line}");
    }
}

#[test]
fn help_and_version_need_nothing_else_to_be_right() {
    assert!(matches!(parsed("submit --help"), Ok(Asked::Help(text)) if text.contains("--idempotency-key K")));
    assert!(matches!(parsed("-h"), Ok(Asked::Help(text)) if text.contains("breakers open")));
    assert_eq!(parsed("--version").expect("version"), Asked::Version);
}
