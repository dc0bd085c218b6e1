//! A payload on its way out: from a file, from standard input, or none.
//!
//! Owns finding out how long it is before it is sent. May import std. Must never know HTTP's words.

use super::args::PayloadSource;
use super::error::CtlError;
use super::http::RequestBody;
use crate::sys::clock::wall_ms;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Up to here a payload of unknown length is kept in memory, beyond in a temporary file.
const MEMORY_LIMIT_BYTES: u64 = 1024 * 1024;
/// A stream without end must not fill the disk; far above any sane `gateway.max_body_mb`.
const STREAM_LIMIT_BYTES: u64 = 1024 * 1024 * 1024;

pub fn open(source: &PayloadSource, input: &mut dyn Read) -> Result<RequestBody, CtlError> {
    match source {
        PayloadSource::Empty => Ok(RequestBody::Bytes(Vec::new())),
        PayloadSource::StandardInput => measured(input, "standard input"),
        PayloadSource::File(path) => open_file(path),
    }
}

fn open_file(path: &Path) -> Result<RequestBody, CtlError> {
    let what = path.display().to_string();
    let wrong = |source| CtlError::Input { what: what.clone(), source };
    let mut file = File::open(path).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    // Why: files of /proc say 0 bytes and have more; pipes and devices have no length.
    if metadata.is_file() && metadata.len() > 0 {
        return Ok(RequestBody::File { file, bytes: metadata.len() });
    }
    measured(&mut file, &what)
}

/// Reads a stream to its end, so that its length can be told first.
fn measured(stream: &mut dyn Read, what: &str) -> Result<RequestBody, CtlError> {
    let wrong = |source| CtlError::Input { what: what.to_owned(), source };
    let mut bytes = Vec::new();
    stream.take(MEMORY_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 <= MEMORY_LIMIT_BYTES {
        return Ok(RequestBody::Bytes(bytes));
    }
    let directory = std::env::temp_dir();
    let spooled =
        |source| CtlError::Input { what: format!("{what} by way of a file in {}", directory.display()), source };
    let mut file = unnamed_file(&directory).map_err(spooled)?;
    file.write_all(&bytes).map_err(spooled)?;
    let more = io::copy(&mut stream.take(STREAM_LIMIT_BYTES), &mut file).map_err(spooled)?;
    if more == STREAM_LIMIT_BYTES {
        let why = format!("it is longer than {STREAM_LIMIT_BYTES} bytes; give the agent the name of a file instead");
        return Err(CtlError::Unsendable { what: what.to_owned(), why });
    }
    file.seek(SeekFrom::Start(0)).map_err(spooled)?;
    Ok(RequestBody::File { file, bytes: bytes.len() as u64 + more })
}

/// A file only we can open, gone from its directory before anything is in it.
fn unnamed_file(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!("kurultaictl-{}-{}", std::process::id(), wall_ms()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
