//! Lines out of a stream that comes in pieces, with no more memory than the unfinished line needs.

use crate::core::limits::LINE_MAX;

use super::text::quote;

/// Capacity that an idle worker may keep; a larger buffer is given back with the line that needed it.
const KEEP_MAX: usize = 1024;

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub struct LineBuffer {
    partial: Vec<u8>,
}

impl LineBuffer {
    /// Calls `each` with every line that `piece` ends, without its newline. Lines that lie whole in the piece are not
    /// copied. Fails with the first error of `each`, or when a line grows beyond [`LINE_MAX`].
    pub fn push(&mut self, mut piece: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = (&piece[..end], &piece[end + 1..]);
            piece = rest;
            if self.partial.is_empty() {
                each(head)?;
                continue;
            }
            self.extend(head)?;
            let done = each(&self.partial);
            self.partial.clear();
            self.partial.shrink_to(KEEP_MAX);
            done?;
        }
        self.extend(piece)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), String> {
        let needed = self.partial.len() + bytes.len();
        if needed > LINE_MAX {
            let start = if self.partial.is_empty() { bytes } else { &self.partial };
            return Err(format!("a line over {LINE_MAX} bytes: {}", quote(start)));
        }
        if needed > self.partial.capacity() {
            // Doubling, but never beyond the limit.
            let capacity = (self.partial.capacity() * 2).clamp(needed, LINE_MAX);
            self.partial.reserve_exact(capacity - self.partial.len());
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.partial.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_in_pieces_of(size: usize, input: &[u8]) -> Vec<Vec<u8>> {
        let (mut buffer, mut lines) = (LineBuffer::default(), Vec::new());
        for piece in input.chunks(size) {
            let pushed = buffer.push(piece, |line| {
                lines.push(line.to_vec());
                Ok(())
            });
            assert_eq!(pushed, Ok(()), "pieces of {size}");
        }
        lines
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let input = b"one\n\n{\"two\":2}\r\nand a longer third line\nunfinished";
        for size in 1..=input.len() {
            let lines = lines_in_pieces_of(size, input);
            assert_eq!(lines, [&b"one"[..], b"", b"{\"two\":2}\r", b"and a longer third line"], "pieces of {size}");
        }
    }

    #[test]
    fn a_long_line_is_bounded_and_its_memory_given_back() {
        let mut buffer = LineBuffer::default();
        let piece = vec![b'x'; 16 * 1024];
        for _ in 0..LINE_MAX / piece.len() {
            buffer.push(&piece, |_| Ok(())).unwrap();
            assert!(buffer.capacity() <= LINE_MAX, "{}", buffer.capacity());
        }
        let mut length = 0;
        buffer
            .push(b"\n", |line| {
                length = line.len();
                Ok(())
            })
            .unwrap();
        assert_eq!(length, LINE_MAX);
        assert!(buffer.capacity() <= KEEP_MAX, "{}", buffer.capacity());

        buffer.push(&vec![b'x'; LINE_MAX], |_| Ok(())).unwrap();
        let error = buffer.push(b"x\n", |_| Ok(())).unwrap_err();
        assert!(error.starts_with("a line over 1048576 bytes: \"xxx"), "{error}");
    }
}
