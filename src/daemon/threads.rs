//! Every thread and every channel of the daemon, in one place: name, stack, capacity and why.
//!
//! ```text
//! door ──arrivals──► handlers ──calls──► scheduler ──orders──► supervisor
//!   ▲                  │  ▲               │ ▲ │ ▲ │               │
//!   ├─────returns──────┘  └─replies─ sync◄┘ │ │ │ └─watch──► monitor
//!   │                                  └kept┘ │ │               │
//!   └──────────────stream items───────────────┘ └──reports, control
//! ```
//!
//! INVARIANT: no cycle of blocking sends. The scheduler never blocks on the supervisor (`try_send`, and room for every
//! order that can be in flight), handlers never block on the scheduler (`try_send`), the queue of replies has room
//! for an answer to every connection there can be, and that of kept files for every file the scheduler asks for at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};

use super::control::Main;
use super::pid_file::PidFile;
use super::predecessor::outlast;
use super::signals::Signals;
use super::{Options, StartError, descriptors, listen, logger, settings, token};
use crate::config::{CgroupUse, Config, Durability, Loaded};
use crate::core::Core;
use crate::core::event::Now;
use crate::gateway::{
    Access, Door, DoorPorts, DoorSettings, Handler, HandlerPorts, Patience, Places, RequestIds, Shared, SubmitRate,
};
use crate::memory::cgroup::Cgroups;
use crate::memory::{self, Monitor, MonitorHandle, Surroundings};
use crate::scheduler::call::{ConfigStatus, Control, Enforcement};
use crate::scheduler::{Ports, Scheduler, StreamPort, Syncer};
use crate::spool::{Restored, Spool};
use crate::sys;
use crate::sys::clock::{Clock, wall_ms};
use crate::sys::epoll::Epoll;
use crate::sys::eventfd::EventFd;
use crate::worker::{self, SupervisorSettings};

/// Handlers: enough that one slow upload does not hold up the others on a machine with few cores.
pub(super) const HANDLERS: usize = 4;

/// A stack holds what recursion there is: serde_json's, bounded to 128 levels. Pages are used only as they are touched.
const STACK: usize = 256 * 1024;

/// Control messages beside those of connections: memory readings, a reload; all rare.
const CONTROL: usize = 64;

/// Control messages of a connection that can be in flight: it follows something, and it is gone.
const CONTROL_PER_CONNECTION: usize = 2;

/// Reports of workers: a full queue holds workers back through their pipes, and no more.
const REPORTS: usize = 64;

/// Orders that can be in flight per worker: spawn or assign, cancel, preempt, GC, shutdown, kill, and answers to
/// breakers, which a worker asks for one after the other.
const ORDERS_PER_WORKER: usize = 16;

/// Lines for event streams the door has not taken yet.
const STREAM_ITEMS: usize = 256;

/// Workers that came or went between two looks of the monitor.
const WATCHES: usize = 64;

/// How long killed workers have to be gone when the daemon stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// How long a thread has to end once it was told to.
const JOIN: Duration = Duration::from_secs(5);

/// Runs the daemon until it has drained.
pub fn run(options: &Options, loaded: Loaded) -> Result<(), StartError> {
    let Loaded { config, warnings, origins } = loaded;
    drop(origins);
    sys::footprint::keep_small();
    sys::limits::outlive_file_size();
    let inherited = sys::inherited::take().map_err(system("take over the sockets of LISTEN_FDS"))?;
    // Why: before any thread and before memory is in use; the guardian keeps the pages there are now.
    let guardian = worker::guardian::start().map_err(system("start the guardian process"))?;
    let daemon = &config.daemon;
    let log_file = logger::start(daemon.log_level, daemon.log_format, &daemon.log_file)
        .map_err(|source| StartError::LogFile { path: daemon.log_file.clone(), source })?;
    for warning in &warnings {
        log::warn!("{warning}");
    }
    drop(warnings);
    let signals = Signals::register().map_err(system("register signal handlers"))?;
    let token = token(&config)?;
    descriptors::provide(&config);
    let listeners = listen::listen(&config, inherited)?;
    // Why: before the change of user, who may not make cgroups where root may.
    let (cgroups, enforcement) = cgroups(&config);
    become_user(&config, listeners.socket.as_ref())?;
    let clock = Clock::start();
    let is_synchronous = config.spool.durability == Durability::Fsync;
    let (spool, restored) = outlast(|| Spool::open(&daemon.state_dir, is_synchronous))?;
    let parts = Parts { config, signals, log_file, token, clock, cgroups, enforcement, instance: guardian.instance() };
    let started = start(options, parts, listeners, spool, restored)?;
    let result = started.main.run().map_err(system("wait for signals"));
    started.threads.stop();
    drop(guardian);
    result
}

