//! The log as `docs/format.md` describes it, read a second time and as simply as can be: what must come of a damaged log.
//!
//! Shares no code with the engine's reader. Whole files in memory, no chains of readers, every byte offset tried when frames are searched.
//! Called by the judge of corruption runs, which compares the engine's answer with this one's.

use std::collections::BTreeMap;

/// Bytes of a file's header.
const HEADER: usize = 64;
/// Bytes of a short frame's header, and of a long one's without a mark.
const SHORT: usize = 8;
const LONG: usize = 16;

/// What an open must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// So many whole records are replayed.
    Records(usize),
    /// It is refused, for this reason.
    Refused(&'static str),
}

/// What the checkpoint knows of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub salt: u64,
    /// Where replay begins.
    pub from: u64,
    /// Below here everything was durable when the checkpoint was taken; a log must be there at all.
    pub durable: u64,
}

/// A valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Offset in the file.
    pub at: usize,
    /// Bytes of it.
    pub len: usize,
    pub lsn: u64,
    /// Bytes before its payload.
    pub head: usize,
    pub kind: u16,
    pub mark: Option<u64>,
}

impl Frame {
    /// Where its payload begins.
    pub(crate) fn payload(&self) -> usize {
        self.at + self.head
    }
}

/// A valid file header: the first Lsn and a durable one.
#[derive(Debug, Clone, Copy)]
struct Header {
    first: u64,
    durable: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The number of a log file, by its name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let digits =
        name.strip_prefix("log-").filter(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

fn header(bytes: &[u8], number: u64, salt: u64) -> Result<Option<Header>, &'static str> {
    if bytes.len() < HEADER
        || bytes[..8] != *b"betreLOG"
        || crc32fast::hash(&bytes[..60]) != u32_at(bytes, 60)
    {
        return Ok(None);
    }
    if u32_at(bytes, 8) != 3 {
        return Err("version");
    }
    let reserved = bytes[12..16].iter().chain(&bytes[48..60]).any(|b| *b != 0);
    let header = Header { first: u64_at(bytes, 32), durable: u64_at(bytes, 40) };
    if reserved || header.first > 1 << 62 || u64_at(bytes, 24) != number {
        return Ok(None);
    }
    if u64_at(bytes, 16) != salt { Err("another database") } else { Ok(Some(header)) }
}

/// The frame at an offset, if it is valid for this Lsn.
fn frame(bytes: &[u8], at: usize, lsn: u64, salt: u64) -> Option<Frame> {
    let rest = bytes.get(at..)?;
    let word = u16_at(rest.get(..SHORT)?, 4);
    if u64::from(u16_at(rest, 6)) != lsn & 0xffff {
        return None;
    }
    let (mut head, mut kind, mut mark, mut payload) = (SHORT, 1, None, usize::from(word >> 1));
    if word & 1 == 0 {
        kind = word >> 1 & 7;
        if u64::from(u32_at(rest.get(..LONG)?, 8)) != lsn >> 16 & 0xffff_ffff {
            return None;
        }
        if !(1..=4).contains(&kind) || word >> 5 != 0 {
            return None;
        }
        head = LONG;
        payload = u32_at(rest, 12) as usize;
        if payload >= 1 << 28 {
            return None;
        }
        if word >> 4 & 1 == 1 {
            head += 8;
            mark = Some(u64_at(rest.get(..head)?, LONG));
        }
    }
    let len = head + payload;
    let whole = bytes.get(at..at + len)?;
    let sound = checksum(salt, lsn, &whole[4..]) == u32_at(whole, 0) && mark.is_none_or(|mark| mark <= lsn);
    sound.then_some(Frame { at, len, lsn, head, kind, mark })
}

/// The checksum of a frame at an Lsn, of which `bytes` is all but the checksum's own four.
pub(crate) fn checksum(salt: u64, lsn: u64, bytes: &[u8]) -> u32 {
    let initial = crc32fast::hash(&salt.to_le_bytes()) ^ (lsn >> 16) as u32 ^ (lsn >> 48) as u32;
    let mut hasher = crc32fast::Hasher::new_with_initial(initial);
    hasher.update(bytes);
    hasher.finalize()
}

/// Valid frames from an offset on, wherever they begin; the offset `HEADER` has the Lsn `first`.
pub(crate) fn search(bytes: &[u8], first: u64, from: usize, salt: u64) -> Vec<Frame> {
    let mut found = Vec::new();
    let mut at = from;
    while at + SHORT <= bytes.len() {
        match frame(bytes, at, first.wrapping_add((at - HEADER) as u64), salt) {
            Some(hit) => {
                at += hit.len;
                found.push(hit);
            }
            None => at += 1,
        }
    }
    found
}

/// The first Lsn of a log file, if its header is valid.
pub(crate) fn first_of(name: &str, bytes: &[u8], salt: u64) -> Option<u64> {
    header(bytes, number_of(name)?, salt).ok().flatten().map(|header| header.first)
}

/// The payloads of whole records, in order.
pub(crate) type Records = Vec<Vec<u8>>;

/// What an open of these files must come to, and the records that it replays.
pub(crate) fn replay(files: &BTreeMap<String, Vec<u8>>, start: Start) -> (Verdict, Records) {
    let Start { salt, from, durable } = start;
    let refused = |why| (Verdict::Refused(why), Vec::new());
    let mut logs = Vec::new();
    for (name, bytes) in files {
        let Some(number) = number_of(name) else { continue };
        match header(bytes, number, salt) {
            Ok(header) => logs.push((number, bytes, header)),
            Err(why) => return refused(why),
        }
    }
    let Some(begin) = logs.iter().rposition(|log| log.2.is_some_and(|header| header.first <= from)) else {
        return refused("no file covers the beginning");
    };
    let mut index = begin;
    let mut lsn = from;
    let mut at = HEADER + (from - logs[index].2.map_or(0, |header| header.first)) as usize;
    let mut records = Vec::new();
    let mut pending: Option<(u64, Vec<u8>)> = None;
    loop {
        let (number, bytes, _) = &logs[index];
        let next = frame(bytes, at, lsn, salt).filter(|f| matches!(f.kind, 1 | 2) == pending.is_none());
        if let Some(frame) = next {
            let payload = &bytes[frame.payload()..frame.at + frame.len];
            match (frame.kind, &mut pending) {
                (1, _) => records.push(payload.to_vec()),
                (2, _) => pending = Some((frame.lsn, payload.to_vec())),
                (_, Some((_, record))) => record.extend_from_slice(payload),
                _ => {}
            }
            if frame.kind == 4 {
                records.extend(pending.take().map(|(_, record)| record));
            }
            (at, lsn) = (at + frame.len, lsn + frame.len as u64);
            continue;
        }
        let continues = logs
            .get(index + 1)
            .is_some_and(|next| next.0 == number + 1 && next.2.is_some_and(|header| header.first == lsn));
        if !continues {
            break;
        }
        (index, at) = (index + 1, HEADER);
    }
    let end = pending.map_or(lsn, |(lsn, _)| lsn);
    let marks = |bytes: &[u8], first, from| {
        search(bytes, first, from, salt).iter().filter_map(|frame| frame.mark).max().unwrap_or(0)
    };
    let mut known =
        logs.iter().filter_map(|log| log.2).map(|header| header.durable).max().unwrap_or(0).max(durable);
    let first = logs[index].2.map_or(0, |header| header.first);
    known = known.max(marks(logs[index].1, first, at));
    // A file without header right behind began where the frames of the one before end.
    let reached = if index == begin { end_of(logs[index].1, first, salt) } else { lsn };
    for (i, (_, bytes, header)) in logs.iter().enumerate().skip(index + 1) {
        match header {
            Some(header) => known = known.max(marks(bytes, header.first, HEADER)),
            None if i == index + 1 => known = known.max(marks(bytes, reached, HEADER)),
            None => {}
        }
    }
    if end < known {
        return refused("durable records are damaged or missing");
    }
    (Verdict::Records(records.len()), records)
}

/// The Lsn behind the frames that begin with the file.
fn end_of(bytes: &[u8], first: u64, salt: u64) -> u64 {
    let (mut at, mut lsn) = (HEADER, first);
    while let Some(frame) = frame(bytes, at, lsn, salt) {
        (at, lsn) = (at + frame.len, lsn + frame.len as u64);
    }
    lsn
}
