//! Words and figures for people: sizes, ages, wrapping, and text made safe for a terminal.
//!
//! Owns their spelling. May import humantime. Must never know where a text goes.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

const MIB: f64 = 1_048_576.0;

/// Bytes as MiB with one decimal, without the unit: `740.5`.
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / MIB)
}

/// A ratio as a percentage: `72.3 %`.
pub fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// The two largest units of a length of time: `12s`, `3m12s`, `3h12m`, `2d4h`; under a second `0.4s`.
pub fn age(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0 => format!("{:.1}s", (length.as_millis() / 100) as f64 / 10.0),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        86_400.. => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Milliseconds since 1970 of an RFC 3339 time; `None` if it is none.
pub fn unix_ms(at: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339(at).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_millis() as u64)
}

/// How long ago a time was, seen from `now_ms`; `-` if it is no time, 0 if it is still to come.
pub fn since(at: Option<&str>, now_ms: u64) -> String {
    at.and_then(unix_ms).map_or_else(dash, |at| age(Duration::from_millis(now_ms.saturating_sub(at))))
}

/// How long until a time; `now` once it is past.
pub fn until(at: Option<&str>, now_ms: u64) -> String {
    at.and_then(unix_ms).map_or_else(dash, |at| match at.saturating_sub(now_ms) {
        0 => "now".to_owned(),
        left => age(Duration::from_millis(left)),
    })
}

pub fn dash() -> String {
    "-".to_owned()
}

/// Text of others as one harmless line: every control character (line ends too) is spelled out as `\x1b` or `\n`.
pub fn one_line(text: &str) -> String {
    spell_out(text, |_| false)
}

/// The same, but line ends and tabs stay.
pub fn lines(text: &str) -> String {
    spell_out(text, |char| char == '\n' || char == '\t')
}

fn spell_out(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if !is_dangerous(char) || keep(char) {
            safe.push(char);
        } else if matches!(char, '\n' | '\r' | '\t') {
            safe.extend(char.escape_default());
        } else if u32::from(char) < 0x100 {
            let _ = write!(safe, "\\x{:02x}", u32::from(char));
        } else {
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(char));
        }
    }
    safe
}

/// Control characters, and those that reorder or hide what stands around them (Unicode bidirectional controls).
fn is_dangerous(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Makes a stream of bytes safe for a terminal, piece by piece; a character cut in two waits for its rest.
#[derive(Default)]
pub struct Cleaner {
    cut: Vec<u8>,
}

impl Cleaner {
    pub fn clean(&mut self, piece: &[u8]) -> String {
        self.cut.extend_from_slice(piece);
        let keep = trailing_cut(&self.cut);
        let rest = self.cut.split_off(self.cut.len() - keep);
        let whole = std::mem::replace(&mut self.cut, rest);
        lines(&String::from_utf8_lossy(&whole))
    }

    /// What was cut and never got its rest.
    pub fn finish(self) -> String {
        lines(&String::from_utf8_lossy(&self.cut))
    }
}

/// Bytes at the end that begin a character without ending it; 0 to 3.
fn trailing_cut(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let start = tail.iter().rposition(|byte| *byte >= 0xc0);
    let begun = start.map_or(&tail[tail.len()..], |start| &tail[start..]);
    match std::str::from_utf8(begun) {
        Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => begun.len(),
        Ok(_) | Err(_) => 0,
    }
}

/// Words in lines of at most `width` characters; a longer word has a line of its own. At least one line.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut wrapped = vec![String::new()];
    for word in text.split_whitespace() {
        let line = wrapped.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            wrapped.push(word.to_owned());
        }
    }
    wrapped
}

/// The start of a text that fits in `width` characters, with `…` where something was cut.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_two_largest_units() {
        for (ms, expected) in [
            (0, "0.0s"),
            (420, "0.4s"),
            (999, "0.9s"),
            (12_900, "12s"),
            (192_000, "3m12s"),
            (11_520_000, "3h12m"),
            (187_200_000, "2d4h"),
        ] {
            assert_eq!(age(Duration::from_millis(ms)), expected, "{ms} ms");
        }
    }

    #[test]
    fn sizes_have_one_decimal() {
        assert_eq!(mib(0), "0.0");
        assert_eq!(mib(314_572_800), "300.0");
        assert_eq!(mib(1_600_000), "1.5");
    }

    #[test]
    fn text_of_others_cannot_drive_the_terminal() {
        for (hostile, expected) in [
            ("plain ✓", "plain ✓"),
            ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{9b}2J", "\\x9b2J"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("\x7f", "\\x7f"),
        ] {
            assert_eq!(one_line(hostile), expected, "{hostile:?}");
        }
        assert_eq!(lines("a\n\tb\r\x1b"), "a\n\tb\\r\\x1b");
    }

    #[test]
    fn a_stream_is_cleaned_the_same_however_it_is_cut() {
        let whole = "grün \u{9b}31m✓\n\u{1f98a}".as_bytes();
        for cut in 0..=whole.len() {
            let mut cleaner = Cleaner::default();
            let mut text = cleaner.clean(&whole[..cut]);
            text += &cleaner.clean(&whole[cut..]);
            text += &cleaner.finish();
            assert_eq!(text, "grün \\x9b31m✓\n\u{1f98a}", "cut at {cut}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_do_not_hold_the_stream_up() {
        let mut cleaner = Cleaner::default();
        assert_eq!(cleaner.clean(b"\xff\xfeok\xe2\x9c"), "\u{fffd}\u{fffd}ok");
        assert_eq!(cleaner.clean(b"\x93!"), "✓!");
        assert_eq!(cleaner.finish(), "");
    }

    #[test]
    fn words_are_wrapped_and_cut_by_characters() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("longerthanfive b", 5), ["longerthanfive", "b"]);
        assert_eq!(fit("grün", 4), "grün");
        assert_eq!(fit("grüner", 4), "grü…");
    }
}
