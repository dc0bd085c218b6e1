//! The text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::Write;

use super::http::HttpMetrics;
use super::{Histogram, Metrics, TASK_BUCKETS, state_value};
use crate::core::governor::{DaemonMemory, Fill, Level};
use crate::core::notice::ExitReason;
use crate::core::task::Priority;
use crate::core::view::Snapshot;
use crate::sys::proc_self::Process;

/// Everything `/metrics` answers.
pub fn exposition(
    metrics: &Metrics,
    snapshot: &Snapshot,
    http: &HttpMetrics,
    connections: usize,
    process: &Process,
) -> String {
    // Why: about what an installation with five agents writes; growing by doubling would hold twice as much.
    let mut page = Page { text: String::with_capacity(24 * 1024) };
    page.memory(metrics, snapshot);
    page.workers(metrics, snapshot);
    page.out_of_memory(metrics);
    page.queue_and_tasks(metrics, snapshot);
    page.storage(metrics);
    page.breakers(metrics, snapshot);
    page.http(http, connections);
    page.daemon(metrics, process);
    page.text
}

struct Page {
    text: String,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    fn memory(&mut self, metrics: &Metrics, snapshot: &Snapshot) {
        let memory = &snapshot.memory;
        let sample = memory.sample.as_ref().map(|(_, sample)| sample);
        self.family("kurultai_memory_usage_bytes", "gauge", "Memory of the daemon and its workers.");
        self.value("kurultai_memory_usage_bytes", &[], sample.map_or(0, |sample| sample.usage_bytes) as f64);
        self.family("kurultai_memory_limit_bytes", "gauge", "memory.limit_mb in bytes.");
        self.value("kurultai_memory_limit_bytes", &[], memory.settings.limit_bytes as f64);
        self.family("kurultai_memory_pressure_ratio", "gauge", "How full each source of pressure is.");
        let sources = [
            ("budget", memory.budget),
            ("cgroup", sample.and_then(|sample| sample.cgroup).map(Fill::ratio)),
            ("host", sample.and_then(|sample| sample.host)),
        ];
        for (source, ratio) in sources {
            if let Some(ratio) = ratio {
                self.value("kurultai_memory_pressure_ratio", &[("source", source)], ratio);
            }
        }
        self.family("kurultai_memory_level", "gauge", "0 normal, 1 warning, 2 critical, 3 reject, 4 emergency.");
        self.value("kurultai_memory_level", &[], memory.level as usize as f64);
        let name = "kurultai_memory_threshold_crossings_total";
        self.family(name, "counter", "Thresholds crossed, by level and direction.");
        for level in Level::ALL.into_iter().skip(1) {
            for direction in [super::Direction::Up, super::Direction::Down] {
                let count = metrics.crossings.get(&(level, direction)).copied().unwrap_or(0);
                self.value(name, &[("level", level.name()), ("direction", direction.name())], count as f64);
            }
        }
        let name = "kurultai_memory_recovery_actions_total";
        self.family(name, "counter", "What was done about memory, by action.");
        for action in ["gc", "retire_idle", "preempt", "kill", "none"] {
            let count = metrics.recovery_actions.get(action).copied().unwrap_or(0);
            self.value(name, &[("action", action)], count as f64);
        }
        self.counter("kurultai_memory_samples_total", "Memory readings taken.", metrics.memory_samples);
        self.family("kurultai_daemon_memory_bytes", "gauge", "Memory of the daemon itself.");
        let DaemonMemory { rss, heap_used, heap_total, external } =
            sample.map_or_else(DaemonMemory::default, |sample| sample.daemon);
        for (kind, bytes) in
            [("rss", rss), ("heap_used", heap_used), ("heap_total", heap_total), ("external", external)]
        {
            self.value("kurultai_daemon_memory_bytes", &[("kind", kind)], bytes as f64);
        }
    }

