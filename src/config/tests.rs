//! Tables of what is refused, warned about and taken.

use super::*;

pub(super) const FILE: &str = "k.toml";

pub(super) fn env<'a>(pairs: &[(&'a str, &'a str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

pub(super) fn good(text: &str) -> Config {
    good_with(text, &[]).config
}

#[track_caller]
pub(super) fn good_with(text: &str, variables: &[(&str, &str)]) -> Loaded {
    parse(text, FILE, env(variables), None).unwrap_or_else(|error| panic!("{text}\n{variables:?}\nrefused:\n{error}"))
}

#[track_caller]
fn refused(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match parse(text, FILE, env(variables), None) {
        Ok(_) => panic!("{text}\n{variables:?}\nwas taken"),
        Err(error) => error.problems.iter().map(Problem::to_string).collect(),
    }
}

fn warnings(text: &str, variables: &[(&str, &str)], host_mb: Option<u64>) -> Vec<String> {
    let loaded = parse(text, FILE, env(variables), host_mb.map(|mb| mb * 1024 * 1024)).unwrap();
    loaded.warnings.iter().map(Problem::to_string).collect()
}

#[test]
fn one_mistake_gives_one_problem_with_its_line_and_a_way_out() {
    let agent = "[agents.wc]\ncommand = [\"wc\"]\n";
    for (text, expected) in [
        ("[queue]\nmax_dept = 5", "k.toml:2: queue.max_dept: unknown key; did you mean max_depth?"),
        ("[queue]\n\nlimit_mb = 5", "k.toml:3: queue.limit_mb: unknown key; it belongs in [memory]"),
        (
            "[queue]\ncolour = 5",
            "k.toml:2: queue.colour: unknown key; the keys of queue are max_depth, priority_limits",
        ),
        ("[queues]", "k.toml:1: queues: unknown section; did you mean [queue]?"),
        ("max_depth = 3", "k.toml:1: max_depth: unknown section; it belongs in [queue]"),
        (
            "queue = 5",
            "k.toml:1: queue: expected a table, found 5; write its keys below a [header], or between { and }",
        ),
        (
            "[queue]\nmax_depth = \"five\"",
            "k.toml:2: queue.max_depth: expected an integer from 1 to 10000, found the text \"five\"; write it like 5",
        ),
        (
            "[queue]\nmax_depth = \"5\"",
            "k.toml:2: queue.max_depth: expected an integer from 1 to 10000, found the text \"5\"; remove the quotes",
        ),
        (
            "[queue]\nmax_depth = 5.5",
            "k.toml:2: queue.max_depth: expected an integer from 1 to 10000, found 5.5; write it like 5",
        ),
        ("[queue]\nmax_depth = 0", "k.toml:2: queue.max_depth: 0 is out of range; choose 1 to 10000"),
        (
            "[queue]\nmax_depth = 99999999999999999999",
            "k.toml:2: queue.max_depth: 99999999999999999999 is out of range; choose 1 to 10000",
        ),
        (
            "[queue.priority_limits]\nhigh = 3\nurgent = 1",
            "k.toml:3: queue.priority_limits.urgent: unknown priority; \
             the priorities are critical, high, normal, low, heartbeat",
        ),
        (
            "[queue]\npriority_limits = { critical = 0, high = 0, normal = 0, low = 0, heartbeat = 0 }",
            "k.toml:2: queue.priority_limits: every limit is 0, so that no task is ever accepted; \
             give at least one priority room",
        ),
        ("[memory]\nwarning = 1.5", "k.toml:2: memory.warning: 1.5 is out of range; choose 0.01 to 1"),
        ("[memory]\nreject = nan", "k.toml:2: memory.reject: nan is out of range; choose 0.01 to 1"),
        (
            "[memory]\nwarning = 0.85",
            "k.toml:2: memory.warning: memory.warning (0.85) is not below memory.critical (0.85); \
             order them warning < critical < reject < emergency",
        ),
        (
            "[memory]\nhysteresis = 0.7",
            "k.toml:2: memory.hysteresis: memory.hysteresis (0.7) is not below memory.warning (0.7); \
             lower memory.hysteresis, or no level ever clears",
        ),
        (
            "[memory]\nmode = \"hrad\"",
            "k.toml:2: memory.mode: expected one of observe, soft, hard, found \"hrad\"; did you mean \"hard\"?",
        ),
        (
            "[memory]\nsources = [\"host\",\n \"host\"]",
            "k.toml:3: memory.sources[1]: \"host\" is named twice; remove one",
        ),
        (
            "[memory]\nsources = []",
            "k.toml:2: memory.sources: is empty; write it like [\"budget\", \"cgroup\", \"host\"]",
        ),
        (
            "[workers]\nsoft_limit_mb = 600",
            "k.toml:2: workers.soft_limit_mb: workers.soft_limit_mb (600) is above workers.hard_limit_mb (512); \
             lower the soft limit or raise the hard one",
        ),
        (
            "[workers]\ntask_timeout_s = 3600",
            "k.toml:2: workers.task_timeout_s: workers.task_timeout_s (3600) is above \
             workers.max_task_timeout_s (1800); lower the first or raise the second",
        ),
        (
            "[workers]\nrestart_backoff_ms = []",
            "k.toml:2: workers.restart_backoff_ms: is empty; write it like [1000, 2000, 4000, 8000]",
        ),
        (
            "[workers]\nrestart_backoff_ms = [\n1000,\n0]",
            "k.toml:4: workers.restart_backoff_ms[1]: 0 is out of range; choose 1 to 3600000",
        ),
        (
            "[daemon]\nstate_dir = \"spool\"",
            "k.toml:2: daemon.state_dir: \"spool\" is not an absolute path; begin it with /",
        ),
        (
            "[daemon]\nlog_file = \"a.log\"",
            "k.toml:2: daemon.log_file: \"a.log\" is not an absolute path; begin it with /",
        ),
        (
            "[gateway]\nlisten = \"localhost:7700\"",
            "k.toml:2: gateway.listen: \"localhost:7700\" is not address:port; \
             write it like 127.0.0.1:7700 or [::1]:7700, or \"\" for the Unix socket only",
        ),
        (
            "[gateway]\nlisten = \"0.0.0.0:7700\"",
            "k.toml:2: gateway.listen: 0.0.0.0:7700 is reached from beyond this host, and there is no token; \
             set gateway.token_file, or listen on 127.0.0.1",
        ),
        (
            "[gateway]\nallowed_hosts = [\"http://x\"]",
            "k.toml:2: gateway.allowed_hosts[0]: \"http://x\" is not a host name; \
             write it like box.example.org, without a scheme",
        ),
        ("[agents.wc]\nmode = \"oneshot\"", "k.toml:1: agents.wc.command: is missing; add command = [\"/usr/bin/wc\"]"),
        (
            "[agents.wc]\ncommand = \"wc\"",
            "k.toml:2: agents.wc.command: expected a list of texts, found the text \"wc\"; \
             write it like [\"/usr/bin/wc\"]",
        ),
        ("[agents.wc]\ncommand = []", "k.toml:2: agents.wc.command: is empty; write it like [\"/usr/bin/wc\"]"),
        (
            "[agents.wc]\ncommand = [\"./wc\"]",
            "k.toml:2: agents.wc.command[0]: \"./wc\" is no program; \
             give an absolute path, or a bare name that is in PATH",
        ),
        (
            "[agents.\"w c\"]\ncommand = [\"wc\"]",
            "k.toml:1: agents.\"w c\": \"w c\" is not a name; use 1 to 64 of A-Z a-z 0-9 . _ -",
        ),
        (
            "[agents]\nwc = [\"wc\"]",
            "k.toml:2: agents.wc: expected a table, found a list; write its keys below a [header], or between { and }",
        ),
        (
            "[agents.\"a.b\"]\ncommand = [\"x\"]\nhard_limit = 3",
            "k.toml:3: agents.a.b.hard_limit: unknown key; did you mean hard_limit_mb?",
        ),
        (
            "[agents.wc]\ncommand = [\"wc\"]\nenv = { A = 1 }",
            "k.toml:3: agents.wc.env.A: expected a text, found 1; write it like {}",
        ),
        (
            "[agents.wc]\ncommand = [\"wc\", \"a\\u0000b\"]",
            "k.toml:2: agents.wc.command[1]: \"a\\0b\" holds a NUL; remove it",
        ),
        (
            "[agents.wc]\ncommand = [\"wc\"]\nsoft_limit_mb = 200\nhard_limit_mb = 100",
            "k.toml:3: agents.wc.soft_limit_mb: the soft limit (200) is above this agent's hard limit (100); \
             lower the soft limit or raise hard_limit_mb",
        ),
        (
            "[agents.wc]\ncommand = [\"wc\"]\nsoft_limit_mb = 600",
            "k.toml:3: agents.wc.soft_limit_mb: the soft limit (600) is above this agent's hard limit (512); \
             lower the soft limit or raise hard_limit_mb",
        ),
        (
            "[agents.wc]\ncommand = [\"wc\"]\ntask_timeout_s = 1801",
            "k.toml:3: agents.wc.task_timeout_s: 1801 is above workers.max_task_timeout_s (1800); \
             lower the first or raise the second",
        ),
        (
            "[agents.wc]\ncommand = [\"wc\"]\nbreaker = \"synk\"\n[breakers.sync]",
            "k.toml:3: agents.wc.breaker: there is no breaker \"synk\"; did you mean \"sync\"?",
        ),
        (
            "[breakers.sync]\nbackoff_ms = []",
            "k.toml:2: breakers.sync.backoff_ms: is empty; write it like [1000, 2000, 4000, 8000]",
        ),
        (
            "[[schedules]]\nname = \"a\"\nagent = \"wc\"",
            "k.toml:3: schedules.a.agent: there is no agent \"wc\"; add [agents.wc]",
        ),
        (
            "[schedules]\nname = \"a\"",
            "k.toml:1: schedules: expected a list of tables, found a table; begin each schedule with [[schedules]]",
        ),
        (
            &format!("{agent}[[schedules]]\nagent = \"wc\""),
            "k.toml:3: schedules[0].name: is missing; add name = \"heartbeat-main\"",
        ),
        (
            &format!("{agent}[[schedules]]\nname = \"a\"\nagent = \"wc\"\n[[schedules]]\nname = \"a\"\nagent = \"wc\""),
            "k.toml:7: schedules.a.name: there are two schedules \"a\"; rename one of them",
        ),
        (
            &format!("{agent}[[schedules]]\nname = \"a\"\nagent = \"wc\"\npriority = 5"),
            "k.toml:6: schedules.a.priority: \"5\" is no priority; \
             choose one of critical, high, normal, low, heartbeat, or 0 to 4",
        ),
        (
            &format!("{agent}[[schedules]]\nname = \"a\"\nagent = \"wc\"\npayload = {{ x = [inf] }}"),
            "k.toml:6: schedules.a.payload: holds a number that JSON cannot; no nan, no inf, no integer beyond 64 bits",
        ),
    ] {
        assert_eq!(refused(text, &[]), [expected], "{text}");
    }
}

