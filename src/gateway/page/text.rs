//! Figures as a person reads them, in the words of the page's script, and texts of others made harmless.

use std::fmt::{self, Arguments, Display, Formatter, Write};
use std::time::Duration;

/// A text of somebody else's, such as an agent's error: nothing in it is markup, within an element or an attribute.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            f.write_str(&rest[..at])?;
            f.write_str(match rest.as_bytes()[at] {
                b'&' => "&amp;",
                b'<' => "&lt;",
                b'>' => "&gt;",
                b'"' => "&quot;",
                _ => "&#39;",
            })?;
            rest = &rest[at + 1..];
        }
        f.write_str(rest)
    }
}

/// A String takes every write.
pub fn push(page: &mut String, text: Arguments<'_>) {
    let _ = page.write_fmt(text);
}

/// A ratio, as it is in the API, in percent.
pub struct Percent(pub f64);

impl Display for Percent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", crate::gateway::json::ratio(self.0) * 100.0)
    }
}

/// Bytes, as MiB up to 10 GiB.
pub struct Size(pub u64);

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / (1024.0 * 1024.0);
        // Why: half a tenth goes up, as it does in the script, and not to the even one.
        let tenth = |number: f64| (number * 10.0).round() / 10.0;
        match mib {
            10240.0.. => write!(f, "{:.1} GiB", tenth(mib / 1024.0)),
            100.0.. => write!(f, "{} MiB", mib.round()),
            _ => write!(f, "{:.1} MiB", tenth(mib)),
        }
    }
}

/// Whole seconds as the two largest units that have something.
pub struct Span(pub Duration);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
        let parts = match (days, hours) {
            (1.., _) => [(days, "d"), (hours % 24, "h")],
            (0, 1..) => [(hours, "h"), (minutes % 60, "min")],
            (0, 0) => [(minutes, "min"), (seconds % 60, "s")],
        };
        if seconds == 0 {
            return f.write_str("0 s");
        }
        let mut gap = "";
        for (number, unit) in parts.into_iter().filter(|(number, _)| *number > 0) {
            write!(f, "{gap}{number} {unit}")?;
            gap = " ";
        }
        Ok(())
    }
}

pub struct Count<'a>(pub u64, pub &'a str, pub &'a str);

impl Display for Count<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, if self.0 == 1 { self.1 } else { self.2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_of_others_is_markup() {
        for (text, expected) in [
            ("plain äöü", "plain äöü"),
            ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("\" onload='x' &amp;", "&quot; onload=&#39;x&#39; &amp;amp;"),
            ("", ""),
            ("ä<ö>ü&", "ä&lt;ö&gt;ü&amp;"),
        ] {
            assert_eq!(Escaped(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn sizes_and_spans_are_short() {
        const MIB: u64 = 1 << 20;
        for (bytes, expected) in [
            (0, "0.0 MiB"),
            (MIB / 4, "0.3 MiB"),
            (99 * MIB + MIB / 2, "99.5 MiB"),
            (1024 * MIB, "1024 MiB"),
            (10 * 1024 * MIB, "10.0 GiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), expected, "{bytes}");
        }
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (3660, "1 h 1 min"),
            (86400 + 7200, "1 d 2 h"),
            (86400 + 60, "1 d"),
        ] {
            assert_eq!(Span(Duration::from_secs(seconds)).to_string(), expected, "{seconds}");
        }
        assert_eq!(Percent(0.7294).to_string(), "72.9 %");
    }
}
