//! The status page as it is served: every figure without a script, texts of others harmless, and who may see it.

mod common;

use std::collections::BTreeSet;

use common::{Connection, Daemon, Footprint, Home, MIB, Request, Response, free_port, run, until, worker};
use serde_json::{Value, json};

fn config() -> String {
    format!(
        "[daemon]\ndrain_timeout_s = 1\n[memory]\nlimit_mb = 400\n[workers]\nmax = 1\nsoft_limit_mb = 150\nhard_limit_mb = 260\n{}\
         [breakers.mirror]\nfailure_threshold = 1\nbackoff_ms = [600000]\n[breakers.spare]\n",
        worker("sleeper", "tests/agents/sleeper", "breaker = \"spare\"")
    )
}

fn browse(path: &str) -> Request {
    Request::get(path).with("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
}

#[track_caller]
fn page(daemon: &Daemon) -> String {
    daemon.ask(&browse("/")).expect(200).text()
}

/// The page once it says this; what it shows may be a moment behind.
#[track_caller]
fn page_with(daemon: &Daemon, words: &str) -> String {
    until(&format!("the page says {words:?}"), || Some(page(daemon)).filter(|page| page.contains(words)))
}

/// What stands in the element with this id, up to its end.
#[track_caller]
fn part<'a>(page: &'a str, id: &str, end: &str) -> &'a str {
    let at = page.find(&format!("id=\"{id}\"")).unwrap_or_else(|| panic!("no element {id}"));
    let inner = &page[at + page[at..].find('>').expect("the tag ends") + 1..];
    &inner[..inner.find(end).unwrap_or_else(|| panic!("{id} does not end"))]
}

#[test]
fn without_scripts_it_shows_everything_at_once_and_comes_again_by_itself() {
    let daemon = Daemon::start(&config());
    let busy = daemon.accept("sleeper", json!({ "ms": 600_000, "mb": 60 }));
    daemon.in_state(&busy, &["running"]);
    let next = daemon.accept_with(json!({ "agent": "sleeper", "priority": "high" }));
    daemon.post("/v1/breakers/mirror/open", "").expect(200);
    until("its memory is seen", || {
        let workers = daemon.get("/v1/workers").expect(200).json();
        workers["workers"][0]["rssBytes"].as_u64().filter(|rss| *rss > 60 * MIB)
    });
    let page = page(&daemon);
    assert!(page.contains("<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>"), "it refreshes");
    assert!(!page.contains("{{"), "a place that was not filled in");
    assert_eq!(part(&page, "level", "<"), "Normal");
    assert!(part(&page, "about", "<").starts_with(concat!("version ", env!("CARGO_PKG_VERSION"), ", up ")));
    let tiles = part(&page, "tiles", "</dl>");
    for tile in [
        "of the budget, 400 MiB",
        "<dd>1 / 1</dd><dd>0 idle",
        "<dd>1 / 5</dd><dd>0 preempted",
        "<dd>1 / 2</dd><dd>mirror",
    ] {
        assert!(tiles.contains(tile), "{tile} in {tiles}");
    }
    assert!(part(&page, "sources", "</dl>").contains("MiB of 400 MiB</dd>"), "{page}");
    let workers = part(&page, "workers", "</ul>");
    for words in ["<b>sleeper</b>", "busy", &format!("href=\"/v1/tasks/{busy}\""), "soft 150 MiB, hard 260 MiB"] {
        assert!(workers.contains(words), "{words} in {workers}");
    }
    assert!(workers.contains("MiB of 260 MiB\""), "a bar says what it shows: {workers}");
    let queue = part(&page, "queue", "</tbody>");
    assert!(queue.contains("high</th>") && queue.contains("<td>1 / 5</td>"), "{queue}");
    assert!(part(&page, "waiting", "</p>").contains(&format!("{next}</a> sleeper")));
    let breakers = part(&page, "breakers", "</ul>");
    assert!(breakers.contains("<b>mirror</b>") && breakers.contains("held open by hand"), "{breakers}");
    assert!(breakers.contains("closed</span>") && breakers.contains("no failures"), "{breakers}");
    let decisions = part(&page, "decisions", "</ol>");
    assert!(decisions.contains("CIRCUIT_OPEN") && decisions.contains("TASK_STARTED"), "{decisions}");
    for line in ["warning 70 %", "critical 85 %", "reject 90 %", "emergency 95 %"] {
        assert!(part(&page, "scale", "</svg>").contains(line), "{line}");
    }
    let peaks = daemon.get("/v1/memory").expect(200).json()["history"]["peaks"].as_array().map_or(0, Vec::len);
    let curve = page.split("id=\"curve\" points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a curve");
    let points = curve.split(' ').count();
    assert!(points > 0 && points <= peaks && peaks <= points + 20, "{points} points of {peaks} peaks");
    assert!(curve.split(' ').next_back().is_some_and(|point| point.starts_with("299,")), "now is at the edge: {curve}");
    daemon.stop();
}

