//! Profiles with and without mistakes, the plot, and what is recorded.

use super::super::api::{Task, TaskError};
use super::super::fake::Recorded;
use super::*;
use crate::simulation::load::Spread;

const CONFIG: &str = "[workers]\nmax = 2\n[agents.a]\ncommand = [\"a\"]\n[agents.b]\ncommand = [\"b\"]\n";
const PHASE: &str = "[[phases]]\nname = \"one\"\nduration_s = 60\ninterval_s = 10\n";
const WORK: &str = "run_s = 2\npeak_mb = 50\n";

fn config(more: &str) -> Config {
    config::parse(&format!("{CONFIG}{more}"), "c.toml", [], None).expect("a sound configuration").config
}

fn problems(text: &str, more: &str) -> Vec<String> {
    match profile::parse(text, "p.toml", &config(more)) {
        Ok(load) => panic!("{text}\nis taken: {load:?}"),
        Err(problems) => problems.iter().map(Problem::to_string).collect(),
    }
}

fn load(text: &str) -> Load {
    profile::parse(text, "p.toml", &config("")).unwrap_or_else(|problems| panic!("{text}\n{problems:?}"))
}

#[test]
fn what_a_profile_leaves_out_is_at_its_default() {
    let load = load(&format!("{PHASE}[agents.a]\n{WORK}"));
    let phase = &load.phases[0];
    assert_eq!((phase.submitters, phase.priorities, phase.retries, phase.outside_bytes), (1, [0, 0, 1, 0, 0], 0, 0));
    let work = &load.agents["a"];
    assert_eq!(
        (work.share, work.leak, work.crash, work.gives_checkpoints, work.max_retries),
        (1, 0.0, 0.0, false, None)
    );
    assert_eq!((work.idle, work.ready), (Spread::Fixed(10.0 * 1_048_576.0), Spread::Fixed(0.1)));
    assert_eq!((load.agents.len(), load.host_bytes), (1, None));
}

#[test]
fn defaults_hold_for_the_agents_that_have_no_section() {
    let load = load(&format!("host_memory_mb = 64\n{PHASE}[defaults]\n{WORK}[agents.b]\n{WORK}share = 7\n"));
    assert_eq!(load.agents.values().map(|work| work.share).collect::<Vec<_>>(), [1, 7]);
    assert_eq!(load.host_bytes, Some(64 << 20));
}

#[test]
fn a_quantity_is_spread_as_it_says() {
    for (written, spread) in [
        ("3", Spread::Fixed(3.0)),
        ("0.25", Spread::Fixed(0.25)),
        ("{ min = 1, max = 5.5 }", Spread::Uniform { min: 1.0, max: 5.5 }),
        ("{ p50 = 2, p95 = 8 }", Spread::LogNormal { p50: 2.0, p95: 8.0 }),
        ("{ p95 = 8, p50 = 2, shape = \"lognormal\" }", Spread::LogNormal { p50: 2.0, p95: 8.0 }),
        ("{ p50 = 0, p95 = 8, shape = \"normal\" }", Spread::Normal { p50: 0.0, p95: 8.0 }),
    ] {
        let load = load(&format!("{PHASE}[agents.a]\npeak_mb = 50\nrun_s = {written}\n"));
        assert_eq!(load.agents["a"].run, spread, "{written}");
    }
}

