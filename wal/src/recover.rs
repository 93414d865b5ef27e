//! Opening a log: replay, the decision between torn tail and corruption, the cut. The rules are argued in `lib.rs`.
//!
//! Called once by [`crate::Wal::open`] or [`crate::Wal::create`], alone in the directory. Reads first and changes files only
//! when the replay has succeeded.

use std::collections::VecDeque;
use std::sync::Arc;

use betree_storage::{File, Storage};

use crate::append::Appender;
use crate::blank::{Content, file_name, make_blank};
use crate::error::{Error, Result};
use crate::files::{Blank, LiveFile, Shared, Spare};
use crate::format::{BadFrame, FILE_HEADER, FileHeader, FrameHeader, Kind};
use crate::reader::{Found, Reader, survey};
use crate::{Lsn, MAX_RECORD, Options, ReplayResult, Wal};

/// What an open found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Replayed {
    /// Records handed to the callback.
    pub records: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Where the log ends: the next record's position.
    pub end: Lsn,
    /// Bytes behind the end that were no whole records and were cut off: zero after a clean shutdown.
    pub torn_bytes: u64,
}

/// A position in one of the files found.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: usize,
    offset: u64,
    lsn: Lsn,
}

/// The record whose fragments are being collected.
struct Chain {
    start: Place,
    payload: Vec<u8>,
}

pub(crate) fn open(
    storage: Arc<dyn Storage>,
    options: Options,
    from: Lsn,
    known: Option<Lsn>,
    replay: &mut dyn FnMut(Lsn, &[u8]) -> ReplayResult,
) -> Result<(Wal, Appender, Replayed)> {
    let found = survey(&*storage, Some(options.salt))?;
    let covers = |found: &Found| matches!(&found.header, Ok(header) if header.first <= from);
    let Some(start) = found.iter().rposition(covers) else {
        none_covers(&found, from, known, options.salt)?;
        let (wal, appender) = begin(storage, options, from, &found, 0)?;
        return Ok((wal, appender, Replayed { end: from, ..Replayed::default() }));
    };
    let mut scan = Scan {
        found: &found,
        start,
        known: known.unwrap_or_default(),
        salt: options.salt,
        replayed: Replayed::default(),
    };
    let (tail, reader) = scan.replay(from, replay)?;
    let mut replayed = scan.replayed;
    replayed.end = tail.lsn;
    storage.reached("log-replayed");
    let (wal, appender) = match reader {
        Some(mut reader) => {
            replayed.torn_bytes = cut(&*storage, &found, tail, &mut reader)?;
            storage.reached("log-tail-cut");
            resume(storage, options, &found, start, tail)?
        }
        // The position lies behind the end of its file: the files there are all below it.
        None => begin(storage, options, from, &found, start + 1)?,
    };
    Ok((wal, appender, replayed))
}

pub(crate) fn create(storage: Arc<dyn Storage>, options: Options, at: Lsn) -> Result<(Wal, Appender)> {
    let found = survey(&*storage, Some(options.salt))?;
    if let Some(there) = found.iter().find(|found| found.header.is_ok()) {
        return Err(Error::Exists { file: there.name.clone() });
    }
    begin(storage, options, at, &found, 0)
}

/// No file's header covers `from`. Fine where the first creation of a log was interrupted; else, and where the caller knows of
/// a log, an error.
fn none_covers(found: &[Found], from: Lsn, known: Option<Lsn>, salt: u64) -> Result<()> {
    if let Some(later) = found.iter().find(|found| found.header.is_ok()) {
        return Err(Error::Missing { file: file_name(later.number.saturating_sub(1)), lsn: from });
    }
    // The header of a log's first file is durable before its first frame is written.
    for candidate in found {
        if Reader::new(candidate, salt).search(from, FILE_HEADER as u64)?.frames > 0 {
            return Err(bad_header(candidate, from));
        }
    }
    if from == Lsn(0) && known.is_none() {
        Ok(())
    } else {
        Err(Error::Missing { file: file_name(1), lsn: from })
    }
}

