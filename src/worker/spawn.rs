//! From an agent's settings to a running process.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::core::ids::{TaskId, WorkerId};
use crate::core::settings::{AgentSettings, Runtime};
use crate::core::task::{Assignment, Payload, Stored};
use crate::memory::cgroup::WorkerGroup;
use crate::spool::Files;
use crate::sys::launch::{Launch, LaunchError, Launched, Step, launch};
use crate::sys::pipe;
use crate::sys::process::Child;
use crate::sys::user::{self, User};

use super::room::Room;

/// Where programs are looked for when neither the agent nor the daemon has a PATH.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";
const MIB: u64 = 1024 * 1024;

/// A process that has just started, with our ends of its pipes.
pub struct Spawned {
    pub child: Child,
    /// `None` if its input is a file.
    pub stdin: Option<PipeWriter>,
    pub stdout: PipeReader,
    pub stderr: PipeReader,
    /// The user it runs as, if not the daemon's.
    pub user: Option<User>,
    pub cgroup: Option<WorkerGroup>,
}

/// Starts an agent's program, with the task it starts with if it is a oneshot one. The error says what failed and what
/// to do.
pub fn spawn(
    room: &mut Room,
    worker: WorkerId,
    agent: &AgentSettings,
    task: Option<&Assignment>,
) -> Result<Spawned, String> {
    let user = agent.user.as_deref().map(|name| find_user(agent, name)).transpose()?;
    let arguments = arguments(agent)?;
    let environment = environment(worker, agent, task);
    let path = search_path(&environment);
    let programs = programs(&agent.command[0], &path)?;
    let environment = environment
        .into_iter()
        .map(|(name, value)| terminated([name.as_bytes(), value.as_bytes()].join(&b'='), agent, "env"))
        .collect::<Result<Vec<_>, _>>()?;
    let directory = terminated(agent.cwd.clone().unwrap_or_else(|| "/".into()).into(), agent, "cwd")?;

    let (input, stdin) = Input::open(&room.files, agent, task, user.as_ref())?;
    let (stdout, stdout_theirs) = pipe::to_us().map_err(|error| cannot_start(agent, &error))?;
    let (stderr, stderr_theirs) = pipe::to_us().map_err(|error| cannot_start(agent, &error))?;
    let cgroup = if agent.has_kernel_limit { room.cgroups.create(worker, agent.hard_limit_bytes) } else { None };
    let launched = launch(&Launch {
        programs: &programs,
        arguments: &arguments,
        environment: &environment,
        directory: &directory,
        stdin: input.as_fd(),
        stdout: stdout_theirs.as_fd(),
        stderr: stderr_theirs.as_fd(),
        user: user.as_ref(),
        oom_score_adj: agent.oom_score_adj,
        cgroup: cgroup.as_ref().and_then(WorkerGroup::join),
        data_limit: agent.data_limit_bytes,
        mark: room.instance.mark(worker.0),
    });
    // Not before: until then this thread has to stay in the group it sits in.
    room.cgroups.ask_for_seat();
    match launched {
        Ok(Launched { child, cgroup_error }) => {
            if let Some(error) = cgroup_error {
                room.cgroups.warn(&format!("{worker} cannot join its cgroup: {error}"));
            }
            Ok(Spawned { child, stdin, stdout, stderr, user, cgroup })
        }
        Err(error) => {
            cgroup.into_iter().for_each(|group| room.cgroups.remove(group));
            Err(explain(agent, &path, &error))
        }
    }
}

/// What the process reads: the payload's file itself, or the other end of a pipe.
enum Input {
    File(File),
    Pipe(PipeReader),
}

impl Input {
    fn open(
        files: &Files,
        agent: &AgentSettings,
        task: Option<&Assignment>,
        user: Option<&User>,
    ) -> Result<(Input, Option<PipeWriter>), String> {
        if let Some(task) = task
            && let Payload::File(stored) = task.spec.payload
        {
            // It reads the descriptor; the owner matters only to a program that opens /dev/stdin anew.
            give_payload(files, task, user);
            let file = files.open_payload(task.task, stored).map_err(|error| {
                let path = files.payload_path(task.task);
                format!("cannot open the payload {}: {error}; submit the task again", path.display())
            })?;
            return Ok((Input::File(file), None));
        }
        let (reader, writer) = pipe::from_us().map_err(|error| cannot_start(agent, &error))?;
        Ok((Input::Pipe(reader), Some(writer)))
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Input::File(file) => file.as_fd(),
            Input::Pipe(reader) => reader.as_fd(),
        }
    }
}

