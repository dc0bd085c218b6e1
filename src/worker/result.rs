//! A result as it comes in: in memory while it is small, then in the task's result file.

use std::io::Write;
use std::sync::Arc;

use crate::core::ids::TaskId;
use crate::core::limits::INLINE_RESULT_MAX;
use crate::core::task::{ResultPlace, ResultRef};
use crate::spool::{Aside, Files, advice};

/// Where the bytes of one task's result go. Dropped unfinished, it leaves no file.
#[derive(Debug)]
pub struct ResultSink {
    task: TaskId,
    max_bytes: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    File(Aside),
    /// It cannot be kept; what still comes is thrown away.
    Lost,
}

/// Why a result cannot be kept, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    #[error("the result is over {max_bytes} bytes: make it smaller, or raise spool.retention_mb")]
    TooLarge { max_bytes: u64 },
    #[error("cannot store the result: {source}; {}", advice(.source))]
    Write { source: std::io::Error },
}

impl ResultError {
    fn write(source: std::io::Error) -> ResultError {
        ResultError::Write { source }
    }
}

impl ResultSink {
    /// For bytes that come in pieces, of any size in total up to `max_bytes`.
    pub fn new(task: TaskId, max_bytes: u64) -> ResultSink {
        ResultSink { task, max_bytes, place: Place::Memory(Vec::new()) }
    }

    pub fn write(&mut self, files: &Files, piece: &[u8]) -> Result<(), ResultError> {
        let written = self.try_write(files, piece);
        if written.is_err() {
            self.discard();
        }
        written
    }

    fn try_write(&mut self, files: &Files, piece: &[u8]) -> Result<(), ResultError> {
        let so_far = match &self.place {
            Place::Memory(bytes) => bytes.len() as u64,
            Place::File(file) => file.bytes(),
            Place::Lost => return Ok(()),
        };
        let total = so_far + piece.len() as u64;
        if total > self.max_bytes {
            return Err(ResultError::TooLarge { max_bytes: self.max_bytes });
        }
        match &mut self.place {
            Place::Memory(memory) if total <= INLINE_RESULT_MAX as u64 => memory.extend_from_slice(piece),
            Place::Memory(memory) => {
                let mut file = files.create_result(self.task).map_err(ResultError::write)?;
                file.write_all(memory).and_then(|()| file.write_all(piece)).map_err(ResultError::write)?;
                self.place = Place::File(file);
            }
            Place::File(file) => file.write_all(piece).map_err(ResultError::write)?,
            Place::Lost => {}
        }
        Ok(())
    }

    /// The whole result; `None` if it was lost. One in a file waits there for [`Files::keep_result`].
    pub fn finish(self, is_json: bool) -> Option<ResultRef> {
        let place = match self.place {
            Place::Memory(bytes) => ResultPlace::Inline(Arc::from(bytes)),
            Place::File(file) => ResultPlace::File(file.leave()),
            Place::Lost => return None,
        };
        Some(ResultRef { place, is_json })
    }

    /// Nobody wants it: removes its file and takes nothing more.
    pub fn discard(&mut self) {
        self.place = Place::Lost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_moves_to_its_file_when_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path(), false).unwrap();
        let task = TaskId(3);

        let mut small = ResultSink::new(task, 5000);
        small.write(&files, &[b'a'; INLINE_RESULT_MAX - 1]).unwrap();
        small.write(&files, b"b").unwrap();
        let small = small.finish(false).unwrap();
        assert_eq!(small.bytes(), INLINE_RESULT_MAX as u64);
        assert!(!files.result_path(task).exists());

        let mut large = ResultSink::new(task, 5000);
        for piece in [&[b'a'; INLINE_RESULT_MAX][..], b"b", b"c"] {
            large.write(&files, piece).unwrap();
        }
        let expected = INLINE_RESULT_MAX as u64 + 2;
        let ResultPlace::File(stored) = large.finish(true).unwrap().place else { panic!("it is in memory") };
        assert_eq!(stored.bytes, expected);
        files.keep_result(task).unwrap();
        let written = std::fs::read(files.result_path(task)).unwrap();
        assert!(written.ends_with(b"abc"));
        assert_eq!(stored.crc, Some(crc32fast::hash(&written)));

        let mut endless = ResultSink::new(task, 5000);
        endless.write(&files, &[b'a'; 5000]).unwrap();
        let error = endless.write(&files, b"b").unwrap_err();
        assert!(error.to_string().contains("over 5000 bytes"), "{error}");
        assert_eq!(std::fs::read_dir(files.result_path(task).parent().unwrap()).unwrap().count(), 1, "the large one");
        endless.write(&files, b"b").unwrap();
        assert_eq!(endless.finish(false), None);
    }

    #[test]
    fn a_result_that_cannot_be_stored_says_so_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path(), false).unwrap();
        std::fs::remove_dir(files.result_path(TaskId(1)).parent().unwrap()).unwrap();
        let mut sink = ResultSink::new(TaskId(1), 5000);
        let error = sink.write(&files, &[0; 2000]).unwrap_err();
        assert!(error.to_string().starts_with("cannot store the result: "), "{error}");
        sink.write(&files, &[0; 2000]).unwrap();
        assert_eq!(sink.finish(false), None);
    }
}
