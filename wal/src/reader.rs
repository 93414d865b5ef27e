//! Reading log files frame by frame. Called by recovery and dump; holds no locks, changes nothing.
//!
//! Reads in large pieces into one buffer that is never longer than the rest of the file, whatever a length field
//! says.

use std::sync::Arc;

use betree_storage::{Caching, File, OpenMode, Storage};

use crate::Lsn;
use crate::blank::{file_name, file_number};
use crate::error::{Error, Result};
use crate::format::{
    BadFrame, BadHeader, FILE_HEADER, FileHeader, FrameHeader, FrameSalt, LONG_HEADER, MARK, SHORT_HEADER,
    VERSION, check_frame, place_of, u16_at,
};

const PIECE: u64 = 1 << 20;

/// A log file found in the directory.
#[derive(Debug)]
pub(crate) struct Found {
    pub number: u64,
    pub name: String,
    pub file: Arc<dyn File>,
    pub len: u64,
    /// Its header, or why it has none: which field, expected, got.
    pub header: std::result::Result<FileHeader, (&'static str, u64, u64)>,
}

/// All log files, by number.
///
/// Fails on a whole header of another version or database. A header with another file's number is that of a
/// recycled file whose new life had not begun: such a file counts as one without header.
pub(crate) fn survey(storage: &dyn Storage, salt: Option<u64>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for name in storage.list()? {
        let Some(number) = file_number(&name) else { continue };
        let file = storage.open(&name, OpenMode::Existing, Caching::Buffered)?;
        let len = file.len()?;
        let header = read_header(&*file, len, number, salt)?;
        found.push(Found { number, name: file_name(number), file, len, header });
    }
    found.sort_by_key(|found| found.number);
    Ok(found)
}

fn read_header(
    file: &dyn File,
    len: u64,
    number: u64,
    salt: Option<u64>,
) -> Result<std::result::Result<FileHeader, (&'static str, u64, u64)>> {
    if len < FILE_HEADER as u64 {
        return Ok(Err(("length of the file header", FILE_HEADER as u64, len)));
    }
    let mut bytes = [0; FILE_HEADER];
    file.read_at(0, &mut bytes)?;
    let file = file.name().to_owned();
    Ok(match FileHeader::decode(&bytes) {
        Err(BadHeader::Version(got)) => return Err(Error::Version { file, expected: VERSION, got }),
        Err(BadHeader::Damaged(field, expected, got)) => Err((field, expected, got)),
        Ok(header) if header.number != number => Err(("file number", number, header.number)),
        Ok(header) => match salt {
            Some(expected) if expected != header.salt => {
                return Err(Error::Foreign { file, expected, got: header.salt });
            }
            _ => Ok(header),
        },
    })
}

/// What a search for frames behind a hole found.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rest {
    /// Valid frames.
    pub frames: u64,
    /// The greatest mark among them.
    pub mark: Lsn,
}

/// A buffered view of one file.
#[derive(Debug)]
pub(crate) struct Reader {
    file: Arc<dyn File>,
    len: u64,
    salt: FrameSalt,
    buf: Vec<u8>,
    start: u64,
}

impl Reader {
    pub fn new(found: &Found, salt: u64) -> Self {
        let (file, len) = (found.file.clone(), found.len);
        Self { file, len, salt: FrameSalt::new(salt), buf: Vec::new(), start: 0 }
    }

    /// The `len` bytes at `offset`, fewer where the file ends before.
    pub fn bytes(&mut self, offset: u64, len: u64) -> Result<&[u8]> {
        let offset = offset.min(self.len);
        let end = self.len.min(offset.saturating_add(len));
        if offset < self.start || end > self.start + self.buf.len() as u64 {
            let want = (end - offset).max(PIECE).min(self.len - offset);
            self.buf.resize(want as usize, 0);
            self.start = offset;
            if let Err(error) = self.file.read_at(offset, &mut self.buf) {
                self.buf.clear();
                return Err(error.into());
            }
        }
        Ok(&self.buf[(offset - self.start) as usize..(end - self.start) as usize])
    }

    /// The bytes at `offset` that are in the buffer, at least a short frame's header, where the file has one.
    fn some_bytes(&mut self, offset: u64) -> Result<&[u8]> {
        let buffered = (self.start + self.buf.len() as u64).saturating_sub(offset);
        let len = if offset >= self.start && buffered >= SHORT_HEADER as u64 { buffered } else { PIECE };
        self.bytes(offset, len)
    }

    /// The frame that begins at `offset` of the file and `lsn` of the log, checked.
    pub fn frame(&mut self, offset: u64, lsn: Lsn) -> Result<std::result::Result<FrameHeader, BadFrame>> {
        let there = self.len.saturating_sub(offset);
        let header = match FrameHeader::decode(self.bytes(offset, (LONG_HEADER + MARK) as u64)?, lsn, there) {
            Ok(header) => header,
            Err(bad) => return Ok(Err(bad)),
        };
        let salt = self.salt;
        let frame = self.bytes(offset, header.frame_len() as u64)?;
        Ok(check_frame(salt, lsn, frame).map(|()| header))
    }

    /// The payload of a frame at `offset`.
    pub fn payload(&mut self, offset: u64, header: &FrameHeader) -> Result<&[u8]> {
        self.bytes(offset + header.header_len() as u64, header.len as u64)
    }

    /// Searches for valid frames at or behind `offset`, in a file whose first Lsn is `first`.
    pub fn search(&mut self, first: Lsn, mut offset: u64) -> Result<Rest> {
        let mut rest = Rest::default();
        while let Some((at, header)) = self.next_frame(first, offset)? {
            rest.frames += 1;
            rest.mark = rest.mark.max(header.mark.unwrap_or_default());
            offset = at + header.frame_len() as u64;
        }
        Ok(rest)
    }

    /// The first valid frame at or behind `offset`, in a file whose first Lsn is `first`: its place and header.
    ///
    /// A frame must carry the low bits of the Lsn of its very position, so one comparison a byte finds the candidates, and chance
    /// makes one of 65,536 bytes into one: of up to 32 KiB, since a long frame carries more bits.
    pub fn next_frame(&mut self, first: Lsn, mut offset: u64) -> Result<Option<(u64, FrameHeader)>> {
        while offset + SHORT_HEADER as u64 <= self.len {
            let lsn_at = |offset: u64| first.0.wrapping_add(offset - FILE_HEADER as u64);
            let piece = self.some_bytes(offset)?;
            let last = piece.len() - SHORT_HEADER;
            let hit =
                (0..=last).find(|at| u16_at(piece, at + 6) == place_of(Lsn(lsn_at(offset + *at as u64))));
            let Some(hit) = hit else {
                offset += last as u64 + 1;
                continue;
            };
            offset += hit as u64;
            if let Ok(header) = self.frame(offset, Lsn(lsn_at(offset)))? {
                return Ok(Some((offset, header)));
            }
            offset += 1;
        }
        Ok(None)
    }

    /// The end of the valid frames from the file's beginning: offset and Lsn.
    pub fn walk(&mut self, first: Lsn) -> Result<(u64, Lsn)> {
        let (mut offset, mut lsn) = (FILE_HEADER as u64, first);
        while let Ok(header) = self.frame(offset, lsn)? {
            offset += header.frame_len() as u64;
            lsn.0 += header.frame_len() as u64;
        }
        Ok((offset, lsn))
    }

    pub fn len(&self) -> u64 {
        self.len
    }
}
