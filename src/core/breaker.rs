//! Circuit breakers: a dependency that fails is left alone for a while, then tried once.
//!
//! closed → (`failure_threshold` failures within `window`) → open → (`backoff[n]`, n counting openings in a row) →
//! half-open → (`success_threshold` successes, one probe at a time) → closed; a failed probe opens again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::event::Now;
use super::ids::PermitId;
use super::settings::BreakerSettings;

/// How long an outside caller may keep a probe without reporting; then it counts as failed, or the breaker would
/// stay half-open for ever.
const PROBE_TTL: Duration = Duration::from_secs(60);

/// Permits given out and not reported, per breaker. The oldest of an outside caller is dropped beyond: its report will
/// be unknown.
const PERMITS_MAX: usize = 256;

/// What a caller is told who asks an operator's forced-open breaker.
const FORCED_RETRY: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

impl BreakerState {
    pub const ALL: [BreakerState; 3] = [BreakerState::Closed, BreakerState::HalfOpen, BreakerState::Open];

    pub fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Open => "open",
        }
    }
}

#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    phase: Phase,
    /// Openings in a row; 0 after it closed.
    openings: usize,
    permits: BTreeMap<PermitId, Holder>,
}

#[derive(Debug)]
enum Phase {
    Closed { failures: VecDeque<Duration> },
    Open { until: Until },
    HalfOpen { successes: u32, probe: Option<PermitId> },
}

