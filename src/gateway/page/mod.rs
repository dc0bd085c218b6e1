//! The status page: one embedded HTML page, filled in on demand. Nothing of it is kept between two requests.
//!
//! It works without scripts, and refreshes itself. With them it is filled in once here, and then kept up to date from
//! the API by its own script, which makes the same elements with the same words: a change here is a change there.

mod chart;
mod figures;
mod text;

use std::fmt::Write;

use super::answer::{Problem, Reply};
use crate::scheduler::call::{Decision, Status};
use text::Escaped;

/// Decisions that it shows.
pub const DECISIONS: usize = 20;

const HTML: &str = "text/html; charset=utf-8";
const TEMPLATE: &str = include_str!("page.html");

/// Room for the page of a busy daemon, so that it is written into one buffer that does not grow.
const CAPACITY: usize = TEMPLATE.len() + 24 * 1024;

/// What the page may do: run its own script, use its own style, ask this daemon. The hashes are of the text between
/// `<style>` and `</style>`, `<script>` and `</script>` (CSP level 3, section 2.3.1); tests/page.rs says what they have
/// to be.
const POLICY: &str = "default-src 'none'; \
    style-src 'sha256-uWvUaW1vTsAFj09RDBLQYe4tbbxJZgLxHrPtk51tsEU='; \
    script-src 'sha256-hq6L7Lki9JCvYm+FcaFQ1aBUNoqNE9p/2vvK72Zg4kA='; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn reply(status: &Status, decisions: &[Decision]) -> Reply {
    let mut page = String::with_capacity(CAPACITY);
    let mut parts = TEMPLATE.split("{{");
    page.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
        fill_in(&mut page, name, status, decisions);
        page.push_str(rest);
    }
    with_headers(Reply::bytes(200, HTML, page.into_bytes()))
}

fn fill_in(page: &mut String, name: &str, status: &Status, decisions: &[Decision]) {
    let snapshot = &status.snapshot;
    match name {
        "title" => text::push(page, format_args!("{} · Kurultai", figures::level(snapshot))),
        "about" => figures::about(page, status),
        "fresh" => figures::fresh(page, snapshot),
        "tone" => page.push_str(figures::tone(snapshot)),
        "level" => page.push_str(&figures::level(snapshot)),
        "means" => page.push_str(figures::means(snapshot)),
        "incident" => figures::incident(page, snapshot),
        "alerts" => figures::alerts(page, status),
        "tiles" => figures::tiles(page, snapshot),
        "sources" => figures::sources(page, snapshot, &status.enforcement),
        "workers" => figures::workers(page, &snapshot.workers),
        "queue" => figures::queue(page, &snapshot.queue),
        "waiting" => figures::waiting(page, &snapshot.queue),
        "breakers" => figures::breakers(page, &snapshot.breakers),
        "decisions" => figures::decisions(page, decisions, snapshot),
        "peak" => chart::peak(page, &status.history),
        "width" => text::push(page, format_args!("{}", chart::WIDTH)),
        "minutes" => text::push(page, format_args!("{}", chart::MINUTES)),
        "plot" => chart::plot(page, &snapshot.memory.settings),
        "scale" => chart::scale(page, &snapshot.memory.settings),
        "curve" => chart::curve(page, &status.history),
        "area" => chart::area(page, &status.history),
        unknown => unreachable!("{unknown:?} in page.html"),
    }
}

/// A refusal for somebody who looks at it in a browser.
pub fn problem(problem: Problem) -> Reply {
    let style = between("<style>", "</style>");
    let mut page = String::with_capacity(style.len() + 2048);
    // Why not after a 401: the browser would ask for the password again and again.
    let refresh = if problem.status == 401 { "" } else { "<meta http-equiv=\"refresh\" content=\"5\">\n" };
    let hint = if problem.status == 401 {
        "<p>The browser asks for a name and a password: leave the name empty, and give as the password the text of the \
         file that gateway.token_file names. It is kept until the browser is closed. Load this page again to be asked \
         again.</p>\n"
    } else {
        ""
    };
    let (first, rest) = problem.message.split_at(problem.message.chars().next().map_or(0, char::len_utf8));
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{status} · Kurultai</title>\n{refresh}\
         <style>{style}</style>\n</head>\n<body>\n<header>\n<h1>Kurultai</h1>\n</header>\n<main>\n<section>\n\
         <div class=\"head\"><h2>{title}</h2></div>\n{hint}<p class=\"soft\">{first}{rest}.</p>\n</section>\n</main>\n</body>\n</html>\n",
        status = problem.status,
        title = if problem.status == 401 { "This daemon wants its token" } else { "No status page" },
        first = Escaped(&first.to_uppercase()),
        rest = Escaped(rest),
    );
    with_headers(problem.with_body(HTML, page.into_bytes()))
}

fn with_headers(reply: Reply) -> Reply {
    reply.with("Content-Security-Policy", POLICY).with("Referrer-Policy", "no-referrer").with("X-Frame-Options", "DENY")
}

fn between(start: &str, end: &str) -> &'static str {
    let (_, rest) = TEMPLATE.split_once(start).unwrap_or_default();
    rest.split_once(end).unwrap_or_default().0
}
