//! Clients that people really use, with what they do that a hand-written one does not.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Daemon, Footprint, Home, MIB, Ran, command, free_port, repository, run, run_command, soon};
use serde_json::json;

/// A daemon on TCP as well, and the beginning of its URLs.
fn start() -> (Daemon, String) {
    let port = free_port();
    let config = format!(
        "[gateway]\nlisten = \"127.0.0.1:{port}\"\n[breakers.shut]\n[agents.cat]\ncommand = [\"cat\"]\n\
         [agents.shut]\ncommand = [\"cat\"]\nbreaker = \"shut\"\n"
    );
    let daemon = Daemon::start(&config);
    daemon.post("/v1/breakers/shut/open", "").expect(200);
    daemon.post("/v1/agents/cat/tasks?wait=30", "warm").expect(200);
    daemon.has_no_workers();
    (daemon, format!("http://127.0.0.1:{port}"))
}

#[track_caller]
fn curl(arguments: &[&str], input: &[u8]) -> Ran {
    run("curl", ["--silent", "--show-error", "--max-time", "30"].iter().chain(arguments), input).expect(0)
}

#[test]
fn curl_uploads_with_expect_takes_ranges_and_keeps_its_connection() {
    let (daemon, base) = start();
    let before = daemon.footprint();
    let large: Vec<u8> = (0_u32..5 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let submit = format!("{base}/v1/agents/cat/tasks?wait=30");
    let copied = curl(&["-H", "Expect: 100-continue", "--data-binary", "@-", &submit], &large);
    assert!(copied.stdout == large, "{} bytes came back", copied.stdout.len());
    // Refused before it is sent: curl says how many bytes it uploaded.
    let shut = format!("{base}/v1/agents/shut/tasks");
    let figures = "%{http_code} %{size_upload} %{num_connects}";
    let refused = curl(
        &[
            "-o",
            "/dev/null",
            "-w",
            figures,
            "--expect100-timeout",
            "30",
            "-H",
            "Expect: 100-continue",
            "--data-binary",
            "@-",
            &shut,
        ],
        &large,
    );
    assert_eq!(refused.text(), "503 0 1");
    let hasty = curl(&["-w", " %{http_code}", "-H", "Expect:", "--data-binary", "@-", &shut], &large).text();
    assert!(hasty.contains("circuit_open") && hasty.ends_with(" 503"), "it sees why: {hasty}");
    let result = format!("{base}/v1/tasks/t-2/result");
    for (range, part) in
        [("0-9", &large[..10]), ("5000000-", &large[5_000_000..]), ("-100", &large[large.len() - 100..])]
    {
        let got = curl(&["--range", range, &result], b"");
        assert!(got.stdout == part, "{range}: {} bytes", got.stdout.len());
    }
    // A download that broke off is taken up where it ended.
    let file = daemon.path().join("result");
    std::fs::write(&file, &large[..3_000_000]).expect("the directory can be written");
    curl(&["--continue-at", "-", "--output", &file.display().to_string(), &result], b"");
    assert!(std::fs::read(&file).expect("it is there") == large);
    let old = curl(&["--http1.0", "-i", &format!("{base}/health")], b"").text();
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n"), "{old}");
    let urls: Vec<String> = (0..20).map(|_| format!("{base}/health?live")).collect();
    let mut many: Vec<&str> = vec!["-w", "%{num_connects}"];
    many.extend(urls.iter().map(String::as_str));
    let connects = curl(&many, b"").text().replace("{\"status\":\"live\"}\n", "");
    assert_eq!(connects, format!("1{}", "0".repeat(19)), "one connection for all");
    let head = curl(&["--head", &result], b"").text();
    assert!(head.contains("Accept-Ranges: bytes\r\n") && head.contains("Content-Length: 5242880\r\n"), "{head}");
    daemon.has_no_workers();
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}

const PYTHON: &str = r#"
import http.client, json, sys
host, port = sys.argv[1].removeprefix("http://").split(":")
client = http.client.HTTPConnection(host, int(port), timeout=30)
def ask(method, path, body=None, headers={}):
    client.request(method, path, body, headers)
    answer = client.getresponse()
    return answer.status, answer.read(), answer
for n in range(20):
    status, body, _ = ask("POST", "/v1/agents/cat/tasks?wait=30", b"body %d" % n)
    assert (status, body) == (200, b"body %d" % n), (status, body)
socket = client.sock
assert ask("GET", "/v1/status")[0] == 200 and client.sock is socket, "the connection is kept"
status, body, answer = ask("GET", "/v1/tasks/t-2/result", headers={"Range": "bytes=2-3"})
assert (status, body, answer.getheader("Content-Range")) == (206, b"dy", "bytes 2-3/6"), (status, body)
# It sends all of a body before it looks for the answer.
status, body, answer = ask("POST", "/v1/agents/cat/tasks", b"x" * (9 << 20))
assert status == 413 and json.loads(body)["error"]["code"] == "payload_too_large", (status, body)
assert answer.getheader("Connection") == "close"
status, body, _ = ask("POST", "/v1/agents/shut/tasks", b"x" * (5 << 20))
assert status == 503 and json.loads(body)["error"]["code"] == "circuit_open", (status, body)
# Of unknown length, in chunks.
status, body, _ = ask("POST", "/v1/agents/cat/tasks", iter([b"a", b"b"]))
assert status == 411, (status, body)
print("served")
"#;

#[test]
fn the_sum_agent_of_the_readme_answers_the_lines_of_the_readme() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("it is there");
    let (_, code) = readme.split_once("```python\n").expect("an agent");
    let (code, _) = code.split_once("```").expect("its end");
    let port = free_port();
    let home = Home::new("");
    let agent = home.path().join("sum.py");
    fs::write(&agent, code).expect("it can be written");
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::copy(repository().join("scripts/agents/kurultai.py"), home.path().join("kurultai.py"))
        .expect("it can be copied");
    home.configure(&format!(
        "[gateway]\nlisten = \"127.0.0.1:{port}\"\n[agents.sum]\ncommand = [{:?}]\nmode = \"persistent\"\n",
        agent.display().to_string()
    ));
    let daemon = home.start();
    let client = format!("{} --socket {} ", env!("CARGO_BIN_EXE_kurultaictl"), daemon.home().socket().display());
    let is_typed = |line: &&str| line.contains("'[1, 2, 3]'");
    assert_eq!(readme.lines().filter(is_typed).count(), 2);
    for line in readme.lines().filter(is_typed) {
        let line = line.replace("127.0.0.1:7700", &format!("127.0.0.1:{port}")).replace("kurultaictl ", &client);
        let said = run_command(command("sh").args(["-c", &line]), b"").expect(0);
        assert_eq!(said.text().trim_end(), r#"{"sum":6}"#, "{line}");
    }
    daemon.stop();
}

#[test]
fn python_is_served() {
    let (daemon, base) = start();
    let before = daemon.footprint();
    let said = run("python3", ["-c", PYTHON, &base], b"").expect(0).text();
    assert_eq!(said, "served\n");
    daemon.has_no_workers();
    soon("its descriptors are given back", || Footprint::of(daemon.pid()).fds == before.fds);
    daemon.stop();
}

const NODE: &str = r#"
const base = process.argv[1];
const check = (is, what) => { if (!is) { console.error(what); process.exit(1); } };
const ask = async (path, options) => {
  const answer = await fetch(base + path, options);
  return [answer.status, await answer.text(), answer.headers];
};
(async () => {
  const all = await Promise.all(Array.from({ length: 4 }, (_, n) =>
    ask("/v1/agents/cat/tasks?wait=30", { method: "POST", body: "body " + n })));
  all.forEach(([status, text], n) => check(status === 200 && text === "body " + n, [status, text]));
  let [status, text] = await ask("/v1/tasks?wait=30", {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ agent: "cat", payload: { a: 1 } }),
  });
  check(status === 200 && JSON.parse(text).state === "completed", [status, text]);
  [status, text] = await ask("/v1/tasks/t-1/result", { headers: { Range: "bytes=-2" } });
  check(status === 206 && text === "rm", [status, text]);
  [status, text] = await ask("/v1/agents/nobody/tasks", { method: "POST", body: "x".repeat(1 << 20) });
  check(status === 404 && JSON.parse(text).error.code === "unknown_agent", [status, text]);
  const stop = new AbortController();
  const events = await fetch(base + "/v1/events?types=TASK_COMPLETED", { signal: stop.signal });
  const reader = events.body.getReader();
  await ask("/v1/agents/cat/tasks?wait=30", { method: "POST", body: "x" });
  const { value } = await reader.read();
  check(JSON.parse(new TextDecoder().decode(value)).event === "TASK_COMPLETED", "an event");
  stop.abort();
  console.log("served");
  process.exit(0);
})();
"#;