#[test]
fn every_problem_is_reported_in_one_go_and_in_the_order_of_the_file() {
    let text = "\
        [workers]\nmax = 0\ncolour = 1\n\
        [memory]\ncritical = 0.95\n\
        [agents.a]\nmode = \"once\"\n\
        [[schedules]]\nname = \"s\"\nagent = \"b\"\nevery_s = -1\n\
        [daemon]\nruntime_dir = \"run\"\n";
    let problems = refused(text, &[("KURULTAI_QUEUE_MAX_DEPTH", "0"), ("KURULTAI_QUEUE_DEPT", "3")]);
    let starts: Vec<&str> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    assert_eq!(
        starts,
        [
            "k.toml:2",
            "k.toml:3",
            "k.toml:5",
            "k.toml:6",
            "k.toml:7",
            "k.toml:10",
            "k.toml:11",
            "k.toml:13",
            "env KURULTAI_QUEUE_MAX_DEPTH",
            "env KURULTAI_QUEUE_DEPT",
        ],
        "{problems:#?}"
    );
}

#[test]
fn a_value_with_a_problem_of_its_own_causes_no_second_one() {
    for text in ["[memory]\nwarning = 99.0\nhysteresis = 0.9", "[workers]\nhard_limit_mb = \"x\"\nsoft_limit_mb = 9000"]
    {
        assert_eq!(refused(text, &[]).len(), 1, "{text}");
    }
    let text = "agents = 5\n[[schedules]]\nname = \"a\"\nagent = \"wc\"";
    assert_eq!(refused(text, &[]).len(), 1, "{text}");
}