#[test]
fn every_mistake_is_told_with_its_line_and_what_to_do() {
    let beat = "[[schedules]]\nname = \"s\"\nagent = \"b\"\n";
    let agent = format!("[agents.a]\n{WORK}");
    for (text, more, expected) in [
        ("phases = [", "", "p.toml:1: "),
        ("", "", "p.toml:1: phases: there are none; begin each phase with [[phases]]"),
        (&format!("{PHASE}agentz = 3\n{agent}"), "", "p.toml:5: phases.one.agentz: unknown key; did you mean agents?"),
        (
            &format!("hosts = 3\n{PHASE}{agent}"),
            "",
            "p.toml:1: hosts: unknown key; the sections are [[phases]], [agents.NAME] and [defaults]",
        ),
        (
            &format!("{PHASE}agents = -1\n{agent}"),
            "",
            "p.toml:5: phases.one.agents: expected an integer from 0 to 10000, found -1; choose 0 to 10000",
        ),
        (
            &format!("{PHASE}priorities = {{ urgent = 1 }}\n{agent}"),
            "",
            "p.toml:5: phases.one.priorities: \"urgent\" is no priority; the priorities are critical, high, normal, low, heartbeat",
        ),
        (
            &format!("{PHASE}priorities = {{ low = 0 }}\n{agent}"),
            "",
            "p.toml:5: phases.one.priorities: nothing has a weight; give one of critical, high, normal, low, heartbeat a weight, such as { normal = 1 }",
        ),
        (
            &format!("{PHASE}outside_mb = 5\n{agent}"),
            "",
            "p.toml:1: host_memory_mb: is missing, and a phase has outside_mb; add host_memory_mb above the first section",
        ),
        (
            "[[phases]]\nname = \"x\"\nduration_s = 5\n",
            "",
            "p.toml:1: phases.x.interval_s: is missing; add interval_s = 30",
        ),
        (
            &format!("{PHASE}[agents.c]\n{WORK}"),
            "",
            "p.toml:5: agents.c: the configuration has no such agent; add it there, or name another: it has a, b",
        ),
        (
            &format!("{PHASE}[agents.a]\nrun_s = \"2\"\npeak_mb = 50\n"),
            "",
            "p.toml:6: agents.a.run_s: expected a number from 0 to 604800 or a table of how it is spread, found the text \"2\"; write it like 2.5",
        ),
        (
            &format!("{PHASE}[agents.a]\nrun_s = {{ p50 = 3, p95 = 2 }}\npeak_mb = 50\n"),
            "",
            "p.toml:6: agents.a.run_s: p50 and p95: 3 is more than 2; write { min = 1, max = 5 }, or { p50 = 2, p95 = 8 }, or the latter with shape = \"normal\"",
        ),
        (
            &format!("{PHASE}[agents.a]\nrun_s = {{ min = 3, p95 = 4 }}\npeak_mb = 50\n"),
            "",
            "p.toml:6: agents.a.run_s: it does not say how it is spread; write ",
        ),
        (
            &format!("{PHASE}[agents.a]\nrun_s = {{ mean = 3 }}\npeak_mb = 50\n"),
            "",
            "p.toml:6: agents.a.run_s: \"mean\" is no part of a spread; write ",
        ),
        (
            &format!("{PHASE}[agents.a]\n{WORK}idle_mb = 60\n"),
            "",
            "p.toml:5: agents.a.peak_mb: 50 is less than the 60 the process holds without a task; raise it, or lower idle_mb",
        ),
        (
            &format!("{PHASE}[agents.a]\n{WORK}share = 0\n"),
            "",
            "p.toml:1: agents: no agent gets tasks; add [defaults] or [agents.NAME] with a share",
        ),
        (
            &format!("{PHASE}{agent}"),
            beat,
            "p.toml:1: agents.b: schedule s runs it, and the profile does not say what it takes; add [agents.b], with share = 0 if nothing else runs it, or [defaults]",
        ),
        (
            &format!(
                "{PHASE}agents = 10000\n[[phases]]\nname = \"x\"\nduration_s = 604800\nagents = 20\ninterval_s = 1\n{agent}"
            ),
            "",
            "p.toml:1: phases: these would be 12156000 submissions; keep to 10000000",
        ),
    ] {
        let found = problems(text, more);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{text}\n{found:?}\nnot {expected}");
    }
    let many = problems("[[phases]]\nname = 3\nspeed = 1\n[agents.x]\n", "");
    assert_eq!(many.len(), 7, "{many:#?}");
}

/// What is printed for a load on a terminal or into a pipe.
fn shown(terminal: bool, text: &str) -> String {
    shown_on(terminal, |console| console, text)
}

