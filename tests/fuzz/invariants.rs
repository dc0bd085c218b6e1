//! What holds for any bytes whatever: shared by the fuzz targets and by the bounded test, tests/fuzz.rs.

use kurultai::gateway::fuzzing::{self as gateway, HEAD_MAX, Refusal, Taken, Verdict};
use kurultai::spool::Files;
use kurultai::worker::fuzzing::{LINE_MAX, Listener};

/// A message of ours with at most 80 characters of the client's, escaped, and the longest list of what would do.
const MESSAGE_MAX: usize = 2048;

/// Every breach of the protocol is told in so many bytes, however long the line is.
const BREACH_MAX: usize = 1024;

/// One report as text; results and errors that stay in memory are bounded to a few KiB.
const REPORT_MAX: usize = 128 * 1024;

/// What one read(2) of a worker's output gives at most.
const READ_BYTES: usize = 16 * 1024;

/// The first bytes of a connection, as far as the door would read, looked at as they come: byte by byte, or a few at a
/// time where there are many.
pub fn head(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(HEAD_MAX)];
    let stride = 1 + bytes.len() / 512;
    let mut decided: Option<(usize, Verdict)> = None;
    let mut seen = 0;
    for end in (0..=bytes.len()).step_by(stride).chain([bytes.len()]) {
        let verdict = gateway::read(&bytes[..end]);
        match &decided {
            None if verdict == Verdict::Incomplete => assert!(end < HEAD_MAX, "{end} bytes and still no verdict"),
            None => {
                let is_decided = |end: &usize| gateway::read(&bytes[..*end]) != Verdict::Incomplete;
                let first = (seen..=end).find(is_decided).expect("the last one is");
                check(&bytes[..first], &gateway::read(&bytes[..first]));
                assert_eq!(verdict, gateway::read(&bytes[..first]), "after {end} bytes, and after {first}");
                decided = Some((first, verdict));
            }
            // What comes later changes nothing: it is the body or the next request.
            Some((first, known)) => assert_eq!(&verdict, known, "after {end} bytes, and after {first}"),
        }
        seen = end;
    }
}

/// `bytes`: no more than it took to come to the verdict.
fn check(bytes: &[u8], verdict: &Verdict) {
    match verdict {
        Verdict::Incomplete => {}
        Verdict::Refused(refusal) => {
            assert!(matches!(refusal.status, 400 | 417 | 431), "{refusal:?}");
            check_refusal(refusal, bytes);
        }
        Verdict::Taken(taken) => check_taken(bytes, taken),
    }
}

fn check_taken(bytes: &[u8], taken: &Taken) {
    assert_eq!(taken.head_length, bytes.len(), "a head ends with its last byte");
    assert!(taken.head_length <= HEAD_MAX && bytes.ends_with(b"\r\n\r\n"), "{taken:?}");
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let is_whole = |line: &&[u8]| line.last() == Some(&b'\r') && !line[..line.len() - 1].contains(&b'\r');
    assert!(lines[..lines.len() - 1].iter().all(is_whole), "a bare CR or LF was taken: {taken:?}");
    // Counted here by other means than the parser's.
    let count = |wanted: &[u8]| {
        let name = |line: &&[u8]| line.split(|byte| *byte == b':').next().unwrap_or_default().to_ascii_lowercase();
        lines.iter().filter(|line| line.contains(&b':') && name(line).trim_ascii() == wanted).count()
    };
    let framings = (count(b"content-length"), count(b"transfer-encoding"));
    let understood = (usize::from(taken.content_length.is_some()), usize::from(taken.is_chunked));
    assert_eq!(framings, understood, "a framing was not seen, or taken twice: {taken:?}");
    assert!(framings.0 + framings.1 <= 1, "two framings were taken: {taken:?}");
    if let Some(refusal) = &taken.refusal {
        assert!(matches!(refusal.status, 400 | 403 | 404 | 405 | 415), "{refusal:?}");
        check_refusal(refusal, bytes);
    }
}