    fn workers(&mut self, metrics: &Metrics, snapshot: &Snapshot) {
        let name = "kurultai_worker_memory_bytes";
        self.family(name, "gauge", "Memory of each worker; heap figures as it reports them.");
        for worker in &snapshot.workers.workers {
            let id = worker.id.to_string();
            let mut kind = |kind: &str, bytes: u64| {
                self.value(name, &[("worker", &id), ("agent", &worker.agent), ("kind", kind)], bytes as f64);
            };
            if let Some(rss) = worker.rss_bytes {
                kind("rss", rss);
            }
            let heap = worker.heap.unwrap_or_default();
            let figures = [
                ("heap_used", heap.heap_used),
                ("heap_total", heap.heap_total),
                ("external", heap.external),
                ("array_buffers", heap.array_buffers),
            ];
            // 0 is what an agent did not report: most know their resident memory alone.
            for (name, bytes) in figures.into_iter().filter(|(_, bytes)| *bytes > 0) {
                kind(name, bytes);
            }
        }
        self.gauge("kurultai_workers_active", "Worker processes that are not idle.", snapshot.workers.active);
        self.gauge("kurultai_workers_idle", "Worker processes that wait for a task.", snapshot.workers.idle);
        self.family("kurultai_worker_spawns_total", "counter", "Worker processes started.");
        for (agent, counts) in &metrics.agents {
            self.value("kurultai_worker_spawns_total", &[("agent", agent)], counts.spawns as f64);
        }
        self.family("kurultai_worker_exits_total", "counter", "Worker processes ended, by reason.");
        for (agent, counts) in &metrics.agents {
            for (reason, count) in &counts.exits {
                let labels = [("agent", &**agent), ("reason", reason.name())];
                self.value("kurultai_worker_exits_total", &labels, *count as f64);
            }
        }
    }

    fn out_of_memory(&mut self, metrics: &Metrics) {
        let name = "kurultai_worker_oom_total";
        self.family(
            name,
            "counter",
            "Worker processes that went over their memory limit or were killed by the kernel for it.",
        );
        for (agent, counts) in &metrics.agents {
            let count = counts.exits.get(&ExitReason::OutOfMemory).copied().unwrap_or(0);
            self.value(name, &[("agent", agent)], count as f64);
        }
    }

    fn queue_and_tasks(&mut self, metrics: &Metrics, snapshot: &Snapshot) {
        let queue = &snapshot.queue;
        self.gauge("kurultai_queue_depth", "Tasks accepted and never started.", queue.depth);
        self.family("kurultai_queue_depth_by_priority", "gauge", "Tasks that wait, by priority.");
        for priority in Priority::ALL {
            let waiting = queue.by_priority[priority.index()] as f64;
            self.value("kurultai_queue_depth_by_priority", &[("priority", priority.name())], waiting);
        }
        self.gauge("kurultai_queue_limit", "queue.max_depth.", queue.max_depth);
        self.family("kurultai_tasks_accepted_total", "counter", "Tasks accepted.");
        for (agent, counts) in &metrics.agents {
            for priority in Priority::ALL {
                let labels = [("agent", &**agent), ("priority", priority.name())];
                self.value("kurultai_tasks_accepted_total", &labels, counts.accepted[priority.index()] as f64);
            }
        }
        self.family("kurultai_tasks_rejected_total", "counter", "Submissions refused, by error code.");
        for (reason, count) in &metrics.rejected {
            self.value("kurultai_tasks_rejected_total", &[("reason", reason)], *count as f64);
        }
        self.family("kurultai_tasks_completed_total", "counter", "Tasks completed.");
        for (agent, counts) in &metrics.agents {
            self.value("kurultai_tasks_completed_total", &[("agent", agent)], counts.completed as f64);
        }
        self.family("kurultai_tasks_failed_total", "counter", "Tasks failed for good, by error code.");
        for (agent, counts) in &metrics.agents {
            for (code, count) in &counts.failed {
                let labels = [("agent", &**agent), ("reason", code.name())];
                self.value("kurultai_tasks_failed_total", &labels, *count as f64);
            }
        }
        self.counter("kurultai_tasks_preempted_total", "Running tasks parked.", metrics.preempted);
        self.counter("kurultai_tasks_killed_total", "Running tasks whose worker was killed.", metrics.killed);
        self.counter("kurultai_tasks_evicted_total", "Queued heartbeats that made room.", metrics.evicted);
        self.counter("kurultai_tasks_retried_total", "Attempts that failed and are made again.", metrics.retried);
        let skipped = metrics.heartbeats_skipped;
        self.counter("kurultai_heartbeats_skipped_total", "Heartbeats that were due and not run.", skipped);
        self.family("kurultai_task_duration_seconds", "histogram", "From start to end of the last attempt.");
        for (agent, counts) in &metrics.agents {
            self.histogram("kurultai_task_duration_seconds", agent, &counts.run_seconds);
        }
        self.family("kurultai_task_wait_seconds", "histogram", "From acceptance to start.");
        for (agent, counts) in &metrics.agents {
            self.histogram("kurultai_task_wait_seconds", agent, &counts.wait_seconds);
        }
    }

