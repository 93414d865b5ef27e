//! Reading a log that may be damaged, without changing it: for the checker and for salvage.
//!
//! Where [`crate::Wal::open`] refuses, [`examine`] says what is wrong and goes on behind it with all frames that verify. It
//! tells a torn tail from damage by the same rule (`log.mark_below_durable`): below the greatest mark nothing may be missing.
//! Holds no locks; nobody may append meanwhile.

use std::collections::HashMap;

use betree_storage::{Caching, OpenMode, Storage};

use crate::blank::{file_name, file_number};
use crate::error::Result;
use crate::format::{
    BadFrame, BadHeader, FILE_HEADER, FileHeader, FrameHeader, Kind, LONG_HEADER, SHORT_HEADER, lsn_said,
};
use crate::reader::{Found, Reader};
use crate::{Lsn, MAX_RECORD};

/// What [`examine`] met, in the order of the log.
#[derive(Debug)]
pub enum Finding<'a> {
    /// A whole record that verifies.
    Record {
        /// Where it begins.
        lsn: Lsn,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// Something that was durable is not there any more. Records behind it follow.
    Damage {
        /// The log file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// Bytes without a valid frame, as far as it can be told.
        len: u64,
        /// Where in the log.
        lsn: Lsn,
        /// What is wrong.
        what: String,
    },
    /// The log ends here, in the middle of what was being written when the machine or the process stopped. No damage.
    Torn {
        /// The log file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// Where in the log.
        lsn: Lsn,
        /// Valid frames behind, which prove nothing.
        frames: u64,
    },
}

/// What [`examine`] read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Examined {
    /// Log files that could be read.
    pub files: u64,
    /// Valid frames.
    pub frames: u64,
    /// Whole records.
    pub records: u64,
    /// Where the log ends.
    pub end: Lsn,
}

/// Reads the log in `storage` from `from` on and tells `visit` what is there. `salt`: of the database; without it, the one
/// that most file headers carry. `known`: everything below was durable, as the caller knows from elsewhere; a log that ends before is damaged.
///
/// # Errors
/// The directory cannot be listed. Whatever else goes wrong is a [`Finding::Damage`].
pub fn examine(
    storage: &dyn Storage,
    salt: Option<u64>,
    from: Lsn,
    known: Lsn,
    visit: &mut dyn FnMut(Finding<'_>),
) -> Result<Examined> {
    let mut found = Vec::new();
    for name in storage.list()? {
        let Some(number) = file_number(&name) else { continue };
        let opened = storage
            .open(&name, OpenMode::Existing, Caching::Buffered)
            .and_then(|file| file.len().map(|len| (file, len)));
        match opened {
            Ok((file, len)) => {
                let header = Err(("file header", 0, 0));
                found.push(Found { number, name: file_name(number), file, len, header });
            }
            Err(error) => visit(damage(&name, 0, 0, Lsn(0), error.to_string())),
        }
    }
    found.sort_by_key(|found| found.number);
    let headers: Vec<_> = found.iter().map(read_header).collect();
    let salt = salt.or_else(|| most_frequent(&headers));
    let mut log = Log { files: Vec::new(), salt: salt.unwrap_or_default(), known, seen: Examined::default() };
    for (found, header) in found.into_iter().zip(headers) {
        log.admit(found, header, visit);
    }
    log.seen.files = log.files.len() as u64;
    log.read(from, visit);
    Ok(log.seen)
}

fn damage(file: &str, offset: u64, len: u64, lsn: Lsn, what: String) -> Finding<'static> {
    Finding::Damage { file: file.to_owned(), offset, len, lsn, what }
}

type Header = std::result::Result<FileHeader, String>;

/// `None`: the file has no header yet.
fn read_header(found: &Found) -> Option<Header> {
    let mut bytes = [0; FILE_HEADER];
    if found.len < FILE_HEADER as u64 {
        return None;
    }
    if let Err(error) = found.file.read_at(0, &mut bytes) {
        return Some(Err(error.to_string()));
    }
    if bytes == [0; FILE_HEADER] {
        return None;
    }
    match FileHeader::decode(&bytes) {
        // What a recycled file held before.
        Ok(header) if header.number != found.number => None,
        Ok(header) => Some(Ok(header)),
        Err(BadHeader::Version(version)) => Some(Err(format!("log format version {version}"))),
        Err(BadHeader::Damaged(field, expected, got)) => {
            Some(Err(format!("file header: {field}: expected {expected:#x}, got {got:#x}")))
        }
    }
}

fn most_frequent(headers: &[Option<Header>]) -> Option<u64> {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    for header in headers.iter().flatten().flatten() {
        *counts.entry(header.salt).or_default() += 1;
    }
    counts.into_iter().max_by_key(|&(_, count)| count).map(|(salt, _)| salt)
}

/// A file whose place in the log is known.
struct Placed {
    found: Found,
    first: Lsn,
    durable: Lsn,
    /// What is wrong with its header, when its place follows from its first frame alone.
    headless: Option<String>,
}