#[test]
fn broken_toml_is_told_with_line_and_column_and_nothing_else() {
    for (text, lines) in [
        ("[queue]\nmax_depth = = 3\ncolour = 1", vec!["k.toml:2: column 13: "]),
        ("[queue\nx = 1", vec!["k.toml:1: column "]),
        ("[daemon]\nuser = \"ö\" x", vec!["k.toml:2: column 12: "]),
        ("[queue]\nmax_depth = 1\nmax_depth = 2\n[daemon]\nuser = x", vec!["k.toml:3: ", "k.toml:5: "]),
    ] {
        let problems = refused(text, &[("KURULTAI_NONSENSE", "1")]);
        assert_eq!(problems.len(), lines.len(), "{text}: {problems:#?}");
        for (problem, start) in problems.iter().zip(lines) {
            assert!(problem.starts_with(start), "{text}: {problem}");
        }
    }
}

#[test]
fn variables_are_refused_by_name_and_by_value() {
    for (name, value, expected) in [
        ("KURULTAI_WORKER_MAX", "3", "env KURULTAI_WORKER_MAX: unknown variable; did you mean KURULTAI_WORKERS_MAX?"),
        ("KURULTAI_QUEUE_DEPHT", "3", "env KURULTAI_QUEUE_DEPHT: unknown variable; did you mean KURULTAI_QUEUE_DEPTH?"),
        (
            "KURULTAI_XYZZY",
            "3",
            "env KURULTAI_XYZZY: unknown variable; unset it; variables are KURULTAI_<SECTION>_<KEY>, see kurultai.toml(5)",
        ),
        (
            "KURULTAI_AGENTS_WC_COMMAND",
            "[\"wc\"]",
            "env KURULTAI_AGENTS_WC_COMMAND: unknown variable; set agents, schedules and breakers in the file",
        ),
        ("KURULTAI_WORKERS_MAX", "65", "env KURULTAI_WORKERS_MAX: workers.max: 65 is out of range; choose 1 to 64"),
        (
            "KURULTAI_MAX_WORKERS",
            "two",
            "env KURULTAI_MAX_WORKERS: workers.max: expected an integer from 1 to 64, found the text \"two\"; \
             write it like 2",
        ),
        (
            "KURULTAI_WORKERS_MAX",
            "",
            "env KURULTAI_WORKERS_MAX: workers.max: expected an integer from 1 to 64, found the text \"\"; \
             write it like 2",
        ),
        (
            "FF_WORKER_POOL",
            "maybe",
            "env FF_WORKER_POOL: features.worker_pool: expected true or false, found the text \"maybe\"; \
             write it like true",
        ),
        (
            "KURULTAI_GC_ON_PRESSURE",
            "maybe",
            "env KURULTAI_GC_ON_PRESSURE: expected true or false, found \"maybe\"; write true or false",
        ),
        (
            "KURULTAI_HEARTBEAT_INTERVAL_MS",
            "1500",
            "env KURULTAI_HEARTBEAT_INTERVAL_MS: schedules: expected milliseconds that make whole seconds, \
             found \"1500\"; write it like 300000",
        ),
        (
            "KURULTAI_MEMORY_SOURCES",
            "host",
            "env KURULTAI_MEMORY_SOURCES: memory.sources: \"host\" is no TOML value: string values must be quoted, \
             expected literal string; write it like [\"budget\", \"cgroup\", \"host\"]",
        ),
        (
            "KURULTAI_MEMORY_WARNING",
            "0.99",
            "env KURULTAI_MEMORY_WARNING: memory.warning: memory.warning (0.99) is not below memory.critical (0.85); \
             order them warning < critical < reject < emergency",
        ),
    ] {
        assert_eq!(refused("", &[(name, value)]), [expected], "{name}={value}");
    }
}