fn bad_header(found: &Found, lsn: Lsn) -> Error {
    let (what, expected, got) = match found.header {
        Err(bad) => bad,
        Ok(header) => ("first lsn of the file", lsn.0, header.first.0),
    };
    Error::Corrupt {
        file: found.name.clone(),
        offset: 0,
        lsn,
        what,
        expected: format!("{expected:#x}"),
        got: format!("{got:#x}"),
    }
}

struct Scan<'a> {
    found: &'a [Found],
    start: usize,
    /// Everything below was durable, as the caller knows from elsewhere.
    known: Lsn,
    salt: u64,
    replayed: Replayed,
}

impl Scan<'_> {
    /// Replays from `from` and returns where the log ends, with a reader of that file; without one when that file does not
    /// reach to there.
    fn replay(
        &mut self,
        from: Lsn,
        replay: &mut dyn FnMut(Lsn, &[u8]) -> ReplayResult,
    ) -> Result<(Place, Option<Reader>)> {
        let first = self.first(self.start);
        let offset = (from.0 - first.0).saturating_add(FILE_HEADER as u64);
        let mut place = Place { index: self.start, offset, lsn: from };
        let mut reader = Reader::new(&self.found[place.index], self.salt);
        let mut chain: Option<Chain> = None;
        let bad = loop {
            let bad = match reader.frame(place.offset, place.lsn)? {
                Ok(header) => match self.take(place, &header, &mut reader, &mut chain, replay)? {
                    None => {
                        place.offset += header.frame_len() as u64;
                        place.lsn.0 += header.frame_len() as u64;
                        continue;
                    }
                    Some(bad) => bad,
                },
                Err(bad) => bad,
            };
            let Some(next) = self.next_file(place) else { break bad };
            drop_cached(&self.found[place.index]);
            place = next;
            reader = Reader::new(&self.found[place.index], self.salt);
        };
        let end = chain.map_or(place, |chain| chain.start);
        self.require_torn(end, place, bad, &mut reader)?;
        drop_cached(&self.found[place.index]);
        if end.index != place.index {
            reader = Reader::new(&self.found[end.index], self.salt);
        }
        let reaches = end.offset <= reader.len();
        Ok((end, reaches.then_some(reader)))
    }

    /// Takes one valid frame: hands a whole record to the callback, collects fragments. Returns what is wrong when the
    /// frame cannot follow the one before.
    fn take(
        &mut self,
        place: Place,
        header: &FrameHeader,
        reader: &mut Reader,
        chain: &mut Option<Chain>,
        replay: &mut dyn FnMut(Lsn, &[u8]) -> ReplayResult,
    ) -> Result<Option<BadFrame>> {
        let begins = matches!(header.kind, Kind::Full | Kind::First);
        let Some(collected) = chain.as_mut() else {
            if !begins {
                return Ok(Some(BadFrame::Field("kind", Kind::Full as u64, header.kind as u64)));
            }
            let payload = reader.payload(place.offset, header)?;
            if header.kind == Kind::First {
                *chain = Some(Chain { start: place, payload: payload.to_vec() });
            } else {
                self.deliver(place.lsn, payload, replay)?;
            }
            return Ok(None);
        };
        if begins {
            return Ok(Some(BadFrame::Field("kind", Kind::Middle as u64, header.kind as u64)));
        }
        let len = collected.payload.len() as u64 + header.len as u64;
        if len > MAX_RECORD {
            return Ok(Some(BadFrame::Field("record length", MAX_RECORD, len)));
        }
        collected.payload.extend_from_slice(reader.payload(place.offset, header)?);
        if header.kind == Kind::Last
            && let Some(whole) = chain.take()
        {
            self.deliver(whole.start.lsn, &whole.payload, replay)?;
        }
        Ok(None)
    }

    fn deliver(
        &mut self,
        lsn: Lsn,
        payload: &[u8],
        replay: &mut dyn FnMut(Lsn, &[u8]) -> ReplayResult,
    ) -> Result<()> {
        replay(lsn, payload).map_err(|source| Error::Replay { lsn, source })?;
        self.replayed.records += 1;
        self.replayed.bytes += payload.len() as u64;
        Ok(())
    }

    fn first(&self, index: usize) -> Lsn {
        self.found[index].header.map(|header| header.first).unwrap_or_default()
    }

    /// The beginning of the next file, if it continues the log at `place`.
    fn next_file(&self, place: Place) -> Option<Place> {
        let index = place.index + 1;
        let next = self.contiguous(place.index)?;
        let header = next.header.ok()?;
        (header.first == place.lsn).then_some(Place { index, offset: FILE_HEADER as u64, lsn: place.lsn })
    }

    /// The file with the next number, if there is one.
    fn contiguous(&self, index: usize) -> Option<&Found> {
        let next = self.found.get(index + 1)?;
        (next.number == self.found[index].number + 1).then_some(next)
    }

    /// The log ends at `end` because of `bad` at `stop`: fails if the caller, or a mark anywhere behind, says that more was durable.
    fn require_torn(&self, end: Place, stop: Place, bad: BadFrame, reader: &mut Reader) -> Result<()> {
        let headers = self.found.iter().filter_map(|found| found.header.ok());
        let mut durable = headers.map(|header| header.durable).max().unwrap_or_default().max(self.known);
        durable = durable.max(reader.search(self.first(stop.index), stop.offset)?.mark);
        let mut headless = None;
        for (index, later) in self.found.iter().enumerate().skip(stop.index + 1) {
            let mut reader = Reader::new(later, self.salt);
            if let Ok(header) = later.header {
                durable = durable.max(reader.search(header.first, FILE_HEADER as u64)?.mark);
            } else if index == stop.index + 1 {
                // Its frames can be recognised when it began where the file before it ends.
                let first = self.end_of(stop)?;
                let rest = reader.search(first, FILE_HEADER as u64)?;
                durable = durable.max(rest.mark);
                headless = (rest.frames > 0).then_some((later, first));
            }
            drop_cached(later);
        }
        if durable <= end.lsn {
            return Ok(());
        }
        let ended = !matches!(bad, BadFrame::Checksum(..));
        let next = self.contiguous(stop.index);
        Err(match (ended, next, headless) {
            (true, _, Some((headless, first))) => bad_header(headless, first),
            (true, None, _) if stop.index + 1 < self.found.len() => {
                Error::Missing { file: file_name(self.found[stop.index].number + 1), lsn: stop.lsn }
            }
            _ => bad_frame(&self.found[stop.index], stop, bad),
        })
    }

    /// Where the frames of the file at `stop` end. Its position may lie behind, when `from` was in a later file.
    fn end_of(&self, stop: Place) -> Result<Lsn> {
        if stop.index != self.start {
            return Ok(stop.lsn);
        }
        let (_, end) = Reader::new(&self.found[stop.index], self.salt).walk(self.first(stop.index))?;
        Ok(end)
    }
}