struct Log {
    files: Vec<Placed>,
    salt: u64,
    known: Lsn,
    seen: Examined,
}

/// A position in one of the files.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    offset: u64,
    lsn: Lsn,
}

/// What stands at a position.
enum Step {
    Frame(FrameHeader),
    Bad(String, bool),
}

impl Log {
    fn admit(&mut self, found: Found, header: Option<Header>, visit: &mut dyn FnMut(Finding<'_>)) {
        let (first, durable, headless) = match header {
            Some(Ok(header)) if header.salt != self.salt => {
                let what = format!("it belongs to another database: salt {:#x}", header.salt);
                return visit(damage(&found.name, 0, FILE_HEADER as u64, Lsn(0), what));
            }
            Some(Ok(header)) => (header.first, header.durable, None),
            Some(Err(what)) => match self.first_by_frame(&found) {
                Some(first) => (first, Lsn(0), Some(what)),
                None => return,
            },
            None => match self.first_by_frame(&found) {
                // A file without header whose frames go on where the one before began was in use.
                Some(first) if self.files.last().is_some_and(|last| first > last.first) => {
                    (first, Lsn(0), Some("file header: zeros, or of another file".to_owned()))
                }
                _ => return,
            },
        };
        self.files.push(Placed { found, first, durable, headless });
    }

    /// Where a file without header begins, if there is a valid frame at its beginning.
    fn first_by_frame(&self, found: &Found) -> Option<Lsn> {
        let mut reader = Reader::new(found, self.salt);
        let low = lsn_said(reader.bytes(FILE_HEADER as u64, LONG_HEADER as u64).ok()?)?;
        // The first frame of a file carries 48 bits of its Lsn; the others are those of the file before, the next ones, or none.
        let high = self.files.last().map_or(0, |last| last.first.0 >> 48);
        let candidates = [high, high + 1, 0].map(|high| Lsn(high << 48 | low));
        candidates
            .into_iter()
            .filter(|first| first.0 > 0 || self.files.is_empty())
            .find(|first| reader.frame(FILE_HEADER as u64, *first).is_ok_and(|frame| frame.is_ok()))
    }

    fn reader(&self, index: usize) -> Reader {
        Reader::new(&self.files[index].found, self.salt)
    }

    fn read(&mut self, from: Lsn, visit: &mut dyn FnMut(Finding<'_>)) {
        self.seen.end = from;
        let Some(first) = self.files.first() else {
            if from.max(self.known) > Lsn(0) {
                visit(damage(&file_name(1), 0, 0, from, "the log is missing".to_owned()));
            }
            return;
        };
        let mut place = match self.files.iter().rposition(|file| file.first <= from) {
            Some(index) => {
                let offset = (from.0 - self.files[index].first.0).saturating_add(FILE_HEADER as u64);
                Place { index, offset, lsn: from }
            }
            None => {
                let what =
                    format!("log.start_covered: no file has the log from {} to {}", from.0, first.first.0);
                let missing = file_name(first.found.number.saturating_sub(1));
                visit(damage(&missing, 0, first.first.0 - from.0, from, what));
                Place { index: 0, offset: FILE_HEADER as u64, lsn: first.first }
            }
        };
        let mut durable = None;
        let mut reader = self.reader(place.index);
        if let Some(what) = self.files[place.index].headless.clone()
            && self.durable_behind(place) > place.lsn
        {
            visit(damage(&self.files[place.index].found.name, 0, FILE_HEADER as u64, place.lsn, what));
        }
        let mut chain: Option<(Place, Vec<u8>)> = None;
        loop {
            let mut stray = false;
            let (what, cut) = match step(&mut reader, place) {
                Step::Frame(header) => {
                    let fits = self.take(place, &header, &mut reader, &mut chain, visit);
                    if fits {
                        place.offset += header.frame_len() as u64;
                        place.lsn.0 += header.frame_len() as u64;
                        continue;
                    }
                    stray = true;
                    ("a record begins where a part of another was to follow".to_owned(), true)
                }
                Step::Bad(what, cut) => (what, cut),
            };
            if let Some(next) = self.continued(place).filter(|_| !stray) {
                (place, reader) = (next, self.reader(next.index));
                continue;
            }
            let end = chain.take().map_or(place, |(start, _)| start);
            self.seen.end = end.lsn;
            let durable = *durable.get_or_insert_with(|| self.durable_behind(place));
            let next = if stray { Some(place) } else { self.behind(place, &mut reader) };
            let name = &self.files[place.index].found.name;
            if durable <= end.lsn {
                let frames = self.frames_behind(place);
                if frames > 0 || cut || end.offset != place.offset || end.index != place.index {
                    let (file, offset) = (self.files[end.index].found.name.clone(), end.offset);
                    visit(Finding::Torn { file, offset, lsn: end.lsn, frames });
                }
                return;
            }
            let here = next.filter(|next| next.index == place.index);
            let len = here.map_or(self.files[place.index].found.len, |next| next.offset);
            visit(damage(name, place.offset, len.saturating_sub(place.offset), place.lsn, what));
            let Some(next) = next else { return };
            if next.index != place.index {
                self.report_gap(place, next, visit);
                reader = self.reader(next.index);
            }
            place = next;
        }
    }

    /// Says why the log does not go on in the next file.
    fn report_gap(&self, place: Place, next: Place, visit: &mut dyn FnMut(Finding<'_>)) {
        let (before, file) = (&self.files[place.index].found, &self.files[next.index]);
        if let Some(what) = &file.headless {
            visit(damage(&file.found.name, 0, FILE_HEADER as u64, next.lsn, what.clone()));
        }
        for missing in (before.number + 1..file.found.number).take(16) {
            let what =
                "log.files_contiguous: the file is missing or has neither header nor frames".to_owned();
            visit(damage(&file_name(missing), 0, 0, place.lsn, what));
        }
    }

    /// Takes a valid frame; false if it is a part of a record that the parts before do not go with.
    fn take(
        &mut self,
        place: Place,
        header: &FrameHeader,
        reader: &mut Reader,
        chain: &mut Option<(Place, Vec<u8>)>,
        visit: &mut dyn FnMut(Finding<'_>),
    ) -> bool {
        let begins = matches!(header.kind, Kind::Full | Kind::First);
        if begins && chain.is_some() {
            return false;
        }
        self.seen.frames += 1;
        let Ok(payload) = reader.payload(place.offset, header) else { return true };
        let whole = match (header.kind, chain.as_mut()) {
            (Kind::Full, _) => Some((place.lsn, payload)),
            (Kind::First, _) => {
                *chain = Some((place, payload.to_vec()));
                None
            }
            // Its beginning was lost, and that was reported.
            (_, None) => None,
            (kind, Some((start, collected))) => {
                if collected.len() as u64 + header.len as u64 > MAX_RECORD {
                    *chain = None;
                    return true;
                }
                collected.extend_from_slice(payload);
                (kind == Kind::Last).then_some((start.lsn, &collected[..]))
            }
        };
        if let Some((lsn, payload)) = whole {
            self.seen.records += 1;
            visit(Finding::Record { lsn, payload });
            *chain = None;
        }
        true
    }

    /// Where the next file goes on, if it begins exactly at `place`.
    fn continued(&self, place: Place) -> Option<Place> {
        let (here, next) = (&self.files[place.index], self.files.get(place.index + 1)?);
        let fits =
            next.first == place.lsn && next.headless.is_none() && next.found.number == here.found.number + 1;
        fits.then_some(Place { index: place.index + 1, offset: FILE_HEADER as u64, lsn: place.lsn })
    }

    /// The first valid frame behind `place`, or the beginning of the next file.
    fn behind(&self, place: Place, reader: &mut Reader) -> Option<Place> {
        let first = self.files[place.index].first;
        if let Ok(Some((offset, header))) = reader.next_frame(first, place.offset + 1) {
            return Some(Place { index: place.index, offset, lsn: header.lsn });
        }
        let later = self.files.iter().enumerate().skip(place.index + 1);
        let (index, file) = later.into_iter().find(|(_, file)| file.first >= place.lsn)?;
        Some(Place { index, offset: FILE_HEADER as u64, lsn: file.first })
    }

    /// An Lsn below which everything was durable, by what is valid behind `place`, by all file headers, and by what is known.
    fn durable_behind(&self, place: Place) -> Lsn {
        let mut durable = self.files.iter().map(|file| file.durable).fold(self.known, Lsn::max);
        for index in place.index..self.files.len() {
            let offset = if index == place.index { place.offset } else { FILE_HEADER as u64 };
            let rest = self.reader(index).search(self.files[index].first, offset).unwrap_or_default();
            durable = durable.max(rest.mark);
        }
        durable
    }

    fn frames_behind(&self, place: Place) -> u64 {
        let frames = |index| {
            let offset = if index == place.index { place.offset } else { FILE_HEADER as u64 };
            self.reader(index).search(self.files[index].first, offset).unwrap_or_default().frames
        };
        (place.index..self.files.len()).map(frames).sum()
    }
}

/// What stands at `place`, and if it is no frame, whether anything but zeros or the file's end does.
fn step(reader: &mut Reader, place: Place) -> Step {
    match reader.frame(place.offset, place.lsn) {
        Ok(Ok(header)) => Step::Frame(header),
        Ok(Err(bad)) => match bad {
            BadFrame::Blank => Step::Bad("zeros instead of a frame".to_owned(), false),
            BadFrame::Cut(need, there) => Step::Bad(
                format!("the file ends: {need} bytes needed, {there} there"),
                there > SHORT_HEADER as u64,
            ),
            BadFrame::Field(field, expected, got) => {
                Step::Bad(format!("frame: {field}: expected {expected:#x}, got {got:#x}"), true)
            }
            BadFrame::Checksum(computed, stored) => {
                Step::Bad(format!("frame checksum: expected {computed:#010x}, got {stored:#010x}"), true)
            }
        },
        Err(error) => Step::Bad(error.to_string(), true),
    }
}