#[test]
fn pressure_and_its_incident_are_on_it() {
    let limit = "[daemon]\ndrain_timeout_s = 1\n[memory]\nlimit_mb = 100\n[workers]\nmax = 1\n";
    let daemon = Daemon::start(&format!("{limit}{}", worker("sleeper", "tests/agents/sleeper", "")));
    assert_eq!(part(&page(&daemon), "incident", "<"), "");
    daemon.accept("sleeper", json!({ "ms": 600_000, "mb": 60 }));
    let page = page_with(&daemon, "incident mem-1");
    assert_eq!(part(&page, "level", "<"), "Warning");
    assert!(page.contains("<p id=\"health\" class=\"warning\" role=\"status\">"), "it has its colour");
    assert_eq!(part(&page, "means", "<"), "Heartbeats are skipped, idle workers are retired.");
    assert!(part(&page, "decisions", "</ol>").contains("MEMORY_WARNING"));
    daemon.stop();
}

#[test]
fn nothing_it_shows_of_others_is_markup() {
    const EVIL: &str = "<script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;";
    const HARMLESS: &str =
        "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&lt;img src=x onerror=&quot;alert(2)&quot;&gt;&amp;amp;";
    let daemon = Daemon::start(&config());
    let failed = daemon.run_task("sleeper", json!({ "ms": 0, "fail": EVIL }));
    assert_eq!(failed["error"]["message"], format!("RuntimeError: {EVIL}"), "the API has it as it is");
    daemon.home().configure(&format!("[\"<script>\"]\n{}", config()));
    daemon.post("/v1/reload", "").expect(400);
    let page = page(&daemon);
    assert!(part(&page, "decisions", "</ol>").contains(HARMLESS), "the task's error: {page}");
    assert!(part(&page, "alerts", "</ul>").contains("&lt;script&gt;"), "the configuration's: {page}");
    assert_eq!(page.matches("<script").count(), 1, "its own: {page}");
    assert!(!page.contains("<img"), "{page}");
    daemon.stop();
}

/// `'sha256-…'` of what stands between two tags, as CSP level 3 has it.
fn hash(page: &str, start: &str, end: &str) -> String {
    let text = page.split_once(start).and_then(|(_, rest)| rest.split_once(end)).expect("both tags").0;
    let digest = run("sha256sum", [""; 0], text.as_bytes()).expect(0).text();
    let bytes: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&digest[at..at + 2], 16).expect("hexadecimal")).collect();
    format!("'sha256-{}'", run("base64", [""; 0], &bytes).expect(0).text().trim())
}

#[test]
fn it_may_run_its_own_script_and_ask_its_own_daemon_and_nothing_else() {
    let daemon = Daemon::start(&config());
    let response = daemon.ask(&browse("/")).expect(200);
    let page = response.text();
    let policy = response.header("Content-Security-Policy").expect("a policy");
    let directives: BTreeSet<&str> = policy.split("; ").collect();
    let (style, script) = (hash(&page, "<style>", "</style>"), hash(&page, "<script>", "</script>"));
    let expected = [
        "default-src 'none'".to_string(),
        format!("style-src {style}"),
        format!("script-src {script}"),
        "img-src data:".to_string(),
        "connect-src 'self'".to_string(),
        "base-uri 'none'".to_string(),
        "form-action 'none'".to_string(),
        "frame-ancestors 'none'".to_string(),
    ];
    assert_eq!(directives, expected.iter().map(String::as_str).collect(), "POLICY of src/gateway/page/mod.rs");
    for (name, value) in [
        ("Content-Type", "text/html; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Frame-Options", "DENY"),
        ("Cache-Control", "no-store"),
    ] {
        assert_eq!(response.header(name), Some(value), "{name}");
    }
    assert!(!page.contains(" src=") && !page.contains(" style=") && !page.contains("url("), "no assets, no styles");
    let addresses = page.match_indices("http").filter(|(at, _)| page[*at..].contains("://"));
    for (at, _) in addresses {
        let rest = &page[at..page.len().min(at + 40)];
        let is_name = rest.starts_with("http://www.w3.org/2000/svg") || rest.starts_with("http-equiv");
        assert!(is_name, "an address of somewhere else: {rest}");
    }
    let json = daemon.get("/v1/status").expect(200);
    for (name, value) in [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")] {
        assert_eq!(json.header(name), Some(value), "{name} of JSON");
    }
    daemon.stop();
}