/// Makes the payload file readable for the worker's user, who is not the daemon's.
pub fn give_payload(files: &Files, task: &Assignment, user: Option<&User>) {
    let Some(user) = user else { return };
    let path = files.payload_path(task.task);
    if let Err(error) = std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)) {
        log::warn!(task:% = task.task; "cannot give {} to uid {}: {error}; the agent cannot read it", path.display(), user.uid);
    }
}

/// All of a payload that lies in its file.
pub fn read_payload(files: &Files, task: TaskId, stored: Stored) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    files.open_payload(task, stored).map_err(io::Error::other)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The payload in a file, for a worker that is given its path. A small one has none yet.
pub fn payload_file(files: &Files, task: &Assignment) -> io::Result<()> {
    if let Payload::Inline(bytes) = &task.spec.payload {
        let mut writer = files.create_payload(task.task)?;
        writer.write_all(bytes)?;
        let _whole = writer.commit()?;
    }
    Ok(())
}

/// Where the program of an agent is looked for, in turn.
///
/// # Errors
///
/// A name that no program can have.
pub fn programs_of(agent: &AgentSettings) -> Result<Vec<PathBuf>, String> {
    let path = search_path(&environment(WorkerId(0), agent, None));
    let directory = Path::new(agent.cwd.as_deref().unwrap_or("/"));
    let programs = programs(&agent.command[0], &path)?;
    Ok(programs.into_iter().map(|program| directory.join(OsString::from_vec(program.into_bytes()))).collect())
}

/// PATH as the worker has it, else the daemon's own.
fn search_path(environment: &[(String, OsString)]) -> OsString {
    let path = variable(environment, "PATH").map(OsString::from);
    path.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| PATH_DEFAULT.into())
}

fn find_user(agent: &AgentSettings, name: &str) -> Result<User, String> {
    match user::lookup(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(format!("there is no user {name:?}: create it or correct agents.{}.user", agent.name)),
        Err(error) => Err(format!("cannot look up the user {name:?} of agents.{}.user: {error}", agent.name)),
    }
}

fn arguments(agent: &AgentSettings) -> Result<Vec<CString>, String> {
    let mut arguments = agent.command.clone();
    if let (Runtime::Node, true) = (agent.runtime, is_node(&agent.command[0])) {
        arguments.insert(1, heap_option(agent));
    }
    arguments.into_iter().map(|argument| terminated(argument.into(), agent, "command")).collect()
}

fn is_node(program: &str) -> bool {
    matches!(Path::new(program).file_name().and_then(OsStr::to_str), Some("node" | "nodejs"))
}

fn heap_option(agent: &AgentSettings) -> String {
    format!("--max-old-space-size={}", agent.hard_limit_bytes / MIB)
}

/// The whole environment: what is passed on, then what is configured, then ours, the later over the earlier.
fn environment(worker: WorkerId, agent: &AgentSettings, task: Option<&Assignment>) -> Vec<(String, OsString)> {
    let mut environment = Vec::with_capacity(agent.env.len() + agent.env_pass.len() + 7);
    for name in &agent.env_pass {
        if let Some(value) = std::env::var_os(name) {
            set(&mut environment, name, value);
        }
    }
    for (name, value) in &agent.env {
        set(&mut environment, name, value);
    }
    if agent.runtime == Runtime::Node && !is_node(&agent.command[0]) {
        // In front: what the operator wrote there himself has the last word.
        let mut options = OsString::from(heap_option(agent));
        if let Some(own) = variable(&environment, "NODE_OPTIONS") {
            options.push(" ");
            options.push(own);
        }
        set(&mut environment, "NODE_OPTIONS", options);
    }
    set(&mut environment, "KURULTAI_WORKER_ID", worker.to_string());
    set(&mut environment, "WORKER_ID", worker.to_string());
    set(&mut environment, "KURULTAI_AGENT", &*agent.name);
    if let Some(task) = task {
        set(&mut environment, "KURULTAI_TASK_ID", task.task.to_string());
        set(&mut environment, "KURULTAI_REQUEST_ID", &*task.spec.request_id);
        set(&mut environment, "KURULTAI_ATTEMPT", task.attempt.to_string());
        set(&mut environment, "KURULTAI_PRIORITY", task.spec.priority.name());
    }
    environment
}

