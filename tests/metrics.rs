//! `/metrics`: every documented name, values that move as they should, and a text that Prometheus' own tool accepts.

mod common;

use std::collections::BTreeMap;

use common::{Daemon, Request, agent, run, soon, worker};
use serde_json::json;

/// interfaces.md, section 6, as far as the daemon has them.
const NAMES: &[(&str, &str)] = &[
    ("kurultai_memory_usage_bytes", "gauge"),
    ("kurultai_memory_limit_bytes", "gauge"),
    ("kurultai_memory_pressure_ratio", "gauge"),
    ("kurultai_memory_level", "gauge"),
    ("kurultai_memory_threshold_crossings_total", "counter"),
    ("kurultai_memory_samples_total", "counter"),
    ("kurultai_daemon_memory_bytes", "gauge"),
    ("kurultai_worker_memory_bytes", "gauge"),
    ("kurultai_workers_active", "gauge"),
    ("kurultai_workers_idle", "gauge"),
    ("kurultai_worker_spawns_total", "counter"),
    ("kurultai_worker_exits_total", "counter"),
    ("kurultai_queue_depth", "gauge"),
    ("kurultai_queue_depth_by_priority", "gauge"),
    ("kurultai_queue_limit", "gauge"),
    ("kurultai_tasks_accepted_total", "counter"),
    ("kurultai_tasks_rejected_total", "counter"),
    ("kurultai_storage_ok", "gauge"),
    ("kurultai_storage_free_bytes", "gauge"),
    ("kurultai_tasks_completed_total", "counter"),
    ("kurultai_tasks_failed_total", "counter"),
    ("kurultai_tasks_preempted_total", "counter"),
    ("kurultai_tasks_killed_total", "counter"),
    ("kurultai_tasks_evicted_total", "counter"),
    ("kurultai_tasks_retried_total", "counter"),
    ("kurultai_heartbeats_skipped_total", "counter"),
    ("kurultai_task_duration_seconds", "histogram"),
    ("kurultai_task_wait_seconds", "histogram"),
    ("kurultai_circuit_breaker_state", "gauge"),
    ("kurultai_circuit_breaker_transitions_total", "counter"),
    ("kurultai_http_requests_total", "counter"),
    ("kurultai_http_request_duration_seconds", "histogram"),
    ("kurultai_http_connections", "gauge"),
    ("kurultai_config_reloads_total", "counter"),
    ("kurultai_build_info", "gauge"),
    ("process_cpu_seconds_total", "counter"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_virtual_memory_bytes", "gauge"),
    ("process_open_fds", "gauge"),
    ("process_max_fds", "gauge"),
    ("process_start_time_seconds", "gauge"),
];

struct Page {
    types: BTreeMap<String, String>,
    values: BTreeMap<String, f64>,
}

impl Page {
    fn of(daemon: &Daemon) -> Page {
        let response = daemon.get("/metrics").expect(200);
        assert_eq!(response.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
        for line in response.text().lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "{name} is declared twice");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
                assert!(value.is_finite(), "{line}");
                assert_eq!(values.insert(name.to_owned(), value), None, "{name} is given twice");
            }
        }
        Page { types, values }
    }

    /// A series that is not there counts as nothing.
    fn value(&self, name: &str) -> f64 {
        self.values.get(name).copied().unwrap_or(0.0)
    }
}

fn config() -> String {
    format!(
        "[workers]\nmax = 1\ncancel_grace_ms = 50\n[queue]\nmax_depth = 2\n{}{}{}[breakers.b]\n",
        worker("sleeper", "tests/agents/sleeper", ""),
        agent("exit3", "tests/agents/bad/exit3", ""),
        worker("silent-cancel", "tests/agents/bad/silent-cancel", ""),
    )
}

#[test]
fn every_documented_name_is_there_with_its_type_and_nothing_is_undocumented() {
    let daemon = Daemon::start(&config());
    let page = Page::of(&daemon);
    for (name, kind) in NAMES {
        assert_eq!(page.types.get(*name).map(String::as_str), Some(*kind), "{name}");
    }
    for (name, kind) in &page.types {
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(name.starts_with("kurultai_") || name.starts_with("process_"), "{name}");
    }
    for series in page.values.keys() {
        let name = series.split('{').next().unwrap_or("");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let is_known = page.types.contains_key(name) || family.is_some_and(|name| page.types.contains_key(name));
        assert!(is_known, "{series} has no type");
    }
    daemon.stop();
}