fn bad_frame(found: &Found, place: Place, bad: BadFrame) -> Error {
    let (what, expected, got) = match bad {
        BadFrame::Blank => ("frame", "a frame".to_owned(), "zeros".to_owned()),
        BadFrame::Cut(need, there) => ("length of the file", format!("{need} more bytes"), there.to_string()),
        BadFrame::Field(field, expected, got) => (field, format!("{expected:#x}"), format!("{got:#x}")),
        BadFrame::Checksum(computed, stored) => {
            ("frame checksum", format!("{computed:#010x}"), format!("{stored:#010x}"))
        }
    };
    Error::Corrupt { file: found.name.clone(), offset: place.offset, lsn: place.lsn, what, expected, got }
}

/// Pages read once at open are of no more use.
fn drop_cached(found: &Found) {
    found.file.drop_cache(0, found.len);
}

/// Makes `log.clean_tail` true for the file at `tail`, and removes the later ones. Returns how many bytes were cut off.
fn cut(storage: &dyn Storage, found: &[Found], tail: Place, reader: &mut Reader) -> Result<u64> {
    const BLOCK: u64 = 4096;
    let file = &found[tail.index].file;
    let mut torn = 0;
    let mut offset = tail.offset;
    while offset < reader.len() {
        // Blocks that are zero stay untouched: they are unwritten space, cheaper to read and to append to.
        let block_end = (offset / BLOCK + 1) * BLOCK;
        let block = reader.bytes(offset, block_end - offset)?;
        if let Some(last) = block.iter().rposition(|byte| *byte != 0) {
            torn = offset + last as u64 + 1 - tail.offset;
            file.write_at(offset, &vec![0; block.len()])?;
        }
        offset = block_end;
    }
    for later in &found[tail.index + 1..] {
        if later.header.is_ok() {
            torn += later.len - FILE_HEADER as u64;
        }
        storage.remove(&later.name)?;
    }
    Ok(torn)
}

