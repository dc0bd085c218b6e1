//! The journal: one line a record, `crc32 json`, only ever appended to, and rewritten aside when it has grown.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::files::sync_directory;
use super::record::Line;
use crate::core::event::Record;

const NAME: &str = "journal";

/// What could not be read, with its reason, for an operator to look at.
const DAMAGED: &str = "journal.damaged";

/// It is moved aside when it is longer than this, over the one moved before: a disk that damages every line does not fill up
/// with copies of them.
const DAMAGED_MAX: u64 = 1024 * 1024;
const DAMAGED_BEFORE: &str = "journal.damaged.1";

/// A line longer than any a daemon writes: a payload and a failure's texts are bounded.
const LINE_MAX: u64 = 256 * 1024;

/// Rewritten when it is this long and mostly about tasks that are gone.
const REWRITE_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_after_rewrite: u64,
    /// Lines are put together here, to be written with one call; keeps its room.
    buffer: Vec<u8>,
}

/// What reading a journal gave.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub records: Vec<Record>,
    pub next: u64,
    pub damaged_lines: usize,
}

impl Journal {
    /// Reads what is there. Damaged lines are set aside, never a reason not to start.
    pub(super) fn read(root: &Path) -> io::Result<Read> {
        let mut read = Read { next: 1, ..Read::default() };
        let file = match File::open(root.join(NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(read),
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            if io::Read::take(&mut reader, LINE_MAX).read_until(b'\n', &mut line)? == 0 {
                return Ok(read);
            }
            let parsed = parse(&line).and_then(|parsed| match parsed {
                Line::Begin { next } => {
                    read.next = read.next.max(next);
                    Ok(None)
                }
                parsed => parsed.into_record().map_err(|error| error.to_string()),
            });
            match parsed {
                Ok(record) => read.records.extend(record),
                Err(reason) => {
                    set_aside(root, &line, &reason)?;
                    read.damaged_lines += 1;
                }
            }
        }
    }

    /// A new journal that says the same as `records`, in place of the old one.
    pub(super) fn rewrite(root: &Path, next: u64, records: &[Record], fsync: bool) -> io::Result<Journal> {
        let path = root.join(NAME);
        let aside = root.join("journal.tmp");
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&aside)?;
        let mut writer = BufWriter::new(file);
        let mut buffer = Vec::new();
        let mut bytes = 0;
        for line in std::iter::once(Line::Begin { next }).chain(records.iter().map(Line::of)) {
            buffer.clear();
            write_line(&mut buffer, &line)?;
            writer.write_all(&buffer)?;
            bytes += buffer.len() as u64;
        }
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        if fsync {
            file.sync_all()?;
        }
        fs::rename(&aside, &path)?;
        if fsync {
            sync_directory(root)?;
        }
        Ok(Journal { path, file, bytes, bytes_after_rewrite: bytes, buffer: Vec::new() })
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

    pub(super) fn wants_rewrite(&self) -> bool {
        self.bytes > REWRITE_BYTES && self.bytes > 4 * self.bytes_after_rewrite
    }

    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn write_line(buffer: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    let start = buffer.len();
    buffer.extend_from_slice(b"00000000 ");
    serde_json::to_writer(&mut *buffer, line)?;
    let crc = crc32fast::hash(&buffer[start + 9..]);
    write!(&mut buffer[start..start + 8], "{crc:08x}")?;
    buffer.push(b'\n');
    Ok(())
}

fn parse(line: &[u8]) -> Result<Line, String> {
    let text = line.strip_suffix(b"\n").ok_or("it is cut off: the daemon or the machine ended while it was written")?;
    let (crc, json) = text.split_at_checked(9).ok_or("it is too short")?;
    let expected = format!("{:08x} ", crc32fast::hash(json));
    if crc != expected.as_bytes() {
        return Err(format!("its checksum is not {}", expected.trim_end()));
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn set_aside(root: &Path, line: &[u8], reason: &str) -> io::Result<()> {
    let path = root.join(DAMAGED);
    log::warn!("the journal has a damaged line ({reason}); it is kept in {}", path.display());
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    if file.metadata()?.len() > DAMAGED_MAX {
        fs::rename(&path, root.join(DAMAGED_BEFORE))?;
        file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    }
    writeln!(file, "# {reason}")?;
    file.write_all(line)?;
    if !line.ends_with(b"\n") {
        file.write_all(b"\n")?;
    }
    Ok(())
}