#[test]
fn node_is_served() {
    let (daemon, base) = start();
    let before = daemon.footprint();
    let said = run_command(command("node").args(["-e", NODE, &base]), b"").expect(0);
    assert_eq!(said.text(), "served\n", "{}", said.stderr);
    daemon.has_no_workers();
    soon("its descriptors are given back", || Footprint::of(daemon.pid()).fds == before.fds);
    daemon.stop();
}

#[test]
fn apache_bench_loses_no_request() {
    let (daemon, base) = start();
    let before = daemon.footprint();
    for more in [&[][..], &["-k"]] {
        let url = format!("{base}/health?live");
        let fixed = ["-q", "-n", "2000", "-c", "20", "-s", "30"];
        let report = run("ab", fixed.iter().chain(more).chain(&[url.as_str()]), b"").expect(0).text();
        let figure =
            |name: &str| report.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned);
        assert_eq!(figure("Complete requests:").as_deref(), Some("2000"), "{report}");
        assert_eq!(figure("Failed requests:").as_deref(), Some("0"), "{report}");
        assert_eq!(figure("Keep-Alive requests:").as_deref(), more.first().map(|_| "2000"), "{report}");
        assert!(!report.contains("Non-2xx"), "{report}");
    }
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    let grown = after.rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown < MIB, "RSS grew by {grown} bytes");
    let status = daemon.get("/v1/status").expect(200).json();
    assert_eq!(status["state"], json!("running"));
    daemon.stop();
}
