//! The bytes of a log file: the file header and the frame. Pure functions; called by the appender (encode), by
//! replay and by dump (decode).
//!
//! A log file is one [`FileHeader`] of 64 bytes and then frames without gaps or alignment. All integers are
//! little-endian; reserved bytes are written zero and a header with another value there is invalid.
//!
//! ```text
//! file header (64 bytes)
//!   0   8  magic      "betreLOG"
//!   8   4  version    3
//!  12   4  reserved   zero
//!  16   8  salt       of the database; also enters every frame's checksum
//!  24   8  number     of the file, the same as in its name `log-<16 digits>`
//!  32   8  first      Lsn of the byte after this header
//!  40   8  durable    a known-durable Lsn at the time the header was (last) written
//!  48  12  reserved   zero
//!  60   4  checksum   CRC-32 of bytes 0..60
//!
//! frame of 8 bytes and a payload of up to 32 KiB: a record
//!   0   4  checksum   CRC-32 of bytes 4.. to the end of the payload; initial value: the CRC-32 of the salt, xor bits
//!                     16..48 of the Lsn of this frame's first byte, xor its bits 48..64
//!   4   2  word       bit 0: 1; bits 1..16: payload length
//!   6   2  place      bits 0..16 of the Lsn of this frame's first byte
//!   8   n  payload
//!
//! frame of 16 bytes, or 24 with a mark, and any payload
//!   0   4  checksum   as above
//!   4   2  word       bit 0: 0; bits 1..4: kind: 1 full, 2 first, 3 middle, 4 last; bit 4: a mark follows the header;
//!                     others zero
//!   6   2  place      as above
//!   8   4  high       bits 16..48 of the Lsn
//!  12   4  length     of the payload, below 2^28
//!  16   8  mark       (only with bit 4) a known-durable Lsn at the time of the append; <= lsn
//!   .   n  payload
//! ```
//!
//! The Lsn of the byte at file offset `o` is `first + (o - 64)`. A frame therefore says where it belongs: what a
//! recycled file held before has other Lsns and never parses as a frame of the new life. A short frame says sixteen bits of its
//! place, for a reader that searches frames behind a hole; the others enter the checksum, where another initial value always
//! gives another checksum (up to 2^48 bytes of log apart). Eight bytes instead of sixteen are 6 % of the log of small records. The first
//! frame that an appender writes to a file is a long one, so that a file without header still says where in the log it was.
//! The checksum of the file header is not salted, so that the log of another database is told from a damaged one.

use crate::Lsn;

/// The first bytes of every log file.
pub(crate) const MAGIC: [u8; 8] = *b"betreLOG";
/// The format version this build writes and reads.
pub(crate) const VERSION: u32 = 3;
/// Bytes of the file header.
pub(crate) const FILE_HEADER: usize = 64;
/// Bytes of a short frame's header.
pub(crate) const SHORT_HEADER: usize = 8;
/// Bytes of a long frame's header without a mark.
pub(crate) const LONG_HEADER: usize = 16;
/// Bytes of a mark.
pub(crate) const MARK: usize = 8;
/// The most payload a frame can carry (28 bits of length).
pub(crate) const MAX_FRAME_PAYLOAD: u64 = (1 << 28) - 1;
/// The most payload a short frame can carry.
pub(crate) const MAX_SHORT_PAYLOAD: usize = (1 << 15) - 1;

/// No file begins above this Lsn.
const MAX_LSN: u64 = 1 << 62;
const SHORT_BIT: u16 = 1;
const KIND_SHIFT: u32 = 1;
const KIND_MASK: u16 = 0b1110;
const MARK_BIT: u16 = 1 << 4;

const _: () = assert!(60 + 4 == FILE_HEADER && 6 + 2 == SHORT_HEADER && 12 + 4 == LONG_HEADER);
const _: () = assert!((Kind::Last as u16) << KIND_SHIFT <= KIND_MASK);

/// The header of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// Of the database.
    pub salt: u64,
    /// The file's number.
    pub number: u64,
    /// The Lsn of the first byte after the header.
    pub first: Lsn,
    /// A known-durable Lsn when the header was written.
    pub durable: Lsn,
}

/// Why a file header was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Not a header at all, or a damaged one: which field, what it should be, what it is.
    Damaged(&'static str, u64, u64),
    /// A whole header of another format version.
    Version(u32),
}

