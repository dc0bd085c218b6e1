//! Parts of results, and results the client has already: RFC 9110, sections 13 and 14.

use super::answer::{Body, FilePart, Problem, Reply};
use crate::core::ledger::TaskView;

/// What a client says of the result it wants; ignored for everything else.
#[derive(Debug, Default)]
pub struct Conditions {
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub if_none_match: Option<String>,
}

/// What of `total` bytes is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// Never empty.
    Part {
        first: u64,
        length: u64,
    },
    /// Nothing of what there is.
    Nothing,
}

/// Names the result for good: it never changes, and its task's number is not used again.
pub fn etag(view: &TaskView) -> String {
    format!("\"{}-{:x}\"", view.id, view.finished.as_ref().map_or(0, |finished| finished.finished_ms))
}

/// The answer to `GET /v1/tasks/ID/result`, of the whole result that is there.
pub fn apply(conditions: &Conditions, etag: String, reply: Reply) -> Reply {
    let reply = reply.with("Accept-Ranges", "bytes");
    if conditions.if_none_match.as_deref().is_some_and(|tags| names(tags, &etag)) {
        let reply = Reply { status: 304, body: Body::Bytes(Vec::new()), ..reply };
        return reply.with("ETag", etag);
    }
    // A range of something else than what is here is no use to the client: it gets all of it.
    let is_current = conditions.if_range.as_deref().is_none_or(|tag| tag.trim() == etag);
    let range = conditions.range.as_deref().filter(|_| is_current);
    let total = match &reply.body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::File(part) => part.left,
        Body::Stream => return reply,
    };
    match range.map_or(Wanted::All, |range| wanted(range, total)) {
        Wanted::All => reply.with("ETag", etag),
        Wanted::Part { first, length } => {
            let body = cut(reply.body, first, length);
            let last = first + length - 1;
            let reply = Reply { status: 206, body, ..reply };
            reply.with("ETag", etag).with("Content-Range", format!("bytes {first}-{last}/{total}"))
        }
        Wanted::Nothing => {
            let message =
                format!("the result has {total} bytes, and none of them is wanted: ask for some that are there");
            let refused = Reply::from(Problem::new(416, "range_not_satisfiable", message));
            refused.with("Content-Range", format!("bytes */{total}"))
        }
    }
}

fn cut(body: Body, first: u64, length: u64) -> Body {
    match body {
        Body::Bytes(mut bytes) => {
            // Both are within the length of a vector.
            bytes.truncate((first + length) as usize);
            bytes.drain(..first as usize);
            Body::Bytes(bytes)
        }
        Body::File(part) => Body::File(FilePart { offset: part.offset + first, left: length, ..part }),
        Body::Stream => Body::Stream,
    }
}

/// One range of bytes. Several at once, other units and what is malformed are left alone, as a server may.
fn wanted(range: &str, total: u64) -> Wanted {
    let Some((first, last)) = one_range(range) else { return Wanted::All };
    match (first, last) {
        (None, None) => Wanted::All,
        (None, Some(0)) => Wanted::Nothing,
        (None, Some(_)) if total == 0 => Wanted::All,
        (None, Some(suffix)) => Wanted::Part { first: total.saturating_sub(suffix), length: suffix.min(total) },
        (Some(first), Some(last)) if last < first => Wanted::All,
        (Some(first), _) if first >= total => Wanted::Nothing,
        (Some(first), last) => {
            let last = last.unwrap_or(u64::MAX).min(total - 1);
            Wanted::Part { first, length: last - first + 1 }
        }
    }
}

/// First and last byte as they are written; without the first one, the last is a number of bytes from the end.
fn one_range(range: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, set) = range.split_once('=')?;
    let (first, last) = set.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    Some((number(first)?, number(last)?))
}

/// `Some(None)`: left out. More digits than fit are beyond the end of everything.
fn number(digits: &str) -> Option<Option<u64>> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX)))
}

/// Whether a list of tags names this one; for this question a weak tag is as good as a strong one.
fn names(tags: &str, etag: &str) -> bool {
    tags.trim() == "*" || tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_cut_out_and_anything_else_is_left_alone() {
        let part = |first, length| Wanted::Part { first, length };
        for (range, total, expected) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=2-4", 10, part(2, 3)),
            ("bytes=2-", 10, part(2, 8)),
            ("bytes=-3", 10, part(7, 3)),
            ("bytes=-30", 10, part(0, 10)),
            ("bytes=9-99", 10, part(9, 1)),
            ("bytes=0-99999999999999999999", 10, part(0, 10)),
            ("BYTES = 1-1", 10, part(1, 1)),
            ("bytes=10-", 10, Wanted::Nothing),
            ("bytes=99999999999999999999-", 10, Wanted::Nothing),
            ("bytes=-0", 10, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=-5", 0, Wanted::All),
            ("bytes=4-2", 10, Wanted::All),
            ("bytes=-", 10, Wanted::All),
            ("bytes=", 10, Wanted::All),
            ("bytes", 10, Wanted::All),
            ("bytes=1-2,4-5", 10, Wanted::All),
            ("bytes=+1-2", 10, Wanted::All),
            ("bytes=1-2x", 10, Wanted::All),
            ("bytes=1--2", 10, Wanted::All),
            ("lines=1-2", 10, Wanted::All),
        ] {
            assert_eq!(wanted(range, total), expected, "{range:?} of {total}");
        }
    }

    #[test]
    fn a_result_the_client_has_is_not_sent_again() {
        for (tags, is_named) in
            [("\"a\"", true), ("\"b\", W/\"a\"", true), ("*", true), ("\"b\"", false), ("a", false), ("", false)]
        {
            assert_eq!(names(tags, "\"a\""), is_named, "{tags:?}");
        }
    }
}
