//! The appender: one record into the mapped window, no system call on the common path.
//!
//! Owned by the engine and called under its commit lock (`&mut self`). Takes the locks of `files` only when its window
//! is full. The order of an append is: bytes into the window, then `end` moves. A sync therefore covers whole
//! records, and a killed process leaves at most one half-copied record behind, which its checksum betrays.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use betree_storage::{File, Window};

use crate::error::{Error, Result};
use crate::files::{CHUNK, Claim, Left, Shared};
use crate::format::{
    FILE_HEADER, FileHeader, FrameHeader, FrameSalt, Kind, LONG_HEADER, MARK, MAX_SHORT_PAYLOAD, SHORT_HEADER,
};
use crate::{Lsn, MAX_RECORD};

/// Records up to this many bytes, headers included, are put together in a buffer that stays in the first-level cache,
/// checksummed in one pass and copied once. Measured for 140 bytes in two parts: 47–52 ns against 54–79 ns with a
/// checksum and a copy per part, because the checksum's wide loop needs 128 bytes in a row.
const SMALL: usize = 1024;
const _: () = assert!(SMALL - SHORT_HEADER <= MAX_SHORT_PAYLOAD);
/// A fragment is not begun in a file that has less room than this.
const MIN_ROOM: u64 = 128;

/// Appends records. There is one per log.
#[derive(Debug)]
pub struct Appender {
    shared: Arc<Shared>,
    salt: FrameSalt,
    file: Arc<dyn File>,
    file_len: u64,
    window: Box<dyn Window>,
    /// Where in the file the window begins.
    window_offset: u64,
    window_len: usize,
    /// The next free byte of the window.
    at: usize,
    /// Lsn of the next frame.
    lsn: u64,
    /// The last durable Lsn written into the log; before the first append another than any, so that it is written then.
    marked: u64,
    records: u64,
    small: Box<[u8; SMALL]>,
}

impl Appender {
    /// An appender for the end of a recovered log, which lies at `offset` of the file the first window is of.
    pub(crate) fn new(shared: Arc<Shared>, offset: u64) -> Result<Self> {
        shared.ensure_windows(1, Claim::Reserved)?;
        let lsn = shared.end.load(Ordering::Acquire);
        let salt = FrameSalt::new(shared.options.salt);
        let ready = shared.take_window(Lsn(lsn));
        shared.counters.unprepared_windows.store(0, Ordering::Relaxed);
        let window_len = ready.window.len();
        Ok(Self {
            shared,
            salt,
            file: ready.blank.file,
            file_len: ready.blank.len,
            window: ready.window,
            window_offset: ready.offset,
            window_len,
            at: (offset - ready.offset) as usize,
            lsn,
            marked: u64::MAX,
            records: 0,
            small: Box::new([0; SMALL]),
        })
    }

    /// Appends one record, the concatenation of `parts`, and returns the Lsn after it: a sync up to there makes it
    /// durable. When this returns, the bytes survive the process being killed.
    ///
    /// # Errors
    /// Without space for the record nothing was appended and a later append may succeed; a poisoned log takes
    /// nothing more; a record above [`MAX_RECORD`] is refused.
    #[inline]
    pub fn append(&mut self, parts: &[&[u8]]) -> Result<Lsn> {
        self.append_as(parts, Claim::Ordinary)
    }

    /// As [`Appender::append`], and may use the file held in reserve ([`crate::Options::reserve_file`]): for records that make room
    /// elsewhere.
    ///
    /// # Errors
    /// As [`Appender::append`].
    #[inline]
    pub fn append_reserved(&mut self, parts: &[&[u8]]) -> Result<Lsn> {
        self.append_as(parts, Claim::Reserved)
    }

    /// Whether a record of `len` bytes is appended by no more than copies to memory.
    #[inline]
    fn is_plain(&self, len: usize, durable: u64, claim: Claim) -> bool {
        durable == self.marked
            && len <= SMALL - SHORT_HEADER
            && SHORT_HEADER + len <= self.window_len - self.at
            && !self.shared.poisoned.load(Ordering::Relaxed)
            && (claim == Claim::Reserved || !self.shared.reserve_missing.load(Ordering::Relaxed))
    }