#[test]
fn it_is_read_only_and_counted() {
    let daemon = Daemon::start(&config());
    let whole = daemon.ask(&browse("/")).expect(200);
    let head = daemon.ask(&Request::new("HEAD", "/"));
    assert_eq!((head.status, head.body.len()), (200, 0));
    let length =
        |response: &Response| response.header("Content-Length").and_then(|length| length.parse::<usize>().ok());
    assert_eq!(length(&whole), Some(whole.body.len()));
    assert!(length(&head).is_some_and(|length| length > 10_000), "{head:?}");
    for method in ["POST", "DELETE", "PUT", "OPTIONS"] {
        let refused = daemon.ask(&Request::new(method, "/")).expect(405);
        assert_eq!(refused.header("Allow"), Some("GET, HEAD"), "{method}");
        assert_eq!(refused.error_code(), "method_not_allowed", "{method}");
    }
    assert_eq!(daemon.get("/?figures").expect(400).error_code(), "invalid_request");
    let refused = daemon.ask(&browse("/?<b>")).expect(400);
    assert_eq!(refused.header("Content-Type"), Some("text/html; charset=utf-8"), "in a browser");
    assert!(refused.text().contains("&lt;b&gt;") && !refused.text().contains("<b>"), "{}", refused.text());
    let metrics = daemon.get("/metrics").expect(200).text();
    assert!(metrics.contains("kurultai_http_requests_total{route=\"/\",code=\"200\"} 2"), "{metrics}");
    daemon.stop();
}

#[test]
fn with_a_token_a_browser_is_asked_for_it_and_may_read_with_it() {
    use std::os::unix::fs::PermissionsExt;
    let port = free_port();
    let home = Home::new("");
    let token = home.path().join("token");
    std::fs::write(&token, "correct-horse-battery\n").expect("it can be written");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    home.configure(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = {token:?}\n{}", config()));
    let daemon = home.start();
    let ask = |request: &Request| Connection::tcp(port).expect("the daemon listens").ask(request);
    // printf ':correct-horse-battery' | base64, and of "me:correct-horse-battery", ":correct-horse-batter"
    let right = ["Basic OmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==", "Basic bWU6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"];
    let wrong = "Basic OmNvcnJlY3QtaG9yc2UtYmF0dGVy";

    for request in
        [browse("/"), browse("/").with("Authorization", wrong), browse("/").with("Authorization", "Bearer x")]
    {
        let refused = ask(&request).expect(401);
        let challenge = refused.header("WWW-Authenticate");
        assert_eq!(challenge, Some("Basic realm=\"kurultai\", charset=\"UTF-8\""), "{request:?}");
        assert_eq!(refused.header("Content-Type"), Some("text/html; charset=utf-8"));
        assert!(
            refused.header("Content-Security-Policy").is_some_and(|policy| policy.starts_with("default-src 'none'"))
        );
        let text = refused.text();
        assert!(text.contains("gateway.token_file") && !text.contains("refresh"), "{text}");
        for figure in [env!("CARGO_PKG_VERSION"), "sleeper", "mirror", "MiB"] {
            assert!(!text.contains(figure), "{figure} is for those with a token: {text}");
        }
    }
    let to_a_program = ask(&Request::get("/")).expect(401);
    assert_eq!(to_a_program.error_code(), "unauthorized");
    let of_data = ask(&browse("/v1/status")).expect(401);
    assert_eq!((of_data.header("WWW-Authenticate"), &*of_data.error_code()), (Some("Bearer"), "unauthorized"));

    for authorization in right.into_iter().chain(["Bearer correct-horse-battery"]) {
        for path in ["/", "/v1/status", "/v1/decisions?limit=20"] {
            assert_eq!(ask(&browse(path).with("Authorization", authorization)).status, 200, "{path} {authorization}");
        }
    }
    // A browser adds Basic to what a foreign page makes it send.
    for change in [Request::post("/v1/drain", ""), Request::new("DELETE", "/v1/tasks/t-1")] {
        assert_eq!(ask(&change.with("Authorization", right[0])).expect(401).error_code(), "unauthorized");
    }
    let curl = |user: &str| {
        let url = format!("http://127.0.0.1:{port}/");
        run("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-u", user, &url], b"").expect(0).text()
    };
    assert_eq!((&*curl(":correct-horse-battery"), &*curl(":x")), ("200", "401"));
    assert_eq!(daemon.ask(&browse("/")).status, 200, "the Unix socket has its file mode");
    assert!(!daemon.log_text().contains("correct-horse"), "a token is nothing for the log");
    assert!(!daemon.log_text().contains("OmNvcnJlY3Q"), "nor is its other form");
    daemon.stop();
}