impl FileHeader {
    /// The bytes of this header.
    pub fn encode(&self) -> [u8; FILE_HEADER] {
        let mut out = [0; FILE_HEADER];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.salt.to_le_bytes());
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..40].copy_from_slice(&self.first.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.durable.0.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks a header. Salt and number are the caller's to compare.
    pub fn decode(bytes: &[u8; FILE_HEADER]) -> Result<Self, BadHeader> {
        let damaged = |field, expected, got| Err(BadHeader::Damaged(field, expected, got));
        let magic = u64_at(bytes, 0);
        if magic != u64::from_le_bytes(MAGIC) {
            return damaged("magic", u64::from_le_bytes(MAGIC), magic);
        }
        let crc = crc32fast::hash(&bytes[..60]);
        if crc != u32_at(bytes, 60) {
            return damaged("checksum", crc.into(), u32_at(bytes, 60).into());
        }
        // After the checksum: only a whole header may claim to be of another version.
        if u32_at(bytes, 8) != VERSION {
            return Err(BadHeader::Version(u32_at(bytes, 8)));
        }
        let reserved = u64::from(u32_at(bytes, 12)) | u64_at(bytes, 48) | u64::from(u32_at(bytes, 56));
        if reserved != 0 {
            return damaged("reserved bytes", 0, reserved);
        }
        let header = Self {
            salt: u64_at(bytes, 16),
            number: u64_at(bytes, 24),
            first: Lsn(u64_at(bytes, 32)),
            durable: Lsn(u64_at(bytes, 40)),
        };
        // Far above every log: arithmetic on positions cannot overflow.
        if header.first.0 > MAX_LSN {
            return damaged("first", MAX_LSN, header.first.0);
        }
        Ok(header)
    }
}

/// Which part of a record a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    /// All of it.
    Full = 1,
    /// Its beginning; the rest follows in the next files.
    First = 2,
    /// Neither beginning nor end.
    Middle = 3,
    /// Its end.
    Last = 4,
}

/// The decoded header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Of the frame's first byte.
    pub lsn: Lsn,
    /// Whether its header is a short one: it carries a whole record, no mark, and at most [`MAX_SHORT_PAYLOAD`].
    pub short: bool,
    /// Which part of a record it carries.
    pub kind: Kind,
    /// A known-durable Lsn, when the frame carries one.
    pub mark: Option<Lsn>,
    /// Payload bytes.
    pub len: usize,
}

/// Why the bytes at a position are no frame of that position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadFrame {
    /// Nothing was ever written here: the header is all zero.
    Blank,
    /// The file ends before the frame does: bytes needed, bytes there.
    Cut(u64, u64),
    /// A field has a value no frame of this position has: which, expected, got.
    Field(&'static str, u64, u64),
    /// The checksum does not match: computed, stored.
    Checksum(u32, u32),
}

impl FrameHeader {
    /// Bytes of header and mark.
    pub fn header_len(&self) -> usize {
        match (self.short, self.mark) {
            (true, _) => SHORT_HEADER,
            (false, None) => LONG_HEADER,
            (false, Some(_)) => LONG_HEADER + MARK,
        }
    }

    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> usize {
        self.header_len() + self.len
    }

    /// Writes header and mark, without the checksum, to the front of `out`; returns their length.
    ///
    /// The length was bounded by the caller to [`MAX_FRAME_PAYLOAD`], or [`MAX_SHORT_PAYLOAD`].
    #[inline]
    pub fn encode(&self, out: &mut [u8]) -> usize {
        out[6..8].copy_from_slice(&place_of(self.lsn).to_le_bytes());
        if self.short {
            debug_assert!(self.len <= MAX_SHORT_PAYLOAD, "a frame longer than its length field");
            debug_assert!(self.kind == Kind::Full && self.mark.is_none(), "a short frame of another kind");
            out[4..6].copy_from_slice(&(SHORT_BIT | (self.len as u16) << 1).to_le_bytes());
            return SHORT_HEADER;
        }
        debug_assert!(self.len as u64 <= MAX_FRAME_PAYLOAD, "a frame longer than its length field");
        let mark_bit = if self.mark.is_some() { MARK_BIT } else { 0 };
        out[4..6].copy_from_slice(&((self.kind as u16) << KIND_SHIFT | mark_bit).to_le_bytes());
        out[8..12].copy_from_slice(&high_of(self.lsn).to_le_bytes());
        out[12..16].copy_from_slice(&(self.len as u32).to_le_bytes());
        if let Some(mark) = self.mark {
            out[16..24].copy_from_slice(&mark.0.to_le_bytes());
        }
        self.header_len()
    }

