//! Clients and a daemon that comes and goes under them, and the count afterwards.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::after;
use serde_json::json;

use super::client::{Again, Client, Ended};
use super::traces::Traces;
use crate::common::{Home, descendants, is_alive, repository, signal, soon, start_time, until};

const CLIENTS: usize = 4;

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By KILL: while it starts, under load, or while it drains.
    Killed,
    /// By TERM, in its own time.
    Drained,
}

/// Numbers that follow from a seed (SplitMix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// Up to but not `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// What the clients and the test know of each other.
pub struct Shared {
    is_submitting: AtomicBool,
    accepted: AtomicU64,
}

impl Shared {
    pub fn is_submitting(&self) -> bool {
        self.is_submitting.load(Ordering::Relaxed)
    }

    pub fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

/// The clients finish what they have begun, even if the test fails.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.is_submitting.store(false, Ordering::Relaxed);
    }
}

pub struct Load {
    home: Home,
    seed: u64,
    /// Processes of daemons that are gone, by pid and start.
    condemned: Vec<(u32, u64)>,
    round: u64,
}

#[derive(Debug, Default)]
pub struct Report {
    pub accepted: usize,
    pub completed: usize,
    /// `worker_crashed`, where the task had neither retries nor a checkpoint.
    pub crashed: usize,
    /// Of all the agents saw.
    pub runs: usize,
    /// Tasks that ran more than once, each time because they may.
    pub repeated: usize,
}