#[test]
fn series_an_alert_rests_on_are_there_before_anything_happens() {
    let daemon = Daemon::start(&config());
    let page = Page::of(&daemon);
    for series in [
        "kurultai_tasks_accepted_total{agent=\"sleeper\",priority=\"normal\"}",
        "kurultai_tasks_completed_total{agent=\"exit3\"}",
        "kurultai_worker_spawns_total{agent=\"sleeper\"}",
        "kurultai_task_duration_seconds_count{agent=\"sleeper\"}",
        "kurultai_circuit_breaker_state{breaker=\"b\"}",
        "kurultai_config_reloads_total{result=\"rejected\"}",
        "kurultai_memory_threshold_crossings_total{level=\"emergency\",direction=\"up\"}",
    ] {
        assert_eq!(page.values.get(series), Some(&0.0), "{series}");
    }
    assert_eq!(page.value("kurultai_memory_limit_bytes"), 4096.0 * 1024.0 * 1024.0);
    assert_eq!(page.value("kurultai_queue_limit"), 2.0);
    assert_eq!(page.value(&format!("kurultai_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), 1.0);
    daemon.stop();
}

#[test]
fn a_worker_has_series_of_the_memory_it_tells_of_and_no_others() {
    let daemon = Daemon::start(&format!(
        "[workers]\nmax = 2\n{}{}",
        worker("echo", "scripts/agents/echo.py", ""),
        worker("render", "scripts/agents/render", "runtime = \"node\""),
    ));
    let kinds = |agent: &str| -> Vec<String> {
        let label = format!("agent=\"{agent}\",kind=\"");
        let page = Page::of(&daemon);
        let mine = page.values.iter().filter(|(series, _)| series.starts_with("kurultai_worker_memory_bytes{"));
        mine.filter_map(|(series, bytes)| {
            let kind = series.split_once(&label)?.1.trim_end_matches("\"}");
            assert!(*bytes > 0.0, "{series} {bytes}");
            Some(kind.to_owned())
        })
        .collect()
    };
    daemon.run_task("echo", json!(1));
    daemon.run_task("render", json!("# a heading"));
    // What it tells itself, and what is read of it, come each in its time.
    soon("all of the memory of node is known", || {
        kinds("render") == ["array_buffers", "external", "heap_total", "heap_used", "rss"]
    });
    soon("the worker's resident memory is known", || kinds("echo") == ["rss"]);
    daemon.stop();
}

#[test]
fn values_move_by_what_happened_and_by_nothing_else() {
    let daemon = Daemon::start(&config());
    let before = Page::of(&daemon);
    for _ in 0..2 {
        daemon.run_task("sleeper", json!({ "ms": 10 }));
    }
    daemon.run_with(json!({
        "agent": "sleeper", "maxRetries": 1, "priority": "high",
        "payload": { "fail": "x", "failAttempts": 1, "retryable": true },
    }));
    daemon.run_task("exit3", json!(1));
    daemon.run_with(json!({ "agent": "silent-cancel", "timeoutS": 0.05 }));
    let running = daemon.accept("sleeper", json!({ "ms": 600_000 }));
    daemon.in_state(&running, &["running"]);
    let beat = daemon.accept_with(json!({ "agent": "sleeper", "priority": "heartbeat" }));
    let waiting = daemon.accept("sleeper", json!({}));
    daemon.submit(&json!({ "agent": "sleeper" })).expect(429);
    daemon.submit(&json!({ "agent": "nobody" })).expect(404);
    let critical = daemon.accept_with(json!({ "agent": "sleeper", "priority": "critical" }));
    daemon.post("/v1/breakers/b/open", "").expect(200);
    daemon.get("/nowhere").expect(404);
    daemon.post("/v1/reload", "").expect(200);

    let busy = Page::of(&daemon);
    let rows = [
        ("kurultai_tasks_accepted_total{agent=\"sleeper\",priority=\"normal\"}", 4.0),
        ("kurultai_tasks_accepted_total{agent=\"sleeper\",priority=\"high\"}", 1.0),
        ("kurultai_tasks_accepted_total{agent=\"sleeper\",priority=\"critical\"}", 1.0),
        ("kurultai_tasks_accepted_total{agent=\"sleeper\",priority=\"heartbeat\"}", 1.0),
        ("kurultai_tasks_accepted_total{agent=\"exit3\",priority=\"normal\"}", 1.0),
        ("kurultai_tasks_rejected_total{reason=\"queue_full\"}", 1.0),
        ("kurultai_tasks_rejected_total{reason=\"unknown_agent\"}", 1.0),
        ("kurultai_tasks_completed_total{agent=\"sleeper\"}", 3.0),
        ("kurultai_tasks_failed_total{agent=\"exit3\",reason=\"agent_failed\"}", 1.0),
        ("kurultai_tasks_failed_total{agent=\"silent-cancel\",reason=\"timeout\"}", 1.0),
        ("kurultai_tasks_failed_total{agent=\"sleeper\",reason=\"agent_failed\"}", 0.0),
        ("kurultai_tasks_retried_total", 1.0),
        ("kurultai_tasks_evicted_total", 1.0),
        ("kurultai_tasks_killed_total", 1.0),
        ("kurultai_tasks_preempted_total", 0.0),
        ("kurultai_task_duration_seconds_count{agent=\"exit3\"}", 1.0),
        ("kurultai_task_wait_seconds_count{agent=\"exit3\"}", 1.0),
        ("kurultai_worker_spawns_total{agent=\"exit3\"}", 1.0),
        ("kurultai_worker_exits_total{agent=\"exit3\",reason=\"finished\"}", 1.0),
        ("kurultai_worker_exits_total{agent=\"silent-cancel\",reason=\"killed\"}", 1.0),
        ("kurultai_circuit_breaker_state{breaker=\"b\"}", 2.0),
        ("kurultai_circuit_breaker_transitions_total{breaker=\"b\",to=\"open\"}", 1.0),
        ("kurultai_config_reloads_total{result=\"ok\"}", 1.0),
        ("kurultai_http_requests_total{route=\"other\",code=\"404\"}", 1.0),
        ("kurultai_http_requests_total{route=\"/v1/tasks\",code=\"429\"}", 1.0),
        ("kurultai_queue_depth", 2.0),
        ("kurultai_queue_depth_by_priority{priority=\"critical\"}", 1.0),
        ("kurultai_queue_depth_by_priority{priority=\"heartbeat\"}", 0.0),
        ("kurultai_workers_active", 1.0),
    ];
    for (series, moved) in rows {
        assert_eq!(busy.value(series) - before.value(series), moved, "{series}");
    }
    assert_eq!(daemon.task(&beat)["state"], "evicted");
    assert!(busy.value("kurultai_task_duration_seconds_sum{agent=\"sleeper\"}") >= 0.02);
    daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{running}"))).expect(202);
    for id in [&waiting, &critical] {
        daemon.finished(id);
    }
    let idle = Page::of(&daemon);
    let gauges = ["kurultai_queue_depth", "kurultai_workers_active", "kurultai_workers_idle"];
    assert_eq!(gauges.map(|name| idle.value(name)), [0.0, 0.0, 1.0]);
    daemon.stop();
}

#[test]
fn histograms_are_cumulative_and_agree_with_their_counts() {
    let daemon = Daemon::start(&config());
    for ms in [0, 30, 120] {
        daemon.run_task("sleeper", json!({ "ms": ms }));
    }
    let page = Page::of(&daemon);
    let families = [
        ("kurultai_task_duration_seconds", "agent=\"sleeper\","),
        ("kurultai_task_wait_seconds", "agent=\"sleeper\","),
        ("kurultai_http_request_duration_seconds", ""),
    ];
    for (name, labels) in families {
        let prefix = format!("{name}_bucket{{{labels}le=\"");
        let mut buckets: Vec<(f64, f64)> = page
            .values
            .iter()
            .filter_map(|(series, count)| {
                let bound = series.strip_prefix(&prefix)?.strip_suffix("\"}")?;
                Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a bound") }, *count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.len() > 5 && buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}: {buckets:?}");
        let labels = labels.trim_end_matches(',');
        let count = if labels.is_empty() { format!("{name}_count") } else { format!("{name}_count{{{labels}}}") };
        assert_eq!(buckets.last().map(|(_, count)| *count), Some(page.value(&count)), "{name}");
        assert!(page.value(&count) >= 3.0, "{name}");
    }
    daemon.stop();
}

#[test]
fn promtool_has_nothing_to_say() {
    let daemon = Daemon::start(&config());
    daemon.run_task("sleeper", json!({ "ms": 10 }));
    daemon.run_task("exit3", json!(1));
    daemon.submit(&json!({ "agent": "nobody \"quoted\"\\" })).expect(404);
    let page = daemon.get("/metrics").expect(200).body;
    // Debian has it in the package prometheus.
    let said = run("promtool", ["check", "metrics"], &page).expect(0);
    assert_eq!((said.text(), said.stderr.as_str()), (String::new(), ""));
    daemon.stop();
}