    /// Reads the header of the frame that should begin at `lsn`. `there` is how many bytes the file has from here
    /// on, of which `bytes` holds at least the first 24 (or all). The checksum is not checked here.
    pub fn decode(bytes: &[u8], lsn: Lsn, there: u64) -> Result<Self, BadFrame> {
        if bytes.len() < SHORT_HEADER {
            return Err(BadFrame::Cut(SHORT_HEADER as u64, there));
        }
        let (word, place) = (u16_at(bytes, 4), u16_at(bytes, 6));
        if word == 0 && place == 0 && u32_at(bytes, 0) == 0 {
            return Err(BadFrame::Blank);
        }
        if place != place_of(lsn) {
            return Err(BadFrame::Field("low bits of the lsn", place_of(lsn).into(), place.into()));
        }
        let header = if word & SHORT_BIT != 0 {
            Self { lsn, short: true, kind: Kind::Full, mark: None, len: usize::from(word >> 1) }
        } else {
            Self::decode_long(bytes, lsn, there, word)?
        };
        if header.frame_len() as u64 > there {
            return Err(BadFrame::Cut(header.frame_len() as u64, there));
        }
        match header.mark {
            Some(mark) if mark > lsn => Err(BadFrame::Field("mark", lsn.0, mark.0)),
            _ => Ok(header),
        }
    }

    fn decode_long(bytes: &[u8], lsn: Lsn, there: u64, word: u16) -> Result<Self, BadFrame> {
        let kind = match (word & KIND_MASK) >> KIND_SHIFT {
            1 => Kind::Full,
            2 => Kind::First,
            3 => Kind::Middle,
            4 => Kind::Last,
            other => return Err(BadFrame::Field("kind", Kind::Full as u64, other.into())),
        };
        let reserved = word & !(SHORT_BIT | KIND_MASK | MARK_BIT);
        if reserved != 0 {
            return Err(BadFrame::Field("reserved bits", 0, reserved.into()));
        }
        let marked = word & MARK_BIT != 0;
        let header_len = LONG_HEADER + if marked { MARK } else { 0 };
        if bytes.len() < header_len {
            return Err(BadFrame::Cut(header_len as u64, there));
        }
        let high = u32_at(bytes, 8);
        if high != high_of(lsn) {
            return Err(BadFrame::Field("high bits of the lsn", high_of(lsn).into(), high.into()));
        }
        let len = u32_at(bytes, 12);
        if u64::from(len) > MAX_FRAME_PAYLOAD {
            return Err(BadFrame::Field("payload length", MAX_FRAME_PAYLOAD, len.into()));
        }
        let mark = marked.then(|| Lsn(u64_at(bytes, 16)));
        Ok(Self { lsn, short: false, kind, mark, len: len as usize })
    }
}

/// Checks the checksum of a whole frame whose header was decoded for `lsn`.
pub(crate) fn check_frame(salt: FrameSalt, lsn: Lsn, frame: &[u8]) -> Result<(), BadFrame> {
    let mut hasher = salt.hasher(lsn);
    hasher.update(&frame[4..]);
    let (computed, stored) = (hasher.finalize(), u32_at(frame, 0));
    if computed == stored { Ok(()) } else { Err(BadFrame::Checksum(computed, stored)) }
}

/// What the database contributes to the checksums of its frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameSalt(u32);

impl FrameSalt {
    /// From the number of the database.
    pub fn new(salt: u64) -> Self {
        Self(crc32fast::hash(&salt.to_le_bytes()))
    }

    /// The state of the checksum of the frame at `lsn` before its first byte.
    #[inline]
    pub fn hasher(self, lsn: Lsn) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(self.0 ^ high_of(lsn) ^ (lsn.0 >> 48) as u32)
    }
}

/// The bits of an Lsn that every frame carries.
#[inline]
pub(crate) fn place_of(lsn: Lsn) -> u16 {
    lsn.0 as u16
}

/// The bits of an Lsn above them that a long frame carries.
#[inline]
fn high_of(lsn: Lsn) -> u32 {
    (lsn.0 >> 16) as u32
}

