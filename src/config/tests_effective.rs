//! What is taken: defaults, origins, the printed form, the shipped file, and reloads.

use std::collections::BTreeSet;

use serde_json::Value;

use super::keys::of_section;
use super::tests::{FILE, env, good, good_with};
use super::*;

const EVERYTHING: &str = r#"
[daemon]
user = "kur\"ul\\tai"
log_level = "trace"
[gateway]
listen = ""
allowed_hosts = ["box.example.org", "[::1]:80"]
[memory]
warning = 0.5
critical = 1e-0
sources = ["host"]
[queue]
max_depth = 0x10
priority_limits = { low = 1 }
[agents."a.b"]
command = ["/bin/sh", "-c", "echo 'a\tb' \"é\" \\ \n\u0001\u007f"]
mode = "persistent"
runtime = "node"
cwd = "/srv"
user = "nobody"
env = { "odd.name" = "x # y", LANG = "" }
env_pass = []
soft_limit_mb = 100
hard_limit_mb = 200
task_timeout_s = 5
max_workers = 1
breaker = "b"
[agents.minimal]
command = ["wc"]
[[schedules]]
name = "s.1"
agent = "minimal"
priority = "LOW"
payload = { "a b" = [1, 2.0, -3e50, true, "t", {}], when = 1979-05-27T07:32:00Z }
[[schedules]]
name = "s.2"
agent = "a.b"
payload = 5
[breakers.b]
window_s = 7
"#;

/// [`EVERYTHING`] with levels that are in order.
fn everything() -> String {
    EVERYTHING.replace("critical = 1e-0", "critical = 6e-1")
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = good("");
    assert_eq!(config, Config::default());
    assert_eq!(config.daemon.state_dir, Path::new("/var/lib/kurultai"));
    assert_eq!(config.gateway.listen_address(), Some("127.0.0.1:7700".parse().unwrap()));
    assert_eq!(config.memory.sources, [Source::Budget, Source::Cgroup, Source::Host]);
    assert_eq!((config.memory.mode, config.memory.limit_mb), (Mode::Hard, 1024));
    assert_eq!(config.workers.restart_backoff_ms, [1000, 2000, 4000, 8000]);
    assert_eq!((config.workers.soft_limit_mb, config.workers.hard_limit_mb), (300, 512));
    assert!(config.gc_on_pressure && config.agents.is_empty() && config.schedules.is_empty());
}

#[test]
fn the_table_of_keys_and_the_types_name_the_same_fields() {
    let config = good_with(&everything(), &[]).config;
    let tree = serde_json::to_value(&config).unwrap();
    for (section, values) in tree.as_object().unwrap() {
        let item = match (section.as_str(), values) {
            ("gc_on_pressure", _) => continue,
            ("agents" | "breakers", items) => items.as_object().unwrap().values().next().unwrap(),
            ("schedules", items) => &items[0],
            (_, values) => values,
        };
        let fields: BTreeSet<&str> = item.as_object().unwrap().keys().map(String::as_str).collect();
        let keys: BTreeSet<&str> = of_section(section).map(Key::field).collect();
        assert_eq!(fields, keys, "[{section}]");
    }
    let paths: BTreeSet<&str> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(paths.len(), KEYS.len(), "a path is in the table twice");
}

#[test]
fn every_example_of_the_table_is_taken_and_every_default_is_one() {
    for key in KEYS {
        let value = toml::de::DeValue::parse(key.example).unwrap_or_else(|error| panic!("{}: {error}", key.path));
        assert!(value::check(key, &value).is_ok(), "{}: the example {} is refused", key.path, key.example);
    }
}

#[test]
fn the_bounds_of_every_number_fit_its_field_and_one_beyond_is_refused() {
    let around = |path: &str, setting: &str| {
        let field = setting.split_once(" = ").map_or("", |(field, _)| field);
        let agent = |more: &str| format!("[agents.a]\ncommand = [\"a\"]\n{more}\n");
        let room = [("task_timeout_s", "max_task_timeout_s = 604800"), ("soft_limit_mb", "hard_limit_mb = 1048576")];
        let room = room.into_iter().find(|(name, _)| *name == field).map_or("", |(_, more)| more);
        match path.split('.').next().unwrap() {
            "agents" if field == "task_timeout_s" => format!("[workers]\n{room}\n{}", agent(setting)),
            "agents" => agent(&format!("{setting}\n{room}")),
            "schedules" => format!("{}[[schedules]]\nname = \"s\"\nagent = \"a\"\n{setting}", agent("")),
            "breakers" => format!("[breakers.b]\n{setting}"),
            "workers" if field == "max_task_timeout_s" => format!("[workers]\ntask_timeout_s = 1\n{setting}"),
            section => format!("[{section}]\n{setting}\n{room}"),
        }
    };
    let mut seen = 0;
    for key in KEYS {
        let write = |number: i64| match key.kind {
            Kind::Integers { .. } => format!("{} = [{number}]", key.field()),
            _ => format!("{} = {number}", key.field()),
        };
        let (Kind::Integer { min, max } | Kind::Integers { min, max }) = key.kind else { continue };
        seen += 1;
        for number in [min, max] {
            good(&around(key.path, &write(number)));
        }
        for number in [min - 1, max + 1] {
            let text = around(key.path, &write(number));
            let error = parse(&text, FILE, [], None).expect_err(&text).to_string();
            assert!(error.contains("out of range"), "{text}: {error}");
        }
    }
    assert!(seen > 35, "only {seen} numbers were tried");
}