fn set(environment: &mut Vec<(String, OsString)>, name: &str, value: impl Into<OsString>) {
    let value = value.into();
    match environment.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => environment.push((name.to_owned(), value)),
    }
}

fn variable<'a>(environment: &'a [(String, OsString)], name: &str) -> Option<&'a OsStr> {
    environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
}

/// The paths execvp(3) would try: the name itself if it has a slash (relative to the worker's directory), else the name
/// in each directory of PATH.
fn programs(program: &str, path: &OsStr) -> Result<Vec<CString>, String> {
    let nul = |_| format!("the program {program:?} has a NUL byte in its name");
    if program.contains('/') {
        return Ok(vec![CString::new(program).map_err(nul)?]);
    }
    if program.is_empty() {
        return Err("the program's name is empty: set the first word of command".to_owned());
    }
    std::env::split_paths(path)
        .map(|directory| CString::new(directory.join(program).into_os_string().into_vec()).map_err(nul))
        .collect()
}

fn terminated(bytes: Vec<u8>, agent: &AgentSettings, key: &str) -> Result<CString, String> {
    CString::new(bytes)
        .map_err(|_| format!("agents.{}.{key} has a NUL byte, which no program can be given", agent.name))
}

fn explain(agent: &AgentSettings, path: &OsStr, failure: &LaunchError) -> String {
    let (program, name, error) = (&agent.command[0], &agent.name, &failure.error);
    match (failure.step, error.raw_os_error()) {
        (Step::Exec, Some(libc::ENOENT)) if program.contains('/') => format!(
            "cannot start {program}: {error}; neither it nor the interpreter its first line names may be missing: see agents.{name}.command"
        ),
        (Step::Exec, Some(libc::ENOENT)) => format!(
            "cannot start {program}: not found in PATH ({}): install it, or give its full path in agents.{name}.command",
            path.display()
        ),
        (Step::Exec, Some(libc::EACCES)) => format!(
            "cannot start {program}: {error}; it must be executable (chmod +x) and its directories passable for the worker's user"
        ),
        (Step::Exec, Some(libc::ENOEXEC)) => {
            format!("cannot start {program}: {error}; it is no program for this machine, or a script without a #! line")
        }
        (Step::Exec, _) => format!("cannot start {program}: {error}; see agents.{name}.command"),
        (Step::Directory, _) => format!(
            "cannot start {program}: its directory {}: {error}; see agents.{name}.cwd",
            agent.cwd.as_deref().unwrap_or("/")
        ),
        (Step::User, _) => format!(
            "cannot start {program} as {}: {error}; only a daemon that runs as root can change users: see agents.{name}.user",
            agent.user.as_deref().unwrap_or_default()
        ),
        (Step::DataLimit, _) => format!(
            "agent {} cannot be limited to {} MiB of data: {error}; lower agents.{}.data_limit_mb, or start the daemon as root",
            agent.name,
            agent.data_limit_bytes.unwrap_or(0) >> 20,
            agent.name
        ),
        (Step::Process | Step::Descriptors, _) => cannot_start(agent, error),
    }
}

fn cannot_start(agent: &AgentSettings, error: &io::Error) -> String {
    let what_to_do = match error.raw_os_error() {
        Some(libc::EMFILE) => "the daemon has no descriptors left: raise its RLIMIT_NOFILE or lower workers.max",
        Some(libc::ENFILE) => "the host has no descriptors left: see fs.file-max",
        Some(libc::EAGAIN) => {
            "no more processes are allowed: see RLIMIT_NPROC, pids.max of its cgroup and kernel.pid_max"
        }
        Some(libc::ENOMEM) => "the host has no memory left for a process",
        Some(_) | None => "the system refused",
    };
    format!("cannot start {}: {error}; {what_to_do}", agent.command[0])
}
