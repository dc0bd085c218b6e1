//! The version of the directory's layout. A daemon reads its own and every older one, and refuses a newer one.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::SpoolError;
use super::aside::Aside;
use super::damaged::{DamageKind, Damaged};
use super::files::twice;

/// 2: checksums of payloads and results, sealed checkpoints, breakers, cancellations. kurultai-spool(5) has the history.
pub(super) const CURRENT: u64 = 2;

const NAME: &str = "format";

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
        let read = twice(|| fs::read_to_string(&path), |error| error.raw_os_error() == Some(libc::EIO));
        let text = match read {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Format::Missing),
            Err(error) if is_garbled(&error) => error.to_string(),
            Err(source) => return Err(SpoolError::Io { what: "read", path, source }),
        };
        match text.trim().parse() {
            Ok(CURRENT) => Ok(Format::Current),
            Ok(found) if found > CURRENT => Err(SpoolError::Format { path: root.to_path_buf(), found }),
            Ok(_) => Ok(Format::Older),
            Err(_) => {
                let reason = format!("{:?} is no number of a format", text.chars().take(40).collect::<String>());
                // On failure it is replaced all the same: it says nothing.
                let _ = damaged.set_aside(DamageKind::Layout, &path, &reason);
                Ok(Format::Missing)
            }
        }
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

/// It is there and is not what a daemon wrote.
fn is_garbled(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory)
        || error.raw_os_error() == Some(libc::EIO)
}