struct Parts {
    config: Config,
    signals: Signals,
    log_file: logger::LogFile,
    token: Option<Vec<u8>>,
    clock: Clock,
    cgroups: Cgroups,
    enforcement: Enforcement,
    instance: worker::guardian::Instance,
}

struct Started {
    main: Main,
    threads: Threads,
    _pid_file: Option<PidFile>,
}

fn start(
    options: &Options,
    parts: Parts,
    listeners: listen::Listeners,
    spool: Spool,
    restored: Restored,
) -> Result<Started, StartError> {
    let Parts { config, signals, log_file, token, clock, mut cgroups, enforcement, instance } = parts;
    let max_connections = config.gateway.max_connections;
    let connections = Places::most(max_connections);
    let mut threads = Threads::default();

    let (control_tx, control_rx) = bounded(CONTROL + CONTROL_PER_CONNECTION * connections);
    let (reports_tx, reports_rx) = bounded(REPORTS);
    // Each connection has at most one request with the scheduler.
    let (calls_tx, calls_rx) = bounded(connections);
    let (replies_tx, replies_rx) = bounded(connections + HANDLERS);
    let (arrivals_tx, arrivals_rx) = bounded(connections);
    let (returns_tx, returns_rx) = bounded(connections + HANDLERS);
    let (items_tx, items_rx) = bounded(STREAM_ITEMS);
    let (drained_tx, drained_rx) = bounded(1);
    let (commands_tx, commands_rx) = bounded(HANDLERS);

    let door_bell = Arc::new(EventFd::new().map_err(system("make an eventfd"))?);
    let main_bell = Arc::new(EventFd::new().map_err(system("make an eventfd"))?);
    let epoll = Arc::new(Epoll::new().map_err(system("make an epoll instance"))?);
    let places = Arc::new(Places::new(max_connections));
    let stop_door = Arc::new(AtomicBool::new(false));
    let metrics = Arc::new(crate::metrics::HttpMetrics::default());
    let request_ids = Arc::new(RequestIds::new());
    let max_body = Arc::new(AtomicU64::new(settings::mb(config.gateway.max_body_mb)));
    let min_free_disk = Arc::new(AtomicU64::new(settings::mb(config.spool.min_free_mb)));
    let submit_rate = Arc::new(AtomicU32::new(config.gateway.submit_rate_per_s));

    let groups = cgroups.groups();
    let usher = cgroups.usher(main_bell.clone());
    let supervisor_settings = SupervisorSettings {
        files: spool.files(),
        result_max_bytes: settings::mb(config.spool.retention_mb),
        clock,
        stop_grace: STOP_GRACE,
        instance,
        cgroups,
    };
    let (supervisor, handle) =
        worker::supervisor(supervisor_settings, reports_tx, config.workers.max * ORDERS_PER_WORKER)
            .map_err(system("make the supervisor's descriptors"))?;

    let surroundings = Surroundings { clock, instance: instance.mark(), groups };
    let (monitor, monitor_handle) =
        Monitor::new(settings::monitor_settings(&config), surroundings, WATCHES, control_tx.clone())
            .map_err(system("open /proc"))?;

    let status = ConfigStatus { file: options.config.clone(), loaded_ms: wall_ms(), reload: None };
    let now = Now { at: clock.now(), wall_ms: wall_ms() };
    let damaged = spool.files().all_damaged();
    let (unfinished, finished) = (restored.unfinished.len(), restored.finished.len());
    let mut core = Core::new(settings::settings(&config), now);
    core.restore_footprints(restored.footprints);
    core.restore_breakers(restored.breakers);
    let actions = core.restore(restored.finished, restored.unfinished);

    let syncer = if spool.is_synchronous() {
        let unwritten = || restored.trouble.clone().unwrap_or_default();
        let journal = spool.sync_handle()?.ok_or_else(unwritten);
        let (syncer, thread) = Syncer::new(journal, spool.files(), replies_tx.clone());
        threads.spawn("sync", move || thread.run())?;
        Some(syncer)
    } else {
        None
    };
    let (files, ids) = (spool.files(), spool.ids());
    let ports = Ports {
        control_rx,
        reports_rx,
        calls_rx,
        replies_tx: replies_tx.clone(),
        supervisor: handle.clone(),
        syncer,
        streams: StreamPort { items_tx, bell: door_bell.clone() },
        drained: crate::scheduler::DrainedPort { tx: drained_tx, bell: main_bell.clone() },
        monitor: monitor_handle.clone(),
    };
    let enforcement =
        Enforcement { psi: monitor.hears_stalls(), urgency: sys::priority::possible_urgency(), ..enforcement };
    let scheduler = Scheduler::new(core, actions, spool, ports, clock, status.clone())
        .with_enforcement(enforcement)
        .with_reserve(min_free_disk.clone())
        .with_trouble(restored.trouble);
    let door_settings = DoorSettings {
        max_connections,
        head_timeout: settings::ms(config.gateway.head_timeout_ms),
        idle_timeout: settings::ms(config.gateway.idle_timeout_ms),
    };
    let door_ports = DoorPorts {
        arrivals_tx,
        returns_rx,
        items_rx,
        control_tx: control_tx.clone(),
        bell: door_bell.clone(),
        epoll: epoll.clone(),
        metrics: metrics.clone(),
        request_ids: request_ids.clone(),
        places: places.clone(),
        stop: stop_door.clone(),
    };
    let door = Door::new(door_settings, door_ports, listeners.all, clock).map_err(system("watch the listeners"))?;
    let mut hosts = config.gateway.allowed_hosts.clone();
    hosts.extend(listeners.addresses.iter().map(|address| address.ip().to_string()));
    let shared = Arc::new(Shared {
        access: Access::new(token, &config.gateway.listen, &hosts),
        files,
        ids,
        clock,
        metrics,
        places,
        epoll,
        bell: door_bell.clone(),
        patience: Patience::new(clock, settings::ms(config.gateway.idle_timeout_ms), HANDLERS),
        max_body: max_body.clone(),
        request_ids,
        rate: SubmitRate::new(submit_rate.clone()),
        board: scheduler.board(),
        is_expecting: AtomicBool::new(false),
    });

    threads.spawn("supervisor", urgent(move || supervisor.run()))?;
    threads.spawn("scheduler", urgent(move || scheduler.run()))?;
    threads.spawn("monitor", urgent(move || monitor.run()))?;
    for _ in 0..HANDLERS {
        let ports = HandlerPorts {
            arrivals_rx: arrivals_rx.clone(),
            replies_rx: replies_rx.clone(),
            calls_tx: calls_tx.clone(),
            returns_tx: returns_tx.clone(),
            commands: crate::gateway::CommandPort { tx: commands_tx.clone(), bell: main_bell.clone() },
        };
        let handler = Handler::new(shared.clone(), ports);
        threads.spawn("handler", move || handler.run())?;
    }
    threads.spawn("door", move || door.run())?;
    threads.control_tx = Some(control_tx.clone());
    threads.monitor = Some(monitor_handle.clone());
    threads.supervisor = Some(handle);
    threads.door = Some((stop_door, door_bell));
    threads.socket = listeners.socket;

    let pid_file = options.pid_file.clone().map(PidFile::write).transpose()?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    log::info!(
        version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), listen = listed(&listeners.addresses).as_str(),
        socket = listed(listeners.paths.iter().map(|path| path.display())).as_str(), unfinished = unfinished,
        finished = finished, damaged = damaged;
        "DAEMON_STARTED"
    );
    let main = Main {
        path: options.config.clone(),
        config,
        status,
        signals,
        log_file,
        control_tx,
        monitor: monitor_handle,
        commands_rx,
        replies_tx,
        drained_rx,
        usher,
        bell: main_bell,
        max_body,
        min_free_disk,
        submit_rate,
    };
    Ok(Started { main, threads, _pid_file: pid_file })
}

