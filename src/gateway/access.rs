//! Who may talk: by the socket's file mode, by token, by `Host` and `Origin`.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::answer::Problem;
use super::conn::Peer;
use super::head::{Head, Method, cut};

/// What is in no log, whoever shows the value that holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(pub T);

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(secret)")
    }
}

#[derive(Debug)]
pub struct Access {
    /// What `Authorization: Bearer` has to say, or the password of `Basic`; `None`: nothing.
    token: Option<Secret<Vec<u8>>>,
    /// Beside IP addresses of the loopback range and `localhost`.
    hosts: Vec<String>,
}

impl Access {
    pub fn new(token: Option<Vec<u8>>, listen: &str, allowed_hosts: &[String]) -> Access {
        let mut hosts: Vec<String> = allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        hosts.extend(host_of(listen).map(str::to_ascii_lowercase));
        Access { token: token.map(Secret), hosts }
    }

    /// A web page must not drive a local daemon: its requests carry a foreign `Origin`, or a name that was rebound.
    pub fn check(&self, peer: Peer, head: &Head) -> Result<(), Problem> {
        let Peer::Network(_) = peer else { return Ok(()) };
        if let Some(host) = &head.host
            && !self.is_ours(host)
        {
            return Err(forbidden(format!(
                "Host {:?} is no name of this daemon: use 127.0.0.1, or add it to gateway.allowed_hosts",
                cut(host)
            )));
        }
        if let Some(origin) = &head.origin {
            let host = origin.split_once("://").map_or("", |(_, host)| host);
            if !self.is_ours(host) {
                return Err(forbidden(format!("requests from pages of {:?} are not taken", cut(origin))));
            }
        }
        match &self.token {
            Some(Secret(token)) if head.path != "/health" => check_token(token, head),
            Some(_) | None => Ok(()),
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let Some(name) = host_of(host).map(str::to_ascii_lowercase) else { return false };
        let is_loopback = name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        name == "localhost" || is_loopback || self.hosts.contains(&name)
    }
}

/// Without port and brackets; `None` if it is no host with or without a port.
fn host_of(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    is_port.then_some(name)
}

fn check_token(token: &[u8], head: &Head) -> Result<(), Problem> {
    let authorization = head.authorization.as_ref().map(|Secret(value)| value.as_str());
    let given = authorization.and_then(|credentials| given_token(credentials, head.method)).unwrap_or_default();
    if equal_in_constant_time(token, &given) {
        return Ok(());
    }
    let is_basic =
        authorization.is_some_and(|given| given.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("basic ")));
    let what = match authorization {
        Some(_) if is_basic && !is_reading(head.method) => "Basic is for reading only",
        Some(_) => "the token is not the right one",
        None => "there is no token",
    };
    // Why only there: a browser asks its user for a password, and a script that asks for data is no place for that.
    let challenge = if head.path == "/" { "Basic realm=\"kurultai\", charset=\"UTF-8\"" } else { "Bearer" };
    let message = format!("{what}: send Authorization: Bearer with the text of gateway.token_file");
    Err(Problem { challenge: Some(challenge), ..Problem::new(401, "unauthorized", message) })
}

fn is_reading(method: Method) -> bool {
    matches!(method, Method::Get | Method::Head)
}

/// The token of `Bearer TOKEN` (RFC 6750), or the password of `Basic` (RFC 7617), whatever the name. A browser adds the
/// latter to requests by itself, those of foreign pages too: it is good for reading only.
fn given_token(credentials: &str, method: Method) -> Option<Vec<u8>> {
    let (scheme, rest) = credentials.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("Bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("Basic") || !is_reading(method) {
        return None;
    }
    let pair = BASE64_STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Every byte is looked at, so that the time says nothing about how many were right.
fn equal_in_constant_time(expected: &[u8], given: &[u8]) -> bool {
    let mut difference = u8::from(expected.len() != given.len());
    for (nth, byte) in expected.iter().enumerate() {
        difference |= byte ^ given.get(nth).copied().unwrap_or(0);
    }
    std::hint::black_box(difference) == 0
}

fn forbidden(message: String) -> Problem {
    Problem::new(403, "forbidden", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_loopback_names_the_listen_address_and_those_allowed() {
        let access = Access::new(None, "10.0.0.5:7700", &["Box.example".to_string()]);
        for host in ["127.0.0.1:7700", "localhost", "LOCALHOST:1", "[::1]:7700", "10.0.0.5:7700", "box.example:80"] {
            assert!(access.is_ours(host), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.6:7700",
            "",
            "localhost:evil.example",
            "localhost:80:80",
            "[::1",
            "[::1]evil.example",
            "user@localhost",
        ] {
            assert!(!access.is_ours(host), "{host}");
        }
    }

    #[test]
    fn a_token_is_the_whole_token() {
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for (given, may_read, may_write) in [
            ("Bearer secret".to_string(), true, true),
            ("bearer  secret ".to_string(), true, true),
            ("Bearer secre".to_string(), false, false),
            ("Bearer secret2".to_string(), false, false),
            ("Bearer".to_string(), false, false),
            ("Basic secret".to_string(), false, false),
            (basic(":secret"), true, false),
            (basic("anybody:secret"), true, false),
            (basic("secret"), false, false),
            (basic(":secret:"), false, false),
            (basic("secret:"), false, false),
            (format!("Digest {}", &basic(":secret")[6..]), false, false),
            (String::new(), false, false),
        ] {
            for (method, is_right) in
                [("GET", may_read), ("HEAD", may_read), ("POST", may_write), ("DELETE", may_write)]
            {
                let text = format!("{method} /v1/tasks HTTP/1.1\r\nHost: a\r\nAuthorization: {given}\r\n\r\n");
                let (head, _) = crate::gateway::head::parse(text.as_bytes()).expect("sound").expect("complete");
                assert_eq!(check_token(b"secret", &head).is_ok(), is_right, "{method} {given:?}");
            }
        }
    }
}