/// Goes on at `tail`, in the file found there, after making everything replayed durable.
fn resume(
    storage: Arc<dyn Storage>,
    options: Options,
    found: &[Found],
    start: usize,
    tail: Place,
) -> Result<(Wal, Appender)> {
    let file = found[tail.index].file.clone();
    let len = found[tail.index].len.next_multiple_of(4096).max(options.file_bytes);
    // Whatever made it sparse or short: a window must lie over real space.
    file.allocate(0, len)?;
    for live in &found[start..=tail.index] {
        live.file.sync()?;
    }
    let spares = keep_spares(&*storage, &found[..start], &options)?;
    storage.sync_dir()?;
    let live = found[start..=tail.index].iter();
    let live = live
        .map(|found| {
            let first = found.header.map(|header| header.first).unwrap_or_default();
            LiveFile { number: found.number, first, file: found.file.clone() }
        })
        .collect();
    let blank = Blank { number: found[tail.index].number, file, len };
    finish(storage, options, tail.lsn, live, blank, tail.offset, spares)
}

/// Keeps files below the starting point for recycling and removes those too many.
fn keep_spares(storage: &dyn Storage, below: &[Found], options: &Options) -> Result<Vec<Spare>> {
    let keep = below.len().min(options.spare_files);
    for extra in &below[keep..] {
        storage.remove(&extra.name)?;
    }
    Ok(below[..keep].iter().map(|found| Spare { number: found.number, zeroed: false }).collect())
}

/// Begins an empty log at `at` in a new file. The first `below` files found are spares to choose from, the others are removed.
fn begin(
    storage: Arc<dyn Storage>,
    options: Options,
    at: Lsn,
    found: &[Found],
    below: usize,
) -> Result<(Wal, Appender)> {
    let number = found.last().map_or(1, |last| last.number + 1);
    let file: Arc<dyn File> = make_blank(&*storage, &file_name(number), Content::NoFile, options.file_bytes)?;
    let header = FileHeader { salt: options.salt, number, first: at, durable: at };
    file.write_at(0, &header.encode())?;
    file.sync()?;
    storage.sync_dir()?;
    // Only now: before, one of these may have been the only file that begins below `at` (`log.start_covered`).
    for later in &found[below..] {
        storage.remove(&later.name)?;
    }
    let spares = keep_spares(&*storage, &found[..below], &options)?;
    storage.sync_dir()?;
    let live = VecDeque::from([LiveFile { number, first: at, file: file.clone() }]);
    let blank = Blank { number, file, len: options.file_bytes };
    finish(storage, options, at, live, blank, FILE_HEADER as u64, spares)
}

fn finish(
    storage: Arc<dyn Storage>,
    options: Options,
    end: Lsn,
    live: VecDeque<LiveFile>,
    tail: Blank,
    offset: u64,
    spares: Vec<Spare>,
) -> Result<(Wal, Appender)> {
    let shared = Arc::new(Shared::new(storage, options, end, live, tail, offset, spares));
    let appender = Appender::new(shared.clone(), offset)?;
    match shared.ensure_reserve() {
        // Reading, and what needs no more space, goes on without.
        Err(error) if error.is_no_space() => {}
        made => made?,
    }
    Ok((Wal { shared }, appender))
}
