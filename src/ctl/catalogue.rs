//! Every command and option there is: the parser, the help, the completions' test and the manual's test read this list.
//!
//! Owns names, operands and one-line meanings. May import nothing. Must never know how a command is carried out.

/// One command, such as `tasks list`.
pub struct CommandSpec {
    pub name: &'static str,
    /// As shown in the usage line, such as `AGENT [FILE|-]`.
    pub operands: &'static str,
    pub operands_min: usize,
    pub operands_max: usize,
    pub about: &'static str,
    pub options: &'static [OptionSpec],
}

pub struct OptionSpec {
    /// Without the dashes.
    pub name: &'static str,
    pub value: ValueSpec,
    pub about: &'static str,
}

/// The placeholder shown is inside.
pub enum ValueSpec {
    None,
    Required(&'static str),
    /// Only as `--name=VALUE`.
    Optional(&'static str),
}

use ValueSpec::{None as Bare, Optional, Required};

const fn option(name: &'static str, value: ValueSpec, about: &'static str) -> OptionSpec {
    OptionSpec { name, value, about }
}

/// Options every command has.
pub const GLOBAL: &[OptionSpec] = &[
    option("socket", Required("PATH"), "the daemon's Unix socket (/run/kurultai/kurultai.sock; KURULTAI_SOCKET)"),
    option("url", Required("URL"), "talk to http://host:port instead (KURULTAI_URL)"),
    option("token-file", Required("PATH"), "file with the access token (KURULTAI_TOKEN_FILE)"),
    option("json", Bare, "print the API's own JSON"),
    option("help", Bare, "explain the command, also -h"),
    option("version", Bare, "print the version, also -V"),
];

const fn command(
    name: &'static str,
    operands: &'static str,
    count: (usize, usize),
    about: &'static str,
    options: &'static [OptionSpec],
) -> CommandSpec {
    CommandSpec { name, operands, operands_min: count.0, operands_max: count.1, about, options }
}

pub const COMMANDS: &[CommandSpec] = &[
    command(
        "status",
        "",
        (0, 0),
        "memory, queue, workers, breakers and schedules at a glance",
        &[option("watch", Bare, "show it again every second, until interrupted")],
    ),
    command(
        "submit",
        "AGENT [FILE|-]",
        (1, 2),
        "give a task to an agent; the payload is FILE, - for standard input, or empty",
        &[
            option("priority", Required("P"), "critical, high, normal, low, heartbeat, or 0 to 4"),
            option("wait", Optional("S"), "wait for the result, at most S seconds, and print it"),
            option("timeout", Required("S"), "seconds the task may run"),
            option("retries", Required("N"), "run it again after a failure, up to N times"),
            option("idempotency-key", Required("K"), "a second submission with this key is the same task"),
            option("json-payload", Bare, "the payload is JSON, and the agent gets it as such"),
        ],
    ),
    command(
        "tasks list",
        "",
        (0, 0),
        "tasks, newest first",
        &[
            option("state", Required("S"), "only in these states, such as queued,running"),
            option("agent", Required("A"), "only of this agent"),
            option("limit", Required("N"), "at most N tasks, 1 to 1000 (100)"),
        ],
    ),
    command("tasks show", "ID", (1, 1), "everything about one task", &[]),
    command("tasks cancel", "ID", (1, 1), "cancel a task, running or not", &[]),
    command("tasks result", "ID", (1, 1), "write the result of a finished task to standard output", &[]),
    command("tasks follow", "ID", (1, 1), "print what happens to a task until it ends", &[]),
    command("queue", "", (0, 0), "tasks that wait, in the order they will run", &[]),
    command("workers", "", (0, 0), "worker processes and the memory they hold", &[]),
    command("breakers list", "", (0, 0), "circuit breakers and their state", &[]),
    command("breakers open", "NAME", (1, 1), "force a circuit breaker open", &[]),
    command("breakers close", "NAME", (1, 1), "force a circuit breaker closed", &[]),
    command("memory", "", (0, 0), "memory use against the limits, by source", &[]),
    command("doctor", "", (0, 0), "what is effective on this host, and what holds a worker's limits", &[]),
    command(
        "simulate",
        "",
        (0, 0),
        "what the daemon would do with a load: kurultai-simulate(7)",
        &[
            option("config", Required("FILE"), "the daemon's configuration (/etc/kurultai/kurultai.toml)"),
            option("profile", Required("FILE"), "the load"),
            option("seed", Required("N"), "where chance begins; the same N, the same simulation (1)"),
            option("csv", Bare, "print memory and queue over time as CSV"),
            option("record", Bare, "print a profile made from a running daemon's history"),
        ],
    ),
    command("why", "TASK", (1, 1), "why a task waits, was preempted, killed, refused or retried", &[]),
    command(
        "events",
        "",
        (0, 0),
        "print the daemon's events as they happen, until interrupted",
        &[option("types", Required("A,B"), "only these events, such as TASK_FAILED,CIRCUIT_OPEN")],
    ),
    command("reload", "", (0, 0), "have the daemon read its configuration again", &[]),
    command("drain", "", (0, 0), "have the daemon refuse new work, finish what runs, and stop", &[]),
    command("completions", "bash|zsh|fish", (1, 1), "print a shell's completion script", &[]),
];

pub const SHELLS: [(&str, &str); 3] = [
    ("bash", include_str!("../../scripts/completions/kurultaictl.bash")),
    ("zsh", include_str!("../../scripts/completions/_kurultaictl")),
    ("fish", include_str!("../../scripts/completions/kurultaictl.fish")),
];

/// States a task can be in, as the API spells them; the bool says whether it is over.
pub const STATES: [(&str, bool); 8] = [
    ("queued", false),
    ("running", false),
    ("preempted", false),
    ("completed", true),
    ("failed", true),
    ("cancelled", true),
    ("skipped", true),
    ("evicted", true),
];

/// Variables the client reads, for the manual's test.
#[cfg(test)]
pub const ENVIRONMENT: [&str; 8] =
    ["KURULTAI_SOCKET", "KURULTAI_URL", "KURULTAI_TOKEN_FILE", "NO_COLOR", "COLUMNS", "LC_ALL", "LC_CTYPE", "LANG"];

/// The first words of commands of two words: `tasks`, `breakers`.
pub fn is_group(word: &str) -> bool {
    COMMANDS.iter().any(|command| command.name.split_once(' ').is_some_and(|(group, _)| group == word))
}

pub fn find(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|command| command.name == name)
}

pub fn is_over(state: &str) -> bool {
    STATES.iter().any(|(name, over)| *name == state && *over)
}
