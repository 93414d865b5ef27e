//! A readable listing of a log: files, frames, and where the frames of each file stop. For tools and bug reports.
//!
//! Reads only; nobody may append meanwhile. Interprets nothing but the framing, and goes on behind damage.

use std::io::Write;

use betree_storage::Storage;

use crate::Lsn;
use crate::error::Result;
use crate::format::{BadFrame, FILE_HEADER};
use crate::reader::{Found, Reader, survey};

/// Lists the log files in `storage` and their frames.
///
/// # Errors
/// Those of reading, a file of another format version, and those of `out` (as an I/O error of the file `dump`).
pub fn dump(storage: &dyn Storage, out: &mut dyn Write) -> Result<()> {
    for found in survey(storage, None)? {
        let text = describe(&found)?;
        out.write_all(text.as_bytes())
            .map_err(|error| betree_storage::Error::from_io("write", "dump", None, error))?;
    }
    Ok(())
}

fn describe(found: &Found) -> Result<String> {
    let mut text = format!("{} ({} bytes): ", found.name, found.len);
    let header = match found.header {
        Ok(header) => header,
        Err((field, expected, got)) => {
            text += &format!("no header: {field} expected {expected:#x}, got {got:#x}\n");
            return Ok(text);
        }
    };
    text +=
        &format!("first lsn {}, durable {}, salt {:#018x}\n", header.first.0, header.durable.0, header.salt);
    let mut reader = Reader::new(found, header.salt);
    let (mut offset, mut lsn) = (FILE_HEADER as u64, header.first);
    let bad = loop {
        match reader.frame(offset, lsn)? {
            Ok(frame) => {
                let mark = frame.mark.map_or(String::new(), |mark| format!(", durable {}", mark.0));
                text +=
                    &format!("  {offset:>9}  lsn {}  {:?}  {} bytes{mark}\n", lsn.0, frame.kind, frame.len);
                offset += frame.frame_len() as u64;
                lsn = Lsn(lsn.0 + frame.frame_len() as u64);
            }
            Err(bad) => break bad,
        }
    };
    let why = match bad {
        BadFrame::Blank => "zeros".to_owned(),
        BadFrame::Cut(need, there) => format!("{need} bytes needed, {there} there"),
        BadFrame::Field(field, expected, got) => format!("{field} expected {expected:#x}, got {got:#x}"),
        BadFrame::Checksum(computed, stored) => {
            format!("checksum computed {computed:#x}, stored {stored:#x}")
        }
    };
    let behind = reader.search(header.first, offset)?;
    text += &format!("  {offset:>9}  lsn {}  end: {why}; {} valid frames behind\n", lsn.0, behind.frames);
    Ok(text)
}