#[test]
fn a_depth_alone_leaves_the_limits_of_the_priorities_at_five() {
    for (text, limits) in [
        ("[queue]\nmax_depth = 20", [5, 5, 5, 5, 5]),
        ("[queue]\nmax_depth = 2", [5, 5, 5, 5, 5]),
        ("[queue]\npriority_limits = { high = 9, heartbeat = 0 }", [5, 9, 5, 5, 0]),
        ("[queue]\npriority_limits.low = 1", [5, 5, 5, 1, 5]),
    ] {
        assert_eq!(good(text).queue.priority_limits.in_order(), limits, "{text}");
    }
}

#[test]
fn listening_beyond_loopback_wants_a_token_and_nothing_else_does() {
    let token = "token_file = \"/etc/token\"\n";
    for (listen, alone) in [
        ("", true),
        ("127.0.0.1:0", true),
        ("127.9.9.9:80", true),
        ("[::1]:7700", true),
        ("[::ffff:127.0.0.1]:80", true),
        ("0.0.0.0:7700", false),
        ("[::]:7700", false),
        ("10.0.0.1:7700", false),
    ] {
        let text = format!("[gateway]\nlisten = \"{listen}\"\n");
        assert_eq!(parse(&text, FILE, [], None).is_ok(), alone, "{listen:?} without a token");
        assert_eq!(good(&format!("{text}{token}")).gateway.listen_address().is_none(), listen.is_empty(), "{listen:?}");
    }
}

#[test]
fn a_schedule_is_skippable_by_its_priority_unless_it_says() {
    for (more, priority, skippable) in [
        ("", Priority::Heartbeat, true),
        ("priority = 4", Priority::Heartbeat, true),
        ("priority = \"Normal\"", Priority::Normal, false),
        ("priority = \"0\"", Priority::Critical, false),
        ("priority = 3\nskippable = true", Priority::Low, true),
        ("skippable = false", Priority::Heartbeat, false),
    ] {
        let text = format!("[agents.a]\ncommand = [\"a\"]\n[[schedules]]\nname = \"s\"\nagent = \"a\"\n{more}");
        let schedule = &good(&text).schedules[0];
        assert_eq!((schedule.priority, schedule.skippable), (priority, skippable), "{more}");
    }
}