#[derive(Debug, Clone, Copy)]
enum Until {
    Time(Duration),
    /// An operator opened it: it stays so until an operator closes it.
    Forced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A running task: its end is the report, however long it takes.
    Task,
    /// Somebody who may never come back; since when.
    Outside(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerView {
    pub state: BreakerState,
    pub failures: usize,
    pub successes: u32,
    pub openings: usize,
    pub retry_after: Option<Duration>,
    pub forced: bool,
}

/// What of a breaker survives a restart. Failures that did not open it, and successes that did not close it, are
/// counted anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerMemory {
    pub phase: RememberedPhase,
    /// Openings in a row.
    pub openings: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RememberedPhase {
    Closed,
    HalfOpen,
    /// Until this time of the wall clock, in ms since 1970.
    Open {
        until_ms: u64,
    },
    /// An operator opened it.
    Forced,
}

impl Breaker {
    pub fn new(settings: BreakerSettings) -> Self {
        Breaker { settings, phase: closed(), openings: 0, permits: BTreeMap::new() }
    }

    pub fn memory(&self, now: Now) -> BreakerMemory {
        let phase = match self.phase {
            Phase::Closed { .. } => RememberedPhase::Closed,
            Phase::HalfOpen { .. } => RememberedPhase::HalfOpen,
            Phase::Open { until: Until::Forced } => RememberedPhase::Forced,
            Phase::Open { until: Until::Time(until) } => {
                RememberedPhase::Open { until_ms: now.wall_ms + until.saturating_sub(now.at).as_millis() as u64 }
            }
        };
        BreakerMemory { phase, openings: self.openings }
    }

    /// Goes on where the last daemon stopped. However the wall clock was set meanwhile, it is open no longer than its
    /// pause.
    pub fn restore(&mut self, memory: BreakerMemory, now: Now) {
        self.openings = memory.openings;
        self.phase = match memory.phase {
            RememberedPhase::Closed => closed(),
            RememberedPhase::HalfOpen => Phase::HalfOpen { successes: 0, probe: None },
            RememberedPhase::Forced => Phase::Open { until: Until::Forced },
            RememberedPhase::Open { until_ms } => {
                let left = Duration::from_millis(until_ms.saturating_sub(now.wall_ms)).min(self.pause());
                Phase::Open { until: Until::Time(now.at + left) }
            }
        };
    }

    pub fn reconfigure(&mut self, settings: BreakerSettings) {
        self.settings = settings;
    }

    pub fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    pub fn view(&self, now: Duration) -> BreakerView {
        let (failures, successes) = match &self.phase {
            Phase::Closed { failures } => (self.recent(failures, now), 0),
            Phase::Open { .. } => (0, 0),
            Phase::HalfOpen { successes, .. } => (0, *successes),
        };
        BreakerView {
            state: self.state(),
            failures,
            successes,
            openings: self.openings,
            retry_after: match self.phase {
                Phase::Open { .. } => self.refusal(now),
                Phase::Closed { .. } | Phase::HalfOpen { .. } => None,
            },
            forced: matches!(self.phase, Phase::Open { until: Until::Forced }),
        }
    }

    /// How long to wait if a call may not be made now; `None` if it may.
    pub fn refusal(&self, now: Duration) -> Option<Duration> {
        match &self.phase {
            Phase::Closed { .. } | Phase::HalfOpen { probe: None, .. } => None,
            Phase::HalfOpen { probe: Some(_), .. } => Some(self.pause()),
            Phase::Open { until: Until::Forced } => Some(FORCED_RETRY),
            Phase::Open { until: Until::Time(until) } => Some(until.saturating_sub(now)),
        }
    }

    /// Takes `permit` for one call, unless [`Breaker::refusal`] forbids it.
    pub fn acquire(&mut self, now: Duration, permit: PermitId, holder: Holder) -> Result<(), Duration> {
        if let Some(retry_after) = self.refusal(now) {
            return Err(retry_after);
        }
        if let Phase::HalfOpen { probe, .. } = &mut self.phase {
            *probe = Some(permit);
        }
        if self.permits.len() >= PERMITS_MAX {
            let oldest = self.permits.iter().find(|(_, holder)| **holder != Holder::Task).map(|(permit, _)| *permit);
            oldest.map(|permit| self.permits.remove(&permit));
        }
        self.permits.insert(permit, holder);
        Ok(())
    }

    /// The call went well. `None`: no such permit is out.
    pub fn success(&mut self, permit: PermitId) -> Option<Option<BreakerState>> {
        self.permits.remove(&permit)?;
        let Phase::HalfOpen { successes, probe } = &mut self.phase else { return Some(None) };
        if *probe != Some(permit) {
            return Some(None);
        }
        *probe = None;
        *successes += 1;
        if *successes < self.settings.success_threshold {
            return Some(None);
        }
        Some(Some(self.close()))
    }

    /// The call failed. `None`: no such permit is out. A report from before it opened changes nothing.
    pub fn failure(&mut self, now: Duration, permit: PermitId) -> Option<Option<BreakerState>> {
        self.permits.remove(&permit)?;
        let window = self.settings.window;
        match &mut self.phase {
            Phase::Closed { failures } => {
                while failures.front().is_some_and(|at| *at + window < now) {
                    failures.pop_front();
                }
                failures.push_back(now);
                Some((failures.len() >= self.settings.failure_threshold).then(|| self.open(now)))
            }
            Phase::Open { .. } => Some(None),
            Phase::HalfOpen { probe, .. } if *probe == Some(permit) => Some(Some(self.open(now))),
            Phase::HalfOpen { .. } => Some(None),
        }
    }

    /// Whether an outside caller holds this permit: a task's is not for others to report on.
    pub fn is_outside(&self, permit: PermitId) -> bool {
        matches!(self.permits.get(&permit), Some(Holder::Outside(_)))
    }

    /// The call was not made, or its outcome says nothing (a cancelled task).
    pub fn release(&mut self, permit: PermitId) {
        self.permits.remove(&permit);
        if let Phase::HalfOpen { probe, .. } = &mut self.phase
            && *probe == Some(permit)
        {
            *probe = None;
        }
    }

    pub fn force_open(&mut self) -> Option<BreakerState> {
        let was = self.state();
        self.phase = Phase::Open { until: Until::Forced };
        self.openings = self.openings.max(1);
        (was != BreakerState::Open).then_some(BreakerState::Open)
    }

    pub fn force_close(&mut self) -> Option<BreakerState> {
        (self.state() != BreakerState::Closed).then(|| self.close())
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Closed { .. } | Phase::Open { until: Until::Forced } => None,
            Phase::Open { until: Until::Time(until) } => Some(*until),
            Phase::HalfOpen { probe, .. } => probe.and_then(|permit| self.probe_expiry(permit)),
        }
    }

    /// What time alone brings about.
    pub fn tick(&mut self, now: Duration) -> Option<BreakerState> {
        match &self.phase {
            Phase::Open { until: Until::Time(until) } if *until <= now => {
                self.phase = Phase::HalfOpen { successes: 0, probe: None };
                Some(BreakerState::HalfOpen)
            }
            Phase::HalfOpen { probe: Some(permit), .. } => {
                let permit = *permit;
                let is_lost = self.probe_expiry(permit).is_some_and(|expiry| expiry <= now);
                is_lost.then(|| {
                    self.permits.remove(&permit);
                    self.open(now)
                })
            }
            Phase::Closed { .. } | Phase::Open { .. } | Phase::HalfOpen { probe: None, .. } => None,
        }
    }

    #[cfg(test)]
    pub fn held_by_tasks(&self) -> impl Iterator<Item = PermitId> {
        self.permits.iter().filter(|(_, holder)| **holder == Holder::Task).map(|(permit, _)| *permit)
    }

    fn probe_expiry(&self, permit: PermitId) -> Option<Duration> {
        match self.permits.get(&permit) {
            Some(Holder::Task) => None,
            Some(Holder::Outside(since)) => Some(*since + PROBE_TTL),
            // Dropped as the oldest of too many: nobody can report it any more.
            None => Some(Duration::ZERO),
        }
    }

    fn open(&mut self, now: Duration) -> BreakerState {
        self.openings += 1;
        self.phase = Phase::Open { until: Until::Time(now + self.pause()) };
        BreakerState::Open
    }

    fn close(&mut self) -> BreakerState {
        self.openings = 0;
        self.phase = closed();
        BreakerState::Closed
    }

    fn pause(&self) -> Duration {
        let backoff = &self.settings.backoff;
        let nth = self.openings.saturating_sub(1).min(backoff.len().saturating_sub(1));
        backoff.get(nth).copied().unwrap_or(Duration::from_secs(1))
    }

    fn recent(&self, failures: &VecDeque<Duration>, now: Duration) -> usize {
        failures.iter().filter(|at| **at + self.settings.window >= now).count()
    }
}

fn closed() -> Phase {
    Phase::Closed { failures: VecDeque::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    struct Bench {
        breaker: Breaker,
        next: u64,
    }

    impl Bench {
        fn new() -> Self {
            let backoff = [1, 2, 4, 8].map(seconds).to_vec();
            let settings = BreakerSettings { failure_threshold: 3, window: seconds(60), success_threshold: 2, backoff };
            Bench { breaker: Breaker::new(settings), next: 1 }
        }

        fn permit(&mut self, now: Duration) -> PermitId {
            let permit = PermitId(self.next);
            self.next += 1;
            assert_eq!(self.breaker.acquire(now, permit, Holder::Outside(now)), Ok(()), "at {now:?}");
            permit
        }

        fn fail(&mut self, now: Duration) -> Option<BreakerState> {
            let permit = self.permit(now);
            self.breaker.failure(now, permit).expect("the permit is out")
        }

        fn succeed(&mut self, now: Duration) -> Option<BreakerState> {
            let permit = self.permit(now);
            self.breaker.success(permit).expect("the permit is out")
        }
    }

    #[test]
    fn three_failures_within_the_window_open_it_and_older_ones_do_not_count() {
        let mut bench = Bench::new();
        assert_eq!(bench.fail(seconds(0)), None);
        assert_eq!(bench.fail(seconds(1)), None);
        assert_eq!(bench.fail(seconds(62)), None, "the first two are past the window");
        assert_eq!(bench.fail(seconds(63)), None);
        assert_eq!(bench.fail(seconds(64)), Some(BreakerState::Open));
    }

    #[test]
    fn it_stays_open_for_1_2_4_8_and_8_seconds_when_every_probe_fails() {
        let mut bench = Bench::new();
        let mut now = seconds(0);
        for _ in 0..2 {
            bench.fail(now);
        }
        for (nth, pause) in [1, 2, 4, 8, 8].map(seconds).into_iter().enumerate() {
            assert_eq!(bench.fail(now), Some(BreakerState::Open), "opening {nth}");
            assert_eq!(bench.breaker.refusal(now), Some(pause), "opening {nth}");
            assert_eq!(bench.breaker.tick(now + pause - Duration::from_millis(1)), None, "opening {nth}");
            now += pause;
            assert_eq!(bench.breaker.next_deadline(), Some(now));
            assert_eq!(bench.breaker.tick(now), Some(BreakerState::HalfOpen), "opening {nth}");
        }
    }

    #[test]
    fn half_open_lets_one_probe_through_and_two_successes_close_it() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            bench.fail(seconds(0));
        }
        bench.breaker.tick(seconds(1));
        let probe = bench.permit(seconds(1));
        assert!(bench.breaker.acquire(seconds(1), PermitId(99), Holder::Task).is_err());
        assert_eq!(bench.breaker.success(probe), Some(None));
        assert_eq!(bench.succeed(seconds(1)), Some(BreakerState::Closed));
        assert_eq!(bench.breaker.view(seconds(1)).openings, 0);
    }