impl Load {
    pub fn new(durability: &str) -> Load {
        let seed =
            from_environment("KURULTAI_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
        println!("KURULTAI_SEED={seed} durability={durability}");
        let home = Home::new("");
        let effects = repository().join("tests/agents/effects").display().to_string();
        let trace = format!("env = {{ EFFECTS_FILE = {:?} }}", home.path().join("effects").display().to_string());
        home.configure(&format!(
            "[daemon]\nlog_level = \"info\"\n[workers]\nmax = 4\n[queue]\nmax_depth = 100\n\
             priority_limits = {{ critical = 100, high = 100, normal = 100, low = 100, heartbeat = 100 }}\n\
             [spool]\ndurability = {durability:?}\n\
             [agents.persistent]\ncommand = [{effects:?}]\nmode = \"persistent\"\n{trace}\n\
             [agents.oneshot]\ncommand = [{effects:?}, \"--oneshot\"]\n{trace}\n"
        ));
        Load { home, seed, condemned: Vec::new(), round: 0 }
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// `rounds` daemons one after the other under load, or KURULTAI_ROUNDS, and one that finishes what they left.
    pub fn rounds(mut self, rounds: u64, ending: Ending) -> Report {
        let rounds = from_environment("KURULTAI_ROUNDS").unwrap_or(rounds);
        let mut random = Random(self.seed);
        let socket = self.home.socket();
        let shared = Shared { is_submitting: AtomicBool::new(true), accepted: AtomicU64::new(0) };
        let ended = with_clients(&socket, self.seed, &shared, || {
            for _ in 0..rounds {
                self.one_round(&mut random, ending, &shared);
            }
            self.spawn()
        });
        let (ended, mut last) = ended;
        signal(last.child.id(), "TERM");
        let status = last.ended();
        assert_eq!(status.code(), Some(0), "{status}: {}", last.log());
        drop(last);
        println!("{rounds} rounds, {ending:?}");
        self.count(&ended)
    }

    /// Clients against a daemon that `work` starts, restarts and ends; it is told how many tasks have been accepted.
    pub fn beside(&self, work: impl FnOnce(&dyn Fn() -> u64)) -> Vec<Ended> {
        let shared = Shared { is_submitting: AtomicBool::new(true), accepted: AtomicU64::new(0) };
        let accepted = || shared.accepted.load(Ordering::Relaxed);
        with_clients(&self.home.socket(), self.seed, &shared, || work(&accepted)).0
    }

    fn one_round(&mut self, random: &mut Random, ending: Ending, shared: &Shared) {
        let mut daemon = self.spawn();
        let before = shared.accepted.load(Ordering::Relaxed);
        // One that is to drain has to be there first: before it listens, TERM just ends it.
        let wanted = random.below(30).max(u64::from(ending == Ending::Drained));
        // A quarter of the kills hits the start.
        if ending == Ending::Drained || random.below(4) > 0 {
            until("there is load", || {
                assert!(daemon.child.try_wait().expect("our child").is_none(), "it ended by itself: {}", daemon.log());
                (shared.accepted.load(Ordering::Relaxed) >= before + wanted).then_some(())
            });
        }
        let pause = |random: &mut Random, most_us| {
            after(Duration::from_micros(random.below(most_us))).recv().expect("it comes")
        };
        pause(random, 40_000);
        let drains = ending == Ending::Drained || random.below(4) == 0;
        if drains {
            signal(daemon.child.id(), "TERM");
        }
        match ending {
            Ending::Drained => {
                self.condemn(&daemon);
                let status = daemon.ended();
                assert_eq!(status.code(), Some(0), "{status}: {}", daemon.log());
            }
            Ending::Killed => {
                if drains {
                    pause(random, 100_000);
                }
                let own = daemon.child.try_wait().expect("our child");
                let is_told = drains && own.is_some_and(|status| status.code() == Some(0) || status.code().is_none());
                assert!(own.is_none() || is_told, "it ended by itself: {own:?} {}", daemon.log());
                self.condemn(&daemon);
                let _ = daemon.child.kill();
                daemon.ended();
            }
        }
    }

    fn condemn(&mut self, daemon: &Running) {
        let tree = descendants(daemon.child.id());
        self.condemned.extend(tree.into_iter().filter_map(|pid| Some((pid, start_time(pid)?))));
    }

    /// The next daemon, at once: what the last one left may still be dying.
    fn spawn(&mut self) -> Running {
        self.round += 1;
        let log = self.home.path().join(format!("log-{}", self.round));
        let file = fs::File::create(&log).expect("the directory can be written");
        let child = self.home.kurultaid().stderr(file).spawn().expect("kurultaid can be started");
        Running { child, log: log.display().to_string() }
    }

    /// Holds what the clients were told against what the agents did.
    pub fn count(self, ended: &[Ended]) -> Report {
        let Load { home, condemned, .. } = self;
        soon("nothing is left of any daemon", || {
            !condemned.iter().any(|(pid, start)| is_alive(*pid) && start_time(*pid) == Some(*start))
        });
        soon("no agent is left", || agents_of(home.path()).is_empty());
        let traces = Traces::read(&home.path().join("effects"));
        let mut report = Report { accepted: ended.len(), ..Report::default() };
        let mut wrong: Vec<String> = traces.overlaps.iter().map(|overlap| format!("at once: {overlap}")).collect();
        for end in ended {
            let runs = traces.runs.get(&end.key).map_or(&[][..], Vec::as_slice);
            let whole = runs.iter().filter(|run| run.is_whole).count();
            report.runs += runs.len();
            report.repeated += usize::from(runs.len() > 1);
            let mut complain = |what: &str| wrong.push(format!("{what}: {end:?} {runs:?}"));
            if runs.iter().any(|run| run.task != end.id) {
                complain("one key, two tasks");
            }
            if runs.windows(2).any(|pair| pair[0].attempt > pair[1].attempt) {
                complain("attempts go back");
            }
            if end.again == Again::Never && runs.len() > 1 {
                complain("it ran twice, and may not");
            }
            let Some(task) = &end.task else {
                complain("lost");
                continue;
            };
            if task["state"] == "completed" {
                report.completed += 1;
                if whole == 0 {
                    complain("completed without its effect");
                }
                if end.result.as_ref().is_none_or(|result| result["key"] != json!(end.key)) {
                    complain("another's result");
                }
            } else if task["error"]["code"] == "worker_crashed" && end.again != Again::Always {
                report.crashed += 1;
            } else {
                complain("an end nobody documents");
            }
        }
        let Report { accepted, completed, crashed, runs, repeated } = report;
        let overlaps = traces.overlaps.len();
        println!(
            "{accepted} accepted: {completed} completed, {crashed} ended with the daemon as they may; {runs} runs, \
             {repeated} tasks ran again, {overlaps} twice at once; {} wrong",
            wrong.len()
        );
        assert!(completed > 0, "there was a load");
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
        report
    }
}

fn with_clients<T>(socket: &Path, seed: u64, shared: &Shared, work: impl FnOnce() -> T) -> (Vec<Ended>, T) {
    std::thread::scope(|scope| {
        let client = |name| Client::new(name, socket, shared, Random(seed.wrapping_add(name as u64 + 1)));
        let clients: Vec<_> = (0..CLIENTS).map(|name| scope.spawn(move || client(name).run())).collect();
        let finish = Finish(shared);
        let done = work();
        drop(finish);
        let ended = clients.into_iter().flat_map(|client| client.join().expect("no client fails")).collect();
        (ended, done)
    })
}

/// Every process that carries the trace file of this home, whoever its parent is by now.
fn agents_of(home: &Path) -> Vec<u32> {
    let mark = format!("EFFECTS_FILE={}", home.join("effects").display());
    let carries = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_alive(*pid) && carries(*pid)).collect()
}

/// A daemon that need not answer yet.
struct Running {
    child: Child,
    log: String,
}

impl Running {
    fn ended(&mut self) -> ExitStatus {
        until("the daemon ends", || self.child.try_wait().expect("our child"))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