#[test]
fn what_is_odd_but_possible_is_a_warning() {
    for (text, variables, host_mb, expected) in [
        ("", &[][..], Some(4096), &[][..]),
        ("[memory]\nlimit_mb = 2048", &[], None, &[]),
        ("", &[], Some(512), &["k.toml: memory.limit_mb: 1024 MB is more than the 512 MB this machine has"]),
        (
            "[memory]\nmin_free_mb = 4096",
            &[],
            Some(2048),
            &["k.toml:2: memory.min_free_mb: 4096 MB is never free on a machine with 2048 MB"],
        ),
        ("[memory]\nlimit_mb = 16\n[workers]\nsoft_limit_mb = 4\nhard_limit_mb = 8", &[], None, &[]),
        (
            "[memory]\nlimit_mb = 15\n[workers]\nmax = 1\nsoft_limit_mb = 4\nhard_limit_mb = 8",
            &[],
            None,
            &["k.toml:2: memory.limit_mb: 15 MB may not hold the daemon itself, which the limit counts as well"],
        ),
        (
            "[workers]\nmax = 3",
            &[],
            None,
            &["k.toml:2: workers.max: 3 workers of up to 512 MB are 1536 MB, above memory.limit_mb (1024)"],
        ),
        (
            "[agents.a]\ncommand = [\"a\"]\nhard_limit_mb = 2000",
            &[],
            None,
            &["k.toml:3: agents.a.hard_limit_mb: 2000 MB is more than memory.limit_mb (1024) allows in all"],
        ),
        (
            "[queue]\nmax_depth = 100",
            &[],
            None,
            &["k.toml:2: queue.max_depth: the limits leave room for 25 of 100 tasks"],
        ),
        (
            "[queue]\nmax_depth = 10",
            &[],
            None,
            &["k.toml:2: queue.max_depth: of 10 tasks, at most 5 may wait at one priority"],
        ),
        (
            "[queue]\npriority_limits = { low = 9 }",
            &[],
            None,
            &["k.toml:2: queue.priority_limits: a limit of 9 is above queue.max_depth (5) and never reached"],
        ),
        ("[queue]\nmax_depth = 3", &[], None, &[]),
        (
            "",
            &[("KURULTAI_HEARTBEAT_INTERVAL_MS", "60000")],
            None,
            &[
                "env KURULTAI_HEARTBEAT_INTERVAL_MS: schedules: no schedule has heartbeat priority, so this sets nothing",
            ],
        ),
        (
            "",
            &[("KURULTAI_QUEUE_DEPTH", "4"), ("KURULTAI_QUEUE_MAX_DEPTH", "3")],
            None,
            &["env KURULTAI_QUEUE_DEPTH: queue.max_depth: is ignored: KURULTAI_QUEUE_MAX_DEPTH is set and differs"],
        ),
    ] {
        let warnings = warnings(text, variables, host_mb);
        let without_fix: Vec<&str> = warnings.iter().map(|warning| warning.split("; ").next().unwrap()).collect();
        assert_eq!(without_fix, expected, "{text} {variables:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("latin1"), b"[daemon]\nuser = \"\xe4\"").unwrap();
    std::fs::write(path("large"), vec![b'#'; FILE_MAX as usize + 1]).unwrap();
    std::fs::write(path("good"), "[queue]\nmax_depth = 2").unwrap();
    for (name, expected) in [
        ("missing", "cannot be read: No such file"),
        ("latin1", "line 2 is not UTF-8"),
        ("large", "is larger than 1048576 bytes"),
        ("", "cannot be read: Is a directory"),
    ] {
        let error = load(&path(name), [], None).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert_eq!(load(&path("good"), [], None).unwrap().config.queue.max_depth, 2);
}
