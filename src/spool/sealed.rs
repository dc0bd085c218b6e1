//! A line that tells whether it is whole: eight hexadecimal digits of the CRC-32 of the rest, a blank, JSON, a newline.

use std::io::{self, Write};

/// Digits and blank.
const SEAL: usize = 9;

/// Appends `value` as one line.
pub(super) fn write_line(buffer: &mut Vec<u8>, value: &impl serde::Serialize) -> io::Result<()> {
    let start = buffer.len();
    buffer.extend_from_slice(b"00000000 ");
    serde_json::to_writer(&mut *buffer, value)?;
    finish(buffer, start)
}

/// JSON text as one line; the caller knows that it has no newline in it.
pub(super) fn seal(json: &[u8]) -> io::Result<Vec<u8>> {
    let mut buffer = b"00000000 ".to_vec();
    buffer.extend_from_slice(json);
    finish(&mut buffer, 0)?;
    Ok(buffer)
}

fn finish(buffer: &mut Vec<u8>, start: usize) -> io::Result<()> {
    let crc = crc32fast::hash(&buffer[start + SEAL..]);
    write!(&mut buffer[start..start + SEAL - 1], "{crc:08x}")?;
    buffer.push(b'\n');
    Ok(())
}

/// The JSON of a whole line.
///
/// # Errors
///
/// Why it is not whole, for people.
pub(super) fn unseal(line: &[u8]) -> Result<&[u8], String> {
    let text = line.strip_suffix(b"\n").ok_or("it is cut off: the daemon or the machine ended while it was written")?;
    let (seal, json) = text.split_at_checked(SEAL).ok_or("it is too short")?;
    let expected = format!("{:08x} ", crc32fast::hash(json));
    if seal != expected.as_bytes() {
        return Err(format!("its checksum is not {}", expected.trim_end()));
    }
    Ok(json)
}