#[test]
fn a_payload_is_json_whatever_it_was_in_toml() {
    for (toml, json) in [
        ("{}", "{}"),
        ("\"x\"", "\"x\""),
        ("{ b = 1, a = [true, 2.5] }", r#"{"a":[true,2.5],"b":1}"#),
        ("1979-05-27", "\"1979-05-27\""),
        ("0xff", "255"),
    ] {
        let text = format!("[agents.a]\ncommand=[\"a\"]\n[[schedules]]\nname=\"s\"\nagent=\"a\"\npayload = {toml}");
        assert_eq!(good(&text).schedules[0].payload, json, "{toml}");
    }
}

#[test]
fn limits_of_an_agent_follow_the_workers_and_a_soft_limit_never_passes_the_hard_one() {
    for (workers, agent, (soft, hard, timeout)) in [
        ("", "", (300, 512, 600)),
        ("", "hard_limit_mb = 100", (100, 100, 600)),
        ("", "soft_limit_mb = 400\ntask_timeout_s = 5", (400, 512, 5)),
        ("hard_limit_mb = 200", "", (200, 200, 600)),
        ("hard_limit_mb = 200\nsoft_limit_mb = 150", "hard_limit_mb = 800", (150, 800, 600)),
    ] {
        let config = good(&format!("[workers]\n{workers}\n[agents.a]\ncommand = [\"a\"]\n{agent}"));
        let agent_of = &config.agents["a"];
        let limits = (config.soft_limit_mb(agent_of), config.hard_limit_mb(agent_of), config.task_timeout_s(agent_of));
        assert_eq!(limits, (soft, hard, timeout), "{workers} / {agent}");
    }
}

#[test]
fn a_default_soft_limit_gives_way_to_a_lower_hard_one() {
    let config = good_with("", &[("KURULTAI_WORKER_MEMORY_MB", "256")]).config;
    assert_eq!((config.workers.soft_limit_mb, config.workers.hard_limit_mb), (256, 256));
    assert_eq!(good("[workers]\nhard_limit_mb = 301").workers.soft_limit_mb, 300);
}

#[test]
fn every_key_of_a_section_can_be_set_by_its_variable() {
    let base = Config::default();
    let mut text = String::new();
    for key in KEYS.iter().filter(|key| !key.is_pattern()) {
        let name = key.env_name().unwrap();
        let value = match key.kind {
            Kind::Text(_) | Kind::Choice(_) => key.example.trim_matches('"'),
            _ => key.example,
        };
        let loaded = good_with("", &[(&name, value)]);
        assert_eq!(loaded.config, base, "{name}={value}");
        assert_eq!(loaded.origins.of(key.path), &Origin::Env { name: name.as_str().into() }, "{name}");
        text.push_str(&name);
    }
    assert!(KEYS.iter().filter(|key| key.is_pattern()).all(|key| key.env_name().is_none()));
    assert!(text.contains("KURULTAI_FEATURES_ROLLOUT_PERCENT"));
}

#[test]
fn variables_win_over_the_file_and_exact_names_over_those_of_the_plan() {
    let seconds = "[agents.a]\ncommand = [\"a\"]\n[[schedules]]\nname = \"beat\"\nagent = \"a\"\n\
                   [[schedules]]\nname = \"other\"\nagent = \"a\"\npriority = \"low\"\n";
    /// File, variables, where to look, and what is there.
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], fn(&Config) -> String, &'a str);
    let table: &[Row] = &[
        ("[queue]\nmax_depth = 2", &[("KURULTAI_QUEUE_MAX_DEPTH", " 3 ")], |c| c.queue.max_depth.to_string(), "3"),
        ("[queue]\nmax_depth = 2", &[("KURULTAI_QUEUE_DEPTH", "4")], |c| c.queue.max_depth.to_string(), "4"),
        (
            "",
            &[("KURULTAI_QUEUE_DEPTH", "nonsense"), ("KURULTAI_QUEUE_MAX_DEPTH", "3")],
            |c| c.queue.max_depth.to_string(),
            "3",
        ),
        ("", &[("KURULTAI_MAX_WORKERS", "7")], |c| c.workers.max.to_string(), "7"),
        ("", &[("KURULTAI_MEMORY_LIMIT_MB", "700")], |c| c.memory.limit_mb.to_string(), "700"),
        ("", &[("KURULTAI_WORKER_MEMORY_MB", "400")], |c| c.workers.hard_limit_mb.to_string(), "400"),
        ("", &[("KURULTAI_ENFORCEMENT_MODE", "soft")], |c| format!("{:?}", c.memory.mode), "Soft"),
        ("", &[("FF_MEMORY_GOVERNANCE", "0")], |c| c.features.memory_governance.to_string(), "false"),
        ("", &[("FF_WORKER_POOL", "false")], |c| c.features.worker_pool.to_string(), "false"),
        ("", &[("FF_CIRCUIT_BREAKERS", "false")], |c| c.features.circuit_breakers.to_string(), "false"),
        ("", &[("KURULTAI_GC_ON_PRESSURE", "false")], |c| c.gc_on_pressure.to_string(), "false"),
        ("", &[("KURULTAI_GATEWAY_LISTEN", "")], |c| format!("{:?}", c.gateway.listen), "\"\""),
        (
            "",
            &[("KURULTAI_QUEUE_PRIORITY_LIMITS", "{ low = 1 }")],
            |c| format!("{:?}", c.queue.priority_limits.in_order()),
            "[5, 5, 5, 1, 5]",
        ),
        (
            seconds,
            &[("KURULTAI_HEARTBEAT_INTERVAL_MS", "60000")],
            |c| format!("{} {}", c.schedules[0].every_s, c.schedules[1].every_s),
            "60 300",
        ),
    ];
    for (text, variables, look, expected) in table {
        assert_eq!(look(&good_with(text, variables).config), *expected, "{text} {variables:?}");
    }
    for name in keys::NOT_OURS.into_iter().chain(["FF_OTHER", "PATH", "kurultai_x"]) {
        assert_eq!(good_with("", &[(name, "nonsense")]).config, Config::default(), "{name}");
    }
}