fn shown_on(terminal: bool, change: impl FnOnce(Console) -> Console, text: &str) -> String {
    let (config, load) = (config(""), load(text));
    let figures = simulate(settings(&config), monitor(&config), &load, 1);
    let (console, out) = Recorded::console(terminal);
    let mut console = change(console);
    let simulated = Simulated {
        config_file: Path::new("c.toml"),
        profile_file: Path::new("p.toml"),
        config: &config,
        load: &load,
        seed: 1,
        figures: &figures,
    };
    screen::show(&simulated, &mut console).expect("it is printed");
    out.text()
}

#[test]
fn the_plot_has_a_line_for_each_level_and_fits_the_terminal() {
    let text = format!("{PHASE}{}[agents.a]\nrun_s = 30\npeak_mb = 400\n", PHASE.replace("one", "two"));
    let text = shown(true, &text);
    let (_, plot) = text.split_once("\nMEMORY ").expect("a plot");
    let lines: Vec<&str> = plot.lines().collect();
    assert_eq!(lines.len(), 1 + 16 + 2, "{text}");
    for (line, level) in [(1, "emergency"), (2, "reject"), (3, "critical"), (5, "warning")] {
        assert!(lines[line].ends_with(level) && lines[line].contains("┄┄"), "{level}: {}", lines[line]);
    }
    assert!(lines[18].trim_start().starts_with("one") && lines[18].contains("two"), "{}", lines[18]);
    assert!(plot.contains('█') && plot.lines().all(|line| line.chars().count() <= 80), "{plot}");
    // Two workers of 400 MiB, of 1024: four fifths of the height.
    let height = lines[1..17].iter().filter(|line| line.contains(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'])).count();
    assert!((12..=13).contains(&height), "{height}\n{plot}");
}

#[test]
fn a_terminal_without_utf_8_gets_the_plot_in_ascii() {
    let text = shown_on(true, Console::ascii, &format!("{PHASE}[agents.a]\nrun_s = 30\npeak_mb = 400\n"));
    assert!(text.is_ascii() && text.contains("|---") && text.contains("###"), "{text}");
}

#[test]
fn no_line_is_wider_than_a_terminal_and_a_pipe_gets_no_plot() {
    let text = format!("host_memory_mb = 512\n{PHASE}agents = 30\n[defaults]\n{WORK}crash = 0.1\nmax_retries = 3\n");
    for line in shown(true, &text).lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(!shown(false, &text).contains("MEMORY"));
}

fn task(agent: &str, seconds: u64, mib: u64) -> Task {
    Task {
        agent: agent.to_owned(),
        priority: "low".to_owned(),
        created_at: Some(format!("2026-01-01T00:00:{:02}.000Z", seconds * 2)),
        duration_ms: Some(seconds as f64 * 1000.0),
        peak_rss_bytes: Some(mib << 20),
        max_retries: Some(1),
        ..Task::default()
    }
}

#[test]
fn a_recorded_profile_is_one_that_can_be_simulated() {
    let crashed = TaskError { code: "worker_crashed".to_owned(), ..TaskError::default() };
    let tasks = [
        task("a", 1, 50),
        task("a", 2, 60),
        task("a", 9, 90),
        Task { error: Some(crashed), preemptions: Some(1), ..task("a", 3, 60) },
        task("b", 4, 3),
    ];
    let text = record::profile(&tasks.iter().collect::<Vec<_>>());
    let load = load(&text);
    assert_eq!((load.phases[0].duration, load.phases[0].interval), (Duration::from_secs(20), Duration::from_secs(4)));
    assert_eq!(load.phases[0].priorities, [0, 0, 0, 5, 0]);
    let [a, b] = ["a", "b"].map(|agent| load.agents[agent].clone());
    assert_eq!((a.share, a.run, a.crash), (4, Spread::LogNormal { p50: 2.0, p95: 9.0 }, 0.25), "{text}");
    assert_eq!((a.gives_checkpoints, a.max_retries, b.gives_checkpoints), (true, Some(1), false));
    assert_eq!((b.share, b.run, b.peak), (1, Spread::Fixed(4.0), Spread::Fixed(3.0 * 1_048_576.0)));
    assert_eq!((a.idle, b.idle), (Spread::Fixed(10.0 * 1_048_576.0), b.peak), "never more than a task's peak");
}
