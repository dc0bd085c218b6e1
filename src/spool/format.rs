//! The version of the directory's layout. A daemon reads its own and every older one, and refuses a newer one.

use std::io::{self, Read, Write};
use std::path::Path;

use super::SpoolError;
use super::aside::Aside;
use super::damaged::{DamageKind, Damaged, open_plain};
use super::files::{Lost, twice};

/// 2: checksums of payloads and results, sealed checkpoints, breakers, cancellations. kurultai-spool(5) has the history.
pub(super) const CURRENT: u64 = 2;

const NAME: &str = "format";

/// Longer than any number.
const TEXT_MAX: u64 = 40;

/// What the directory says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Current,
    Older,
    /// A new directory, or one whose format was lost: taken for whatever it turns out to hold.
    Missing,
}

impl Format {
    pub(super) fn check(root: &Path, damaged: &Damaged) -> Result<Format, SpoolError> {
        let path = root.join(NAME);
        let reason = match twice(|| read(&path).map_err(Lost::of), Lost::may_pass) {
            Ok(text) => match text.trim().parse() {
                Ok(CURRENT) => return Ok(Format::Current),
                Ok(found) if found > CURRENT => return Err(SpoolError::Format { path: root.to_path_buf(), found }),
                Ok(_) => return Ok(Format::Older),
                Err(_) => format!("{text:?} is no number of a format"),
            },
            Err(Lost::Missing) => return Ok(Format::Missing),
            Err(Lost::Unknown(source)) => return Err(SpoolError::Io { what: "read", path, source }),
            Err(lost) => lost.to_string(),
        };
        // On failure it is replaced all the same: it says nothing.
        let _ = damaged.set_aside(DamageKind::Layout, &path, &reason);
        Ok(Format::Missing)
    }

    /// Says that the directory has this daemon's format.
    pub(super) fn write(&mut self, root: &Path, fsync: bool) -> io::Result<()> {
        if *self == Format::Current {
            return Ok(());
        }
        let mut aside = Aside::create(root.join(NAME), fsync)?;
        writeln!(aside, "{CURRENT}")?;
        aside.commit()?;
        *self = Format::Current;
        Ok(())
    }
}

/// The start of the file; what is no text in it is shown as such.
fn read(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    open_plain(path)?.take(TEXT_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