    fn storage(&mut self, metrics: &Metrics) {
        let name = "kurultai_storage_ok";
        self.gauge(name, "1, or 0 while new tasks are refused for want of disk.", usize::from(metrics.is_storage_ok));
        let name = "kurultai_storage_free_bytes";
        self.family(name, "gauge", "What is free on the disk of daemon.state_dir.");
        if let Some(bytes) = metrics.storage_free_bytes {
            self.value(name, &[], bytes as f64);
        }
        let name = "kurultai_spool_damaged_total";
        self.family(name, "counter", "What was found damaged or lost in daemon.state_dir, by kind.");
        for (kind, count) in &metrics.damaged {
            self.value(name, &[("kind", kind)], *count as f64);
        }
    }

    fn breakers(&mut self, metrics: &Metrics, snapshot: &Snapshot) {
        self.family("kurultai_circuit_breaker_state", "gauge", "0 closed, 1 half-open, 2 open.");
        for (name, breaker) in &snapshot.breakers {
            let state = state_value(breaker.state) as f64;
            self.value("kurultai_circuit_breaker_state", &[("breaker", name)], state);
        }
        self.family("kurultai_circuit_breaker_transitions_total", "counter", "Changes of state, by the new one.");
        for ((breaker, to), count) in &metrics.transitions {
            let labels = [("breaker", &**breaker), ("to", to)];
            self.value("kurultai_circuit_breaker_transitions_total", &labels, *count as f64);
        }
    }

    fn http(&mut self, http: &HttpMetrics, connections: usize) {
        self.family("kurultai_http_requests_total", "counter", "Requests answered, by route and status.");
        for (route, code, count) in http.requests() {
            let labels = [("route", route.pattern()), ("code", &code.to_string())];
            self.value("kurultai_http_requests_total", &labels, count as f64);
        }
        let name = "kurultai_http_request_duration_seconds";
        self.family(name, "histogram", "From the whole head to the answer; waiting clients included.");
        let (buckets, total, sum) = http.durations();
        for (bound, count) in buckets {
            self.value(&format!("{name}_bucket"), &[("le", &bound.to_string())], count as f64);
        }
        self.value(&format!("{name}_bucket"), &[("le", "+Inf")], total as f64);
        self.value(&format!("{name}_sum"), &[], sum);
        self.value(&format!("{name}_count"), &[], total as f64);
        self.gauge("kurultai_http_connections", "Open client connections.", connections);
    }

    fn daemon(&mut self, metrics: &Metrics, process: &Process) {
        self.family("kurultai_config_reloads_total", "counter", "Reloads of the configuration, by result.");
        for (result, count) in ["rejected", "ok"].into_iter().zip(metrics.reloads) {
            self.value("kurultai_config_reloads_total", &[("result", result)], count as f64);
        }
        self.family("kurultai_build_info", "gauge", "Always 1; the version is the label.");
        self.value("kurultai_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        self.family("process_cpu_seconds_total", "counter", "User and system CPU time of the daemon.");
        self.value("process_cpu_seconds_total", &[], process.cpu_seconds);
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory of the daemon.", process.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory of the daemon.", process.virtual_bytes),
            ("process_open_fds", "Open file descriptors of the daemon.", process.open_fds),
            ("process_max_fds", "Most file descriptors it may open.", process.max_fds),
            ("process_threads", "Threads of the daemon.", process.threads),
        ];
        for (name, help, value) in gauges {
            self.gauge(name, help, value as usize);
        }
        self.family("process_start_time_seconds", "gauge", "Start of the daemon since 1970-01-01 UTC.");
        self.value("process_start_time_seconds", &[], process.start_time_seconds);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.value(name, &[], value as f64);
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.family(name, "gauge", help);
        self.value(name, &[], value as f64);
    }

    fn histogram<const N: usize>(&mut self, name: &str, agent: &str, histogram: &Histogram<N>) {
        let mut total = 0;
        for (bound, count) in TASK_BUCKETS.iter().zip(histogram.counts) {
            total += count;
            let labels = [("agent", agent), ("le", &bound.to_string())];
            self.value(&format!("{name}_bucket"), &labels, total as f64);
        }
        total += histogram.above;
        self.value(&format!("{name}_bucket"), &[("agent", agent), ("le", "+Inf")], total as f64);
        self.value(&format!("{name}_sum"), &[("agent", agent)], histogram.sum);
        self.value(&format!("{name}_count"), &[("agent", agent)], total as f64);
    }

    fn value(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.text.push_str(name);
        for (nth, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"", if nth == 0 { '{' } else { ',' });
            for letter in text.chars() {
                match letter {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    letter => self.text.push(letter),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}
