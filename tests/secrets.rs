//! What is nobody's business is in no log, however much of it is asked for.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Connection, Home, Request, free_port, until, worker};
use serde_json::json;

const TOKEN: &str = "correct-horse-battery-staple";
const OTHERS: [&str; 6] = [
    "wrong-horse-token",
    "payload-in-the-raw",
    "payload-in-json",
    "payload-large",
    "cookie-crumbs",
    "broken-body-text",
];

#[test]
fn tokens_headers_and_payloads_are_in_no_log_at_any_level() {
    for format in ["text", "json"] {
        let port = free_port();
        let home = Home::new("");
        let token = home.path().join("token");
        std::fs::write(&token, format!("{TOKEN}\n")).expect("it can be written");
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        home.configure(&format!(
            "[daemon]\nlog_level = \"trace\"\nlog_format = {format:?}\n[gateway]\nlisten = \"127.0.0.1:{port}\"\n\
             token_file = {token:?}\n[agents.cat]\ncommand = [\"cat\"]\n{}",
            worker("echo", "scripts/agents/echo.py", "")
        ));
        let daemon = home.start();
        let ask = |request: Request| Connection::tcp(port).expect("the daemon listens").ask(&request);
        let with = |request: Request, token: &str| request.with("Authorization", &format!("Bearer {token}"));
        let [wrong, raw, in_json, large, cookie, broken] = OTHERS;
        assert_eq!(ask(with(Request::get("/v1/status"), wrong)).status, 401);
        assert_eq!(ask(Request::get("/v1/status").with("Authorization", &format!("Basic {wrong}"))).status, 401);
        let sent = with(Request::post("/v1/agents/cat/tasks?wait=30", raw), TOKEN).with("Cookie", cookie);
        assert_eq!(ask(sent).expect(200).text(), raw);
        let sent = with(Request::json("/v1/tasks?wait=30", &json!({ "agent": "echo", "payload": in_json })), TOKEN);
        assert_eq!(ask(sent).expect(200).json()["result"], in_json);
        let body = large.repeat(20_000);
        assert!(
            ask(with(Request::post("/v1/agents/cat/tasks?wait=30", body.clone()), TOKEN)).expect(200).text() == body
        );
        for malformed in [
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nX : y\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"),
            format!(
                "GET / HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer {TOKEN}\r\nCookie: {cookie}\r\n\r\n"
            ),
            format!(
                "POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n\
                 {broken}",
                broken.len()
            ),
        ] {
            let mut connection = Connection::tcp(port).expect("the daemon listens");
            connection.send(malformed.as_bytes()).expect("the daemon reads");
            assert!(matches!(connection.receive().expect("an answer").status, 400 | 403), "{malformed}");
        }
        let wrong_type = json!({ "agent": "cat", "maxRetries": broken });
        assert_eq!(ask(with(Request::json("/v1/tasks", &wrong_type), TOKEN)).status, 400);
        daemon.get("/v1/tasks").expect(200);
        let log = until("the last request is in the log", || {
            Some(daemon.log_text()).filter(|log| log.matches("HTTP_REQUEST").count() >= 10)
        });
        for secret in OTHERS.into_iter().chain([TOKEN, "Bearer", "Authorization"]) {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{secret} in the {format} log");
        }
        daemon.stop();
    }
}
