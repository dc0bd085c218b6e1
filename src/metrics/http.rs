//! Counters of the gateway, shared by its threads: one number per route and status, all there from the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a request was about: the `route` label. A path that is none of these is `Other`, so that no client can make
/// label values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Tasks,
    AgentTasks,
    Task,
    TaskResult,
    TaskEvents,
    TaskWhy,
    Decisions,
    Events,
    Status,
    Queue,
    Workers,
    Breakers,
    Breaker,
    Memory,
    Agents,
    Reload,
    Drain,
    Health,
    Metrics,
    Page,
    Other,
}

impl Route {
    pub const ALL: [Route; 21] = [
        Route::Tasks,
        Route::AgentTasks,
        Route::Task,
        Route::TaskResult,
        Route::TaskEvents,
        Route::TaskWhy,
        Route::Decisions,
        Route::Events,
        Route::Status,
        Route::Queue,
        Route::Workers,
        Route::Breakers,
        Route::Breaker,
        Route::Memory,
        Route::Agents,
        Route::Reload,
        Route::Drain,
        Route::Health,
        Route::Metrics,
        Route::Page,
        Route::Other,
    ];

    /// The path as kurultai-api(7) writes it.
    pub fn pattern(self) -> &'static str {
        match self {
            Route::Tasks => "/v1/tasks",
            Route::AgentTasks => "/v1/agents/NAME/tasks",
            Route::Task => "/v1/tasks/ID",
            Route::TaskResult => "/v1/tasks/ID/result",
            Route::TaskEvents => "/v1/tasks/ID/events",
            Route::TaskWhy => "/v1/tasks/ID/why",
            Route::Decisions => "/v1/decisions",
            Route::Events => "/v1/events",
            Route::Status => "/v1/status",
            Route::Queue => "/v1/queue",
            Route::Workers => "/v1/workers",
            Route::Breakers => "/v1/breakers",
            Route::Breaker => "/v1/breakers/NAME",
            Route::Memory => "/v1/memory",
            Route::Agents => "/v1/agents",
            Route::Reload => "/v1/reload",
            Route::Drain => "/v1/drain",
            Route::Health => "/health",
            Route::Metrics => "/metrics",
            Route::Page => "/",
            Route::Other => "other",
        }
    }
}

/// Every status the gateway answers with.
pub(super) const CODES: [u16; 24] = [
    200, 202, 204, 206, 304, 400, 401, 403, 404, 405, 408, 409, 410, 411, 413, 415, 416, 417, 429, 431, 500, 502, 503,
    504,
];

/// Upper bounds in seconds.
pub(super) const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 300.0];

#[derive(Debug, Default)]
pub struct HttpMetrics {
    requests: [[AtomicU64; CODES.len()]; Route::ALL.len()],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl HttpMetrics {
    pub fn note(&self, route: Route, code: u16, took: Duration) {
        if let Some(code) = CODES.iter().position(|known| *known == code) {
            self.requests[route as usize][code].fetch_add(1, Ordering::Relaxed);
        } else {
            debug_assert!(false, "status {code} is not in CODES");
        }
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = (Route, u16, u64)> {
        Route::ALL.into_iter().flat_map(move |route| {
            CODES.iter().zip(&self.requests[route as usize]).filter_map(move |(code, count)| {
                let count = count.load(Ordering::Relaxed);
                (count > 0).then_some((route, *code, count))
            })
        })
    }

    /// Cumulative counts by upper bound, the total, and the sum in seconds.
    pub(super) fn durations(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut total = 0;
        let mut cumulative = Vec::new();
        for (bucket, count) in self.buckets.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            cumulative.extend(BUCKETS.get(bucket).map(|bound| (*bound, total)));
        }
        (cumulative, total, self.sum_us.load(Ordering::Relaxed) as f64 / 1e6)
    }
}
