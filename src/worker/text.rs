//! Bytes and text of workers, made fit for messages and the log: cut, on one line, valid UTF-8.

/// The longest quotation of a line in an error message, in characters.
const QUOTE_MAX: usize = 120;

/// The longest beginning of `text` of at most `max` bytes.
pub fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The start of a line as evidence: escaped, in quotes, `…` where it goes on.
pub fn quote(line: &[u8]) -> String {
    // An escaped character is never shorter than its bytes, so more of them cannot fit.
    let start = String::from_utf8_lossy(&line[..line.len().min(QUOTE_MAX * 4)]);
    let mut quoted = String::from('"');
    let mut count = 0;
    for (at, char) in start.char_indices() {
        let escaped = char.escape_debug();
        count += escaped.len();
        if count > QUOTE_MAX {
            return quoted + "…\"";
        }
        // A single quote needs no escape between double ones.
        if char == '\'' {
            quoted.push(char)
        } else {
            quoted.extend(escaped)
        }
        if at + char.len_utf8() == start.len() && line.len() > QUOTE_MAX * 4 {
            return quoted + "…\"";
        }
    }
    quoted + "\""
}

/// At most `max` bytes of text without control characters, so that it cannot forge lines of the log.
pub fn printable(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(max)]);
    let mut clean = String::with_capacity(text.len());
    for char in text.trim_end().chars() {
        if char.is_control() && char != '\t' { clean.extend(char.escape_default()) } else { clean.push(char) }
    }
    clean.truncate(cut(&clean, max).len());
    clean
}

/// The last `max` bytes as valid UTF-8.
pub fn tail(bytes: &[u8], max: usize) -> String {
    let mut start = bytes.len().saturating_sub(max);
    if start > 0 {
        // Not in the middle of a character: its continuation bytes are 10xxxxxx, at most three.
        start += bytes[start..].iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
    }
    let text = String::from_utf8_lossy(&bytes[start..]);
    // What was no UTF-8 has become longer.
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("aéb", 2), "a");
        assert_eq!(cut("aéb", 9), "aéb");
        assert_eq!(tail("aé".repeat(3).as_bytes(), 2), "é");
        assert_eq!(tail("éa".repeat(3).as_bytes(), 2), "a");
        assert_eq!(tail(&[0xFF; 10], 6).len(), 6);
        assert_eq!(tail(b"all of it", 100), "all of it");
    }

    #[test]
    fn a_quotation_is_short_and_on_one_line() {
        assert_eq!(quote(b"{\"a\"\n\x1b'\xff"), "\"{\\\"a\\\"\\n\\u{1b}'\u{FFFD}\"");
        for line in [vec![b'x'; 121], vec![b'x'; 10_000], vec![b'\n'; 500], "é".repeat(300).into_bytes()] {
            let quoted = quote(&line);
            assert!(quoted.ends_with("…\"") && quoted.chars().count() <= QUOTE_MAX + 3, "{quoted}");
        }
        assert_eq!(quote(&[b'x'; 120]).chars().count(), 122);
    }

    #[test]
    fn printable_text_forges_no_log_line() {
        assert_eq!(printable(b"a\nWORKER_KILLED\x1b[2J \n", 100), "a\\nWORKER_KILLED\\u{1b}[2J");
        assert_eq!(printable("ééé".as_bytes(), 4), "éé");
        assert!(printable(&[b'\n'; 100].map(|_| 1), 10).len() <= 10);
    }
}