    #[inline]
    fn append_as(&mut self, parts: &[&[u8]], claim: Claim) -> Result<Lsn> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let durable = self.shared.durable.load(Ordering::Relaxed);
        if !self.is_plain(len, durable, claim) {
            return self.append_slow(parts, len as u64, durable, claim);
        }
        let header = FrameHeader { lsn: Lsn(self.lsn), short: true, kind: Kind::Full, mark: None, len };
        let mut filled = header.encode(&mut self.small[..]);
        for part in parts {
            self.small[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        let mut hasher = self.salt.hasher(Lsn(self.lsn));
        hasher.update(&self.small[4..filled]);
        self.small[..4].copy_from_slice(&hasher.finalize().to_le_bytes());
        self.window.copy_in(self.at, &self.small[..filled]);
        self.at += filled;
        self.lsn += filled as u64;
        Ok(self.publish())
    }

    /// The Lsn the next record will begin at (or a few bytes before it, when a new file begins with it).
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.lsn)
    }

    fn publish(&mut self) -> Lsn {
        self.records += 1;
        self.shared.records.store(self.records, Ordering::Relaxed);
        self.shared.end.store(self.lsn, Ordering::Release);
        Lsn(self.lsn)
    }

    /// Records that are long, carry a mark, or do not fit the window; fragments when they do not fit the file. All in long frames.
    #[cold]
    #[inline(never)]
    fn append_slow(&mut self, parts: &[&[u8]], len: u64, durable: u64, claim: Claim) -> Result<Lsn> {
        self.shared.check_poison()?;
        if len > MAX_RECORD {
            return Err(Error::TooLong { len, max: MAX_RECORD });
        }
        if claim == Claim::Ordinary {
            self.shared.ensure_reserve()?;
        }
        // All windows first: from here on nothing can fail, so a record is appended whole or not at all.
        let plan = self.windows_needed(len, durable != self.marked);
        if plan > 0 {
            self.shared.ensure_windows(plan, claim)?;
        }

        let mut source = Parts { parts, at: 0 };
        let mut left = len;
        let mut begun = false;
        loop {
            let mark = (durable != self.marked).then_some(Lsn(durable));
            let overhead = overhead(mark.is_some());
            let room = self.room();
            if overhead + left <= room {
                let kind = if begun { Kind::Last } else { Kind::Full };
                self.put_frame(kind, mark, &mut source, left as usize);
                return Ok(self.publish());
            }
            if room >= MIN_ROOM {
                let kind = if begun { Kind::Middle } else { Kind::First };
                let piece = room - overhead;
                self.put_frame(kind, mark, &mut source, piece as usize);
                left -= piece;
                begun = true;
            }
            self.begin_file(durable);
        }
    }

    /// Bytes left in the file.
    fn room(&self) -> u64 {
        self.file_len - self.window_offset - self.at as u64
    }

    /// How many more windows a record takes. Follows the loop of [`Self::append_slow`].
    fn windows_needed(&self, len: u64, marked: bool) -> usize {
        let chunks = |bytes: u64| bytes.div_ceil(CHUNK) as usize;
        let here = (self.window_len - self.at) as u64;
        let room = self.room();
        let first = overhead(marked) + len;
        if first <= room {
            return chunks(first.saturating_sub(here));
        }
        let mut windows = chunks(room - here);
        let mut left = if room >= MIN_ROOM { first - room } else { len };
        let file = self.shared.options.file_bytes;
        let piece = file - FILE_HEADER as u64 - overhead(false);
        while left > piece {
            windows += chunks(file);
            left -= piece;
        }
        windows + chunks(FILE_HEADER as u64 + overhead(false) + left)
    }

    fn put_frame(&mut self, kind: Kind, mark: Option<Lsn>, source: &mut Parts<'_>, len: usize) {
        let header = FrameHeader { lsn: Lsn(self.lsn), short: false, kind, mark, len };
        let mut head = [0; LONG_HEADER + MARK];
        let head_len = header.encode(&mut head);
        let mut hasher = self.salt.hasher(Lsn(self.lsn));
        hasher.update(&head[4..head_len]);
        source.clone().take(len, |bytes| hasher.update(bytes));
        head[..4].copy_from_slice(&hasher.finalize().to_le_bytes());
        self.put(&head[..head_len]);
        source.take(len, |bytes| self.put(bytes));
        if let Some(mark) = mark {
            self.marked = mark.0;
        }
        self.lsn += header.frame_len() as u64;
    }

    /// Copies bytes to the end, through as many windows of this file as they take.
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.at == self.window_len {
                self.next_window();
            }
            let n = bytes.len().min(self.window_len - self.at);
            self.window.copy_in(self.at, &bytes[..n]);
            self.at += n;
            bytes = &bytes[n..];
        }
    }

    /// Leaves the file, whose windows are used up, and begins the next one with its header.
    fn begin_file(&mut self, durable: u64) {
        self.next_window();
        assert!(self.window_offset == 0, "a file was left before its last window");
        let salt = self.shared.options.salt;
        let live = self.shared.queue.lock().live.back().map(|live| live.number);
        let header = FileHeader {
            salt,
            number: live.unwrap_or_default(),
            first: Lsn(self.lsn),
            durable: Lsn(durable),
        };
        self.put(&header.encode());
        self.marked = durable;
    }

    /// Goes on to the next window, which [`Shared::ensure_windows`] made sure of.
    fn next_window(&mut self) {
        let next = self.shared.take_window(Lsn(self.lsn));
        let window = std::mem::replace(&mut self.window, next.window);
        let file = std::mem::replace(&mut self.file, next.blank.file);
        let (offset, len) = (self.window_offset, self.window_len as u64);
        self.file_len = next.blank.len;
        self.window_offset = next.offset;
        self.window_len = self.window.len();
        self.at = 0;
        self.shared.leave(Left { file, offset, len, window: Some(window) });
    }
}

const fn overhead(marked: bool) -> u64 {
    (if marked { LONG_HEADER + MARK } else { LONG_HEADER }) as u64
}

/// A position in the parts of a record.
#[derive(Clone)]
struct Parts<'a> {
    parts: &'a [&'a [u8]],
    /// Bytes of the first part that are taken already.
    at: usize,
}

impl Parts<'_> {
    /// Hands the next `len` bytes to `sink`, slice by slice.
    fn take(&mut self, mut len: usize, mut sink: impl FnMut(&[u8])) {
        while len > 0 {
            let [part, rest @ ..] = self.parts else { return };
            let piece = &part[self.at..];
            let n = piece.len().min(len);
            sink(&piece[..n]);
            len -= n;
            self.at += n;
            if self.at == part.len() {
                (self.parts, self.at) = (rest, 0);
            }
        }
    }
}