    #[test]
    fn a_probe_that_is_never_reported_counts_as_failed_after_a_minute() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            bench.fail(seconds(0));
        }
        bench.breaker.tick(seconds(1));
        bench.permit(seconds(1));
        assert_eq!(bench.breaker.next_deadline(), Some(seconds(61)));
        assert_eq!(bench.breaker.tick(seconds(60)), None);
        assert_eq!(bench.breaker.tick(seconds(61)), Some(BreakerState::Open));
    }

    #[test]
    fn reports_from_before_the_opening_and_unknown_permits_change_nothing() {
        let mut bench = Bench::new();
        let early = bench.permit(seconds(0));
        for _ in 0..3 {
            bench.fail(seconds(0));
        }
        bench.breaker.tick(seconds(1));
        assert_eq!(bench.breaker.failure(seconds(1), early), Some(None));
        assert_eq!(bench.breaker.state(), BreakerState::HalfOpen);
        assert_eq!(bench.breaker.success(early), None, "spent");
        assert_eq!(bench.breaker.success(PermitId(1234)), None, "never given out");
    }

    #[test]
    fn an_operator_s_opening_stays_until_an_operator_closes_it() {
        let mut bench = Bench::new();
        assert_eq!(bench.breaker.force_open(), Some(BreakerState::Open));
        assert_eq!(bench.breaker.next_deadline(), None);
        assert_eq!(bench.breaker.tick(seconds(10_000)), None);
        assert!(bench.breaker.view(seconds(0)).forced);
        assert_eq!(bench.breaker.force_close(), Some(BreakerState::Closed));
    }
}