#[test]
fn a_good_variable_mends_a_key_but_not_the_file() {
    let error = parse("[workers]\nmax = 0", FILE, env(&[("KURULTAI_WORKERS_MAX", "3")]), None).unwrap_err();
    assert_eq!(error.problems.len(), 1, "{error}");
}

#[test]
fn origins_know_default_file_and_environment() {
    let loaded = good_with(&everything(), &[("KURULTAI_MAX_WORKERS", "1")]);
    for (path, origin) in [
        ("daemon.state_dir", "default"),
        ("daemon.user", "file:3"),
        ("workers.max", "env KURULTAI_MAX_WORKERS"),
        ("agents.a.b.command", "file:16"),
        ("agents.minimal.mode", "default"),
        ("schedules.s.2.payload", "file:38"),
        ("breakers.b.window_s", "file:40"),
        ("no.such.key", "default"),
    ] {
        assert_eq!(loaded.origins.of(path).to_string(), origin, "{path}");
    }
}

#[test]
fn what_is_printed_loads_as_the_same_configuration() {
    for text in [String::new(), everything()] {
        let loaded = good_with(&text, &[("KURULTAI_WORKERS_MAX", "1")]);
        let printed = loaded.print();
        assert_eq!(good(&printed), loaded.config, "{printed}");
    }
    let off = good_with("", &[("KURULTAI_GC_ON_PRESSURE", "0")]);
    let again = good_with(&off.print(), &[("KURULTAI_GC_ON_PRESSURE", "0")]);
    assert_eq!(again.config, off.config);
}

#[test]
fn what_is_printed_has_every_key_and_its_origin() {
    let printed = good_with(&everything(), &[("KURULTAI_MAX_WORKERS", "1")]).print();
    for line in [
        "# file: k.toml",
        "max = 1                                  # env KURULTAI_MAX_WORKERS",
        "warning = 0.5                            # file:9",
        "state_dir = \"/var/lib/kurultai\"          # default",
        "priority_limits = { critical = 5, high = 5, normal = 5, low = 1, heartbeat = 5 } # file:14",
        "[agents.\"a.b\"]",
        "# hard_limit_mb                          # default: workers.hard_limit_mb",
        "priority = \"low\"                         # file:33",
        "# KURULTAI_GC_ON_PRESSURE = true         # default; no key of the file",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "no line {line:?} in\n{printed}");
    }
    for key in KEYS {
        let named = |line: &str| line.trim_start_matches("# ").split(' ').next() == Some(key.field());
        assert!(printed.lines().any(named), "{} is not printed", key.path);
    }
}

#[test]
fn the_shipped_file_loads_and_its_comments_are_the_defaults() {
    let shipped = include_str!("../../conf/kurultai.toml");
    assert_eq!(good(shipped), Config::default());
    let setting = |line: &str| {
        let line = line.strip_prefix('#')?;
        line.starts_with(|c: char| c.is_ascii_lowercase() || c == '[').then(|| line.to_string())
    };
    let live: Vec<String> = shipped.lines().map(|line| setting(line).unwrap_or_else(|| line.to_string())).collect();
    let loaded = good_with(&live.join("\n"), &[]);
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    let sections = Config {
        agents: config.agents.clone(),
        schedules: config.schedules.clone(),
        breakers: config.breakers.clone(),
        ..Config::default()
    };
    assert_eq!(config, sections, "a commented value is not the default");
    assert_eq!((config.agents.len(), config.schedules.len(), config.breakers.len()), (3, 1, 1));
    for key in KEYS {
        let set = live.iter().any(|line| line.strip_prefix(key.field()).is_some_and(|rest| rest.starts_with(" = ")));
        assert!(set, "{} is not in the shipped file", key.path);
    }
    for section in ["schedules", "breakers"] {
        for key in of_section(section).filter(|key| key.absent == Absent::Default) {
            assert!(live.contains(&format!("{} = {}", key.field(), key.example)), "{} differs", key.path);
        }
    }
}