/// The Lsn that the long frame at the front of `bytes` says, but for its bits 48..64. `None`: it is no long frame.
pub(crate) fn lsn_said(bytes: &[u8]) -> Option<u64> {
    let long = bytes.len() >= LONG_HEADER && u16_at(bytes, 4) & SHORT_BIT == 0;
    long.then(|| u64::from(u32_at(bytes, 8)) << 16 | u64::from(u16_at(bytes, 6)))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FileHeader =
        FileHeader { salt: 0x1122_3344_5566_7788, number: 3, first: Lsn(0x1000), durable: Lsn(0x0fff) };

    #[test]
    fn file_header_bytes_are_those_of_the_format_document() {
        let bytes = HEADER.encode();
        assert_eq!(&bytes[0..8], b"betreLOG");
        assert_eq!(bytes[8..16], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[24..32], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..40], [0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..48], [0xff, 0x0f, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..60], [0; 12]);
        assert_eq!(FileHeader::decode(&bytes), Ok(HEADER));
    }

    #[test]
    fn every_flipped_bit_of_a_file_header_is_found() {
        for bit in 0..FILE_HEADER * 8 {
            let mut bytes = HEADER.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(FileHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_told_from_damage_and_reserved_bytes_must_be_zero() {
        let mut bytes = HEADER.encode();
        bytes[8] = 9;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(FileHeader::decode(&bytes), Err(BadHeader::Version(9)));
        let mut bytes = HEADER.encode();
        bytes[50] = 1;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(FileHeader::decode(&bytes), Err(BadHeader::Damaged("reserved bytes", 0, _))));
    }

    const AT: Lsn = Lsn(0x0009_0007_0203_0102);

    fn frame_of(header: FrameHeader, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; header.frame_len()];
        let at = header.encode(&mut frame);
        frame[at..].copy_from_slice(payload);
        let mut hasher =
            crc32fast::Hasher::new_with_initial(crc32fast::hash(&7u64.to_le_bytes()) ^ 0x0007_0203 ^ 9);
        hasher.update(&frame[4..]);
        let crc = hasher.finalize();
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        frame
    }

    fn good(bytes: &[u8]) -> Result<FrameHeader, BadFrame> {
        let header = FrameHeader::decode(bytes, AT, bytes.len() as u64)?;
        check_frame(FrameSalt::new(7), AT, &bytes[..header.frame_len()])?;
        Ok(header)
    }

    fn assert_every_change_is_found(frame: &[u8]) {
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(good(&bad).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(good(&frame[..len]).is_err(), "cut to {len}");
        }
        assert!(check_frame(FrameSalt::new(8), AT, frame).is_err(), "another database's frame");
        assert!(FrameHeader::decode(frame, Lsn(AT.0 + 1), frame.len() as u64).is_err(), "a byte further on");
    }

    #[test]
    fn short_frame_bytes_are_those_of_the_format_document_and_every_change_is_found() {
        let header = FrameHeader { lsn: AT, short: true, kind: Kind::Full, mark: None, len: 3 };
        let frame = frame_of(header, b"abc");
        assert_eq!(frame[4..8], [7, 0, 2, 1]);
        assert_eq!(frame.len(), 11);
        assert_eq!(good(&frame), Ok(header));
        assert_every_change_is_found(&frame);
        for elsewhere in [AT.0 + (1 << 16), AT.0 - (1 << 16), AT.0 + (1 << 47), AT.0 + (1 << 48)].map(Lsn) {
            let decoded = FrameHeader::decode(&frame, elsewhere, frame.len() as u64);
            assert!(decoded.is_ok(), "the low bits are the same");
            assert!(check_frame(FrameSalt::new(7), elsewhere, &frame).is_err(), "{elsewhere:?}");
        }
        let longest = FrameHeader { len: MAX_SHORT_PAYLOAD, ..header };
        assert_eq!(good(&frame_of(longest, &[5; MAX_SHORT_PAYLOAD])), Ok(longest));
        assert_eq!(good(&[0; 40]), Err(BadFrame::Blank));
        assert_eq!(lsn_said(&frame), None);
    }

    #[test]
    fn long_frame_bytes_are_those_of_the_format_document_and_every_change_is_found() {
        let mark = Some(Lsn(0x0100));
        let header = FrameHeader { lsn: AT, short: false, kind: Kind::First, mark, len: 3 };
        let frame = frame_of(header, b"abc");
        assert_eq!(frame[4..8], [0b10100, 0, 2, 1]);
        assert_eq!(frame[8..16], [3, 2, 7, 0, 3, 0, 0, 0]);
        assert_eq!(frame[16..24], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(frame.len(), 27);
        assert_eq!(good(&frame), Ok(header));
        assert_every_change_is_found(&frame);
        let elsewhere = Lsn(AT.0 + (1 << 48));
        assert!(FrameHeader::decode(&frame, elsewhere, frame.len() as u64).is_ok());
        assert!(check_frame(FrameSalt::new(7), elsewhere, &frame).is_err(), "256 TiB further on");
        assert_eq!(lsn_said(&frame), Some(0x0007_0203_0102));
        for kind in [Kind::Full, Kind::Middle, Kind::Last] {
            let header = FrameHeader { kind, mark: None, ..header };
            assert_eq!(good(&frame_of(header, b"abc")), Ok(header));
        }
    }
}