fn check_refusal(refusal: &Refusal, bytes: &[u8]) {
    assert!(refusal.message.len() <= MESSAGE_MAX, "{} bytes: {refusal:?}", refusal.message.len());
    assert!(!refusal.message.contains(['\r', '\n']), "{refusal:?}");
    // An answer is one answer, whatever of the request is in it.
    let wire = String::from_utf8(gateway::answer(bytes).expect("it is refused")).expect("an answer is text");
    let (head, body) = wire.split_once("\r\n\r\n").expect("an answer has a head");
    let length = format!("Content-Length: {}", body.len());
    let mut lines = head.split("\r\n");
    assert!(lines.next().is_some_and(|line| line.split(' ').nth(1) == Some(&*refusal.status.to_string())), "{wire}");
    assert_eq!(lines.clone().filter(|line| **line == *length).count(), 1, "{wire}");
    assert_eq!(lines.clone().filter(|line| line.starts_with("X-Request-Id: ")).count(), 1, "{wire}");
    assert!(lines.all(|line| line.contains(": ") && !line.contains(char::is_control)), "{wire}");
}

/// A worker's standard output. The byte FF, which no UTF-8 text has, stands for much of the same: the byte after the next
/// one, as often as 2 to the power of the next one, up to a line's limit.
pub fn protocol(bytes: &[u8], files: &Files) {
    let output = unfold(bytes);
    let whole = hear(&output, files, |_| READ_BYTES);
    let mut dice = output.len() as u64 ^ u64::from(bytes.last().copied().unwrap_or_default());
    let random = hear(&output, files, |most| 1 + (step(&mut dice) as usize) % most);
    assert_eq!(random, whole, "in pieces of random sizes and as large as they come");
    let single = hear(&output, files, |_| if output.len() <= 4096 { 1 } else { 8 * 1024 - 1 });
    assert_eq!(single, whole, "in small pieces and as large as they come");
}

#[derive(Debug, PartialEq)]
struct Outcome {
    reports: Vec<String>,
    lines: u32,
    breach: Option<String>,
}

/// Reads `output` as it is cut by `size`, which is given the most there may be.
fn hear(output: &[u8], files: &Files, mut size: impl FnMut(usize) -> usize) -> Outcome {
    let mut listener = Listener::new(files).expect("random bytes");
    let mut rest = output;
    let mut breach = None;
    while !rest.is_empty() && breach.is_none() {
        let (piece, after) = rest.split_at(size(READ_BYTES).min(rest.len()));
        rest = after;
        breach = listener.hear(piece).err();
    }
    let heard = listener.finish();
    assert!(heard.longest_line <= LINE_MAX, "a line of {} bytes was taken", heard.longest_line);
    if let Some(breach) = &breach {
        assert!(breach.len() <= BREACH_MAX, "a breach is told in {} bytes", breach.len());
        assert!(!breach.contains(char::is_control), "{breach:?}");
    }
    let longest = heard.reports.iter().map(String::len).max().unwrap_or(0);
    assert!(longest <= REPORT_MAX, "a report is {longest} bytes long");
    Outcome { reports: heard.reports, lines: heard.lines, breach }
}

fn unfold(bytes: &[u8]) -> Vec<u8> {
    const OUTPUT_MAX: usize = LINE_MAX + LINE_MAX / 4;
    let mut output = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, after) {
            (0xFF, [power, repeated, after @ ..]) => {
                let length = 1_usize << (u32::from(*power) % (LINE_MAX.ilog2() + 1));
                output.resize(output.len() + length.min(OUTPUT_MAX.saturating_sub(output.len())), *repeated);
                rest = after;
            }
            _ => {
                output.push(byte);
                rest = after;
            }
        }
    }
    output
}

/// xorshift64: Marsaglia, Xorshift RNGs, 2003.
pub fn step(state: &mut u64) -> u64 {
    if *state == 0 {
        *state = 0x9E37_79B9_7F4A_7C15;
    }
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
