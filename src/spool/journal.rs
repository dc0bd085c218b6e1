//! The journal: one line a record, `crc32 json`, only ever appended to, and rewritten aside when it has grown.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::aside::Aside;
use super::damaged::{DamageKind, Damaged, open_plain};
use super::files::Lost;
use super::record::Line;
use super::replay::Replay;
use super::sealed::{unseal, write_line};
use crate::core::event::Record;
use crate::core::ids::TaskId;
use crate::core::task::Stored;

pub(super) const NAME: &str = "journal";

/// A line longer than any a daemon writes: a payload and a failure's texts are bounded.
const LINE_MAX: u64 = 256 * 1024;

/// A line that accepts a task has more bytes than this.
const ACCEPTED_MIN: u64 = 128;

/// Damaged lines that are told one by one.
const TOLD_MAX: usize = 20;

/// Rewritten when it is this long and mostly about tasks that are gone.
const REWRITE_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    bytes: u64,
    bytes_after_rewrite: u64,
    /// Lines are put together here, to be written with one call; keeps its room.
    buffer: Vec<u8>,
}

/// What reading a journal gave, beside its records.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub damaged_lines: usize,
    pub is_missing: bool,
    /// It is damaged and still stands in its place, to be kept before another one takes that.
    pub is_to_be_kept: bool,
    /// The disk failed within it.
    has_stumbled: bool,
    /// Of the first lines.
    reasons: Vec<String>,
    /// How long its damaged lines are.
    damaged_bytes: u64,
    /// It says where numbers begin, as every journal does first.
    has_begun: bool,
}

impl Read {
    /// The first number that no task can have been given, if `known` is the first of which no whole line speaks.
    pub(super) fn next_number(&self, known: u64, with_files: &[TaskId]) -> u64 {
        if self.damaged_lines == 0 {
            return known;
        }
        // Half of all there are: what a stranger called a file does not use up the rest.
        let last = with_files.iter().map(|task| task.0).filter(|task| *task < u64::MAX / 2).max();
        known.max(last.map_or(0, |last| last + 1)) + self.damaged_bytes / ACCEPTED_MIN
    }

    fn damage(&mut self, reason: String) {
        self.damaged_lines += 1;
        self.is_to_be_kept = true;
        // A disk that damages every line does not fill up the log with them.
        if self.reasons.len() < TOLD_MAX {
            self.reasons.push(reason);
        }
    }
}

impl Journal {
    /// Reads what is there. Damaged lines are told and counted, never a reason not to start.
    ///
    /// # Errors
    ///
    /// Something else is there that can be neither read nor moved.
    pub(super) fn read(root: &Path, damaged: &Damaged) -> io::Result<(Replay, Read)> {
        let path = root.join(NAME);
        let read = match Journal::read_once(&path) {
            // A second time: a disk that stumbles once has not lost anything.
            Ok((_, Read { has_stumbled: true, .. })) | Err(Lost::Unreadable(_)) => Journal::read_once(&path),
            read => read,
        };
        match read {
            Ok((replay, read)) => {
                read.reasons.iter().for_each(|reason| log::warn!("the journal is damaged: {reason}"));
                Ok((replay, read))
            }
            Err(Lost::Missing) => Ok((Replay::default(), Read { is_missing: true, ..Read::default() })),
            // No damage: somebody else's file, or no descriptor is left.
            Err(Lost::Unknown(error)) => Err(error),
            Err(lost) => {
                damaged.set_aside(DamageKind::Journal, &path, &lost.to_string())?;
                Ok((Replay::default(), Read { damaged_lines: 1, ..Read::default() }))
            }
        }
    }

    fn read_once(path: &Path) -> Result<(Replay, Read), Lost> {
        let mut reader = BufReader::new(open_plain(path).map_err(Lost::of)?);
        let (mut replay, mut read) = (Replay::default(), Read::default());
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            match io::Read::take(&mut reader, LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {
                    let is_cut = line.len() as u64 == LINE_MAX;
                    let taken = if is_cut {
                        Err("it is longer than any line".to_owned())
                    } else {
                        take(&line, &mut replay, &mut read)
                    };
                    if let Err(reason) = taken {
                        read.damaged_bytes += line.len() as u64;
                        read.damage(format!("line {number}: {reason}"));
                    }
                }
                Err(error) => {
                    read.has_stumbled = true;
                    read.damage(format!("from line {number} on: {error}"));
                    break;
                }
            }
        }
        if !read.has_begun && read.damaged_lines == 0 {
            read.damage("it does not say where numbers begin".to_string());
        }
        Ok((replay, read))
    }

    /// Keeps a damaged one under another name.
    pub(super) fn keep(root: &Path, damaged: &Damaged, lines: usize) -> io::Result<()> {
        damaged.keep(DamageKind::Journal, &root.join(NAME), &format!("{lines} of its lines cannot be used"))
    }

    /// A new journal that says the same as `records`, in place of the old one.
    pub(super) fn rewrite(
        root: &Path,
        next: u64,
        records: impl Iterator<Item = Record>,
        fsync: bool,
    ) -> io::Result<Journal> {
        let mut writer = BufWriter::new(Aside::create(root.join(NAME), fsync)?);
        let mut buffer = Vec::new();
        for line in std::iter::once(Line::Begin { next }).chain(records.map(|record| Line::of(&record))) {
            buffer.clear();
            write_line(&mut buffer, &line)?;
            writer.write_all(&buffer)?;
        }
        let aside = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let (file, Stored { bytes, .. }) = aside.commit_open()?;
        Ok(Journal { file, bytes, bytes_after_rewrite: bytes, buffer: Vec::new() })
    }

    pub(super) fn append<'a>(&mut self, records: impl Iterator<Item = &'a Record>) -> io::Result<()> {
        self.buffer.clear();
        for record in records {
            write_line(&mut self.buffer, &Line::of(record))?;
        }
        let written = self.file.write_all(&self.buffer);
        match written {
            Ok(()) => self.bytes += self.buffer.len() as u64,
            // Why: half a line would damage the next one too.
            Err(_) => self.file.set_len(self.bytes)?,
        }
        written
    }

    /// Whether it stands in its place.
    pub(super) fn is_at(&self, root: &Path) -> bool {
        let there = std::fs::symlink_metadata(root.join(NAME));
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        there.is_ok_and(|there| self.file.metadata().is_ok_and(|ours| identity(ours) == identity(there)))
    }

    pub(super) fn wants_rewrite(&self) -> bool {
        self.bytes > REWRITE_BYTES && self.bytes > 4 * self.bytes_after_rewrite
    }

    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// What a line says is added to the rest.
fn take(line: &[u8], replay: &mut Replay, read: &mut Read) -> Result<(), String> {
    match serde_json::from_slice(unseal(line)?).map_err(|error| error.to_string())? {
        Line::Begin { next } => {
            read.has_begun = true;
            replay.numbers_begin_at(next);
        }
        line => replay.take(line.into_record().map_err(|error| error.to_string())?),
    }
    Ok(())
}