/// For the three threads between a reading and a kill: on a machine whose processors are all taken, a leak is let go on for
/// as long as they wait for one.
fn urgent(body: impl FnOnce()) -> impl FnOnce() {
    move || {
        let urgency = sys::priority::become_urgent();
        log::debug!("this thread's urgency is {}", urgency.name());
        body();
    }
}

/// The threads, in the order of their start, and how each is told to end.
#[derive(Default)]
struct Threads {
    handles: Vec<(&'static str, JoinHandle<()>, Receiver<()>)>,
    control_tx: Option<crossbeam::channel::Sender<Control>>,
    monitor: Option<MonitorHandle>,
    supervisor: Option<worker::SupervisorHandle>,
    door: Option<(Arc<AtomicBool>, Arc<EventFd>)>,
    socket: Option<listen::SocketFile>,
}

impl Threads {
    fn spawn(&mut self, name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let (ended_tx, ended_rx) = bounded(1);
        let builder = thread::Builder::new().name(name.to_string()).stack_size(STACK);
        let handle = builder
            .spawn(move || {
                body();
                let _ = ended_tx.send(());
            })
            .map_err(system("start a thread"))?;
        self.handles.push((name, handle, ended_rx));
        Ok(())
    }

    /// The scheduler first: it answers whoever waits and syncs the journal; then the workers; then the door, whose end
    /// ends the handlers.
    fn stop(mut self) {
        if let Some(control_tx) = self.control_tx.take() {
            let _ = control_tx.send(Control::Stop);
        }
        self.join(&["scheduler", "sync"]);
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.stop();
        }
        if let Some(monitor) = self.monitor.take() {
            monitor.send(memory::Message::Stop);
        }
        self.join(&["supervisor", "monitor"]);
        if let Some((stop, bell)) = self.door.take() {
            stop.store(true, Ordering::Release);
            bell.ring();
        }
        self.join(&["door", "handler"]);
        drop(self.socket.take());
    }