#[test]
fn a_refusal_in_a_browser_is_a_page_that_comes_again() {
    let port = free_port();
    let daemon = Daemon::start(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n{}", config()));
    let ask = |request: Request| Connection::tcp(port).expect("the daemon listens").ask(&request);
    let refused = ask(browse("/").with("Host", "evil.example")).expect(403);
    assert!(refused.text().contains("gateway.allowed_hosts") && refused.text().contains("http-equiv=\"refresh\""));
    assert_eq!(ask(Request::get("/").with("Host", "evil.example")).expect(403).error_code(), "forbidden");
    daemon.stop();
}

#[test]
fn the_peaks_of_the_last_minutes_are_kept() {
    let daemon = Daemon::start(&config());
    let history = |daemon: &Daemon| daemon.get("/v1/memory").expect(200).json()["history"].clone();
    let peaks = |history: &Value| -> Vec<f64> {
        history["peaks"].as_array().expect("a list").iter().map(|peak| peak.as_f64().expect("a ratio")).collect()
    };
    assert_eq!(history(&daemon)["slotS"], 2);
    assert!(peaks(&history(&daemon)).iter().all(|peak| *peak < 0.15), "nothing has happened: {}", history(&daemon));
    // 80 MiB and the interpreter are more than a fifth of 400 MiB.
    let task = daemon.accept("sleeper", json!({ "ms": 600_000, "mb": 80 }));
    until("it is seen", || daemon.get("/v1/memory").json()["highest"].as_f64().filter(|highest| *highest > 0.2));
    daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{task}"))).expect(202);
    daemon.finished(&task);
    until("another slot has begun, and it is gone", || {
        let peaks = peaks(&history(&daemon));
        peaks.last().filter(|last| **last < 0.2).map(|_| peaks.len())
    });
    let peaks = peaks(&history(&daemon));
    assert!(peaks.iter().any(|peak| *peak > 0.2), "the spike has its place: {peaks:?}");
    assert!(peaks.len() <= 300, "{}", peaks.len());
    assert_eq!(daemon.get("/v1/status").expect(200).json()["memory"]["history"]["slotS"], 2);
    daemon.stop();
}

/// Resident memory of the daemon that is no file's: its program text comes and goes. In bytes.
fn anonymous(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("proc_pid_status(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux 4.5");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn nothing_of_it_is_kept_between_two_requests() {
    let daemon = Daemon::start(&config());
    let get = || assert_eq!(daemon.ask(&browse("/")).status, 200);
    (0..50).for_each(|_| get());
    let (before, anonymous_before): (Footprint, u64) = (daemon.footprint(), anonymous(&daemon));
    (0..500).for_each(|_| get());
    let (after, anonymous_after) = (daemon.footprint(), anonymous(&daemon));
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    assert!(anonymous_after <= anonymous_before + 256 * 1024, "{anonymous_before} {anonymous_after}");
    daemon.stop();
}