#[test]
fn a_reload_takes_what_is_marked_and_names_the_rest() {
    for key in KEYS.iter().filter(|key| !key.is_pattern()) {
        let mut tree = serde_json::to_value(Config::default()).unwrap();
        let value = &mut tree[key.section()][key.field()];
        *value = match (&*value, key.kind) {
            (_, Kind::Choice(among)) => Value::from(*among.iter().find(|choice| *value != **choice).unwrap()),
            (Value::Bool(flag), _) => Value::Bool(!flag),
            (Value::Number(number), Kind::Ratio { .. }) => Value::from(number.as_f64().unwrap() - 0.01),
            (Value::Number(number), _) => Value::from(number.as_i64().unwrap() + 1),
            (Value::String(_), _) => Value::from("/other"),
            (Value::Array(_), Kind::Choices(_)) => Value::from(vec!["host"]),
            (Value::Array(_), Kind::Integers { .. }) => Value::from(vec![5]),
            (Value::Array(_), _) => Value::from(vec!["x"]),
            (other, _) => {
                let mut levels = other.clone();
                levels["low"] = Value::from(1);
                levels
            }
        };
        let new: Config = serde_json::from_value(tree).unwrap();
        let (old, wanted) = (Config::default(), new.clone());
        assert_ne!(old, wanted, "{} was not changed", key.path);
        let (effective, report) = reload(&old, new);
        let path = vec![key.path.to_string()];
        let expected = if key.reload { (path, vec![]) } else { (vec![], path) };
        assert_eq!((report.changed, report.needs_restart), expected, "{}", key.path);
        assert_eq!(effective, if key.reload { wanted } else { old }, "{}", key.path);
    }
}

#[test]
fn exactly_the_documented_keys_are_marked_for_reload() {
    let marked: Vec<&str> = KEYS.iter().filter(|key| key.reload && !key.is_pattern()).map(|key| key.path).collect();
    let documented = "daemon.log_level daemon.drain_timeout_s gateway.max_body_mb gateway.submit_rate_per_s memory.mode \
        memory.limit_mb memory.min_free_mb memory.check_interval_ms memory.warning memory.critical memory.reject \
        memory.emergency memory.hysteresis queue.max_depth queue.priority_limits workers.max workers.idle_timeout_s \
        workers.task_timeout_s workers.recycle_after_tasks spool.retention_s spool.min_free_mb";
    assert_eq!(marked, documented.split_whitespace().collect::<Vec<_>>());
    assert!(KEYS.iter().filter(|key| key.is_pattern()).all(|key| key.reload), "a part of an agent does not reload");
}

#[test]
fn a_reload_adds_changes_and_removes_agents_schedules_and_breakers() {
    let old = good(
        "[agents.gone]\ncommand = [\"a\"]\n[agents.kept]\ncommand = [\"a\"]\n[agents.other]\ncommand = [\"a\"]\n\
         [breakers.b]\n[[schedules]]\nname = \"s\"\nagent = \"gone\"\n[[schedules]]\nname = \"t\"\nagent = \"kept\"\n",
    );
    let new = good(
        "[agents.new]\ncommand = [\"a\"]\n[agents.kept]\ncommand = [\"a\"]\n[agents.other]\ncommand = [\"b\"]\n\
         [breakers.b]\nwindow_s = 5\n\
         [[schedules]]\nname = \"t\"\nagent = \"kept\"\n[[schedules]]\nname = \"s\"\nagent = \"kept\"\n",
    );
    let (effective, report) = reload(&old, new.clone());
    assert_eq!(effective, new);
    assert_eq!(report.changed, ["agents.gone", "agents.new", "agents.other", "schedules.s", "breakers.b"]);
    assert_eq!(report.needs_restart, [""; 0]);
    assert_eq!(reload(&new, new.clone()), (new, ReloadReport::default()));
}

#[test]
fn a_reload_never_mixes_two_valid_configurations_into_an_invalid_one() {
    let old = good("[agents.a]\ncommand = [\"a\"]\n");
    let text = "[workers]\nhard_limit_mb = 900\ntask_timeout_s = 5000\nmax_task_timeout_s = 9000\n\
                [agents.a]\ncommand = [\"a\"]\nsoft_limit_mb = 800\ntask_timeout_s = 7000\n";
    let new = good(text);
    let (effective, report) = reload(&old, new.clone());
    assert_eq!(effective.workers.task_timeout_s, 1800);
    let agent = &effective.agents["a"];
    assert_eq!((agent.soft_limit_mb, agent.task_timeout_s), (Some(512), Some(1800)));
    assert_eq!(report.changed, ["workers.task_timeout_s", "agents.a"]);
    let restart = ["workers.task_timeout_s", "workers.max_task_timeout_s", "workers.hard_limit_mb", "agents.a"];
    assert_eq!(report.needs_restart, restart);

    let printed = Loaded { config: effective.clone(), origins: Origins::new(FILE), warnings: vec![] }.print();
    assert_eq!(good(&printed), effective);
    let (again, second) = reload(&effective, new);
    assert_eq!((again, second.changed), (effective, vec![]), "the same file again changes nothing");
}