    fn join(&mut self, names: &[&str]) {
        for (name, handle, ended_rx) in self.handles.extract_if(.., |(name, ..)| names.contains(name)) {
            if ended_rx.recv_timeout(JOIN).is_ok() {
                let _ = handle.join();
            } else {
                log::error!("thread {name} does not end within {} s; the daemon ends without it", JOIN.as_secs());
            }
        }
    }
}

/// The workers' cgroups, as strong as the host allows, and a word about them.
fn cgroups(config: &Config) -> (Cgroups, Enforcement) {
    let without =
        |detail: String| (Cgroups::off(), Enforcement { cgroup: "none".to_string(), detail, ..Enforcement::default() });
    match config.memory.cgroup {
        CgroupUse::Off => return without("memory.cgroup = \"off\"".to_string()),
        CgroupUse::Auto => {}
    }
    let found = Cgroups::detect(std::path::Path::new("/"));
    log::info!(kind:% = found.kind, path:% = found.path.display(), finding = found.finding.as_str(); "CGROUP_FOUND");
    let user = sys::user::lookup(&config.daemon.user).ok().flatten().filter(|_| !config.daemon.user.is_empty());
    match Cgroups::prepare(&found, user.map(|user| (user.uid, user.gid))) {
        Ok(cgroups) => {
            let cgroup = found.kind.to_string();
            (cgroups, Enforcement { cgroup, detail: found.finding, ..Enforcement::default() })
        }
        Err(error) => {
            let why = format!("cannot make cgroups in {}: {error}", found.path.display());
            log::warn!("{why}; the watchdog alone holds hard limits");
            without(why)
        }
    }
}

fn become_user(config: &Config, socket: Option<&listen::SocketFile>) -> Result<(), StartError> {
    let name = &config.daemon.user;
    if name.is_empty() {
        return Ok(());
    }
    let refused = |why: String| StartError::User { user: name.clone(), why };
    let user = sys::user::lookup(name)
        .map_err(|error| refused(error.to_string()))?
        .ok_or_else(|| refused("there is no such user; create it with adduser --system".to_string()))?;
    std::fs::create_dir_all(&config.daemon.state_dir).map_err(system("create daemon.state_dir"))?;
    std::fs::create_dir_all(&config.daemon.runtime_dir).map_err(system("create daemon.runtime_dir"))?;
    let directories = [&config.daemon.state_dir, &config.daemon.runtime_dir];
    let directories = directories.into_iter().map(|path| (path.as_path(), user.gid));
    let socket = socket.map(|socket| (socket.path(), socket.group.unwrap_or(user.gid)));
    for (path, group) in directories.chain(socket) {
        // Not through a link: after the first start they are in that user's hands.
        let owned = std::os::unix::fs::lchown(path, Some(user.uid), Some(group));
        owned.map_err(|error| refused(format!("{} cannot be given to it: {error}", path.display())))?;
    }
    sys::priority::keep_right_to_be_urgent();
    user.assume().map_err(|error| refused(format!("{error}; start the daemon as root")))
}

fn listed(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(" ")
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}
