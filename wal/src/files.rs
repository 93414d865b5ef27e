//! The set of log files: which are live, which are prepared, which are spare; making the next ones (`reclaim` gives
//! them back).
//!
//! Called by the appender (when its window is full), by the background thread (`prepare`), by trim and by sync.
//! Two locks, taken in this order when both are: `prep` is held while windows are made, and files by those who cannot go on without,
//! `queue` only for a few instructions, so that the appender takes a prepared window without waiting for I/O.
//!
//! # How a file is made
//! create or rename a spare, give it zeroed space, sync the file (length and extents), sync the directory; only then
//! do windows of it reach the appender. So no durable record lies in a file whose directory entry is not durable
//! (`log.entry_before_record`).
//!
//! # Why files are unwritten space and windows are populated ahead
//! Measured on ext4 on a virtual NVMe disk, 16 MiB files, 160-byte records, per record: window over allocated
//! unwritten space 185–220 ns (page faults included); over a recycled file's written space that left the page cache
//! 280–375 ns, because each fault reads from the disk what is about to be overwritten; over populated pages 13 ns.
//! So a recycled file is zeroed by range: its blocks become unwritten space and nothing is ever read. That takes tens of
//! microseconds; where the file system cannot, holes are punched, which costs 22–28 ms where the device discards. It is done by
//! whoever trims, not by the appender nor by the thread that prepares its windows.
//! Unwritten space makes the first sync of a page dearer (360 against 120 µs, the extent is converted in the
//! journal), which populating cures as well: the whole populated piece is converted by one sync.
//! Populating makes pages dirty, so it runs only a little ahead (`AHEAD` windows), or a sync would write megabytes of zeros.
//! Populating page by page takes the kernel 2.4 µs of CPU per page and giving the pages back another 1.3; as pieces as large as the window
//! ([`Pages::Large`]) both take 1.1. But of such a piece a sync writes all, so it is for a log that fills many windows
//! between syncs (`Pace`).
//!
//! # The reserve
//! With [`Options::reserve_file`] one more file of zeroed space lies ready under the name `log-reserve`, for records that make room
//! elsewhere ([`Claim::Reserved`]) when the device has no space for another log file. Others never get it, and while it is not in place they
//! get nothing at all: an ordinary record is refused until the reserve is restored. So after any ordinary record was taken there is room for a file's worth of the
//! other kind. It is restored by trim, which takes the first file given back for it, and by whoever appends or prepares once the
//! device has room. Taking it is a rename, like recycling a spare, with the same argument; its space is
//! zeroed again at every open, because a crash may have kept the rename of a file and not its zeroing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use betree_storage::primitives::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use betree_storage::primitives::{Condvar, Mutex};
use betree_storage::{File, Pages, Storage, Window};

use crate::blank::{Content, file_name, make_blank};
use crate::error::Result;
use crate::stats::{Counters, add};
use crate::sync::SyncState;
use crate::{Lsn, Options};

/// The piece of a file that is mapped, populated, written back and dropped at once.
pub(crate) const CHUNK: u64 = 512 << 10;
/// Windows kept prepared ahead of the appender.
const AHEAD: usize = 1;
/// Files kept made ahead of a log that streams: making one waits for two syncs of the file system, each of which may take a tenth of a second on a
/// busy device, and at full speed a file of 16 MiB lasts no longer.
const FILES_AHEAD: usize = 3;

/// The name of the file held in reserve.
pub(crate) const RESERVE: &str = "log-reserve";

/// Who asks for space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Leaves the reserve alone.
    Ordinary,
    /// May use the reserve.
    Reserved,
}

/// A file with records in it.
#[derive(Debug)]
pub(crate) struct LiveFile {
    pub number: u64,
    pub first: Lsn,
    pub file: Arc<dyn File>,
}

/// A log file with space but without records, or the one the next window comes from.
#[derive(Debug, Clone)]
pub(crate) struct Blank {
    pub number: u64,
    pub file: Arc<dyn File>,
    pub len: u64,
}

/// The next piece for the appender.
#[derive(Debug)]
pub(crate) struct ReadyWindow {
    pub blank: Blank,
    pub offset: u64,
    pub window: Box<dyn Window>,
}

/// A piece the appender has filled and left.
#[derive(Debug)]
pub(crate) struct Left {
    pub file: Arc<dyn File>,
    pub offset: u64,
    pub len: u64,
    /// Unmapped by whoever processes this: never by the appender. A mapped page cannot be dropped from the cache.
    pub window: Option<Box<dyn Window>>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    /// Oldest first, numbers contiguous, never empty; the last one is being appended to.
    pub live: VecDeque<LiveFile>,
    /// In the order the appender takes them, contiguous in the log.
    pub windows: VecDeque<ReadyWindow>,
    pub left: VecDeque<Left>,
    /// Write-back started, not yet dropped from the cache.
    pub draining: VecDeque<Left>,
    /// Files below the trim point, kept for recycling.
    pub spares: Vec<Spare>,
    /// Whoever waits for work shall look around: see [`Shared::rouse`].
    roused: bool,
}

/// A file whose records are no longer needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spare {
    pub number: u64,
    /// Its space is zeroed already.
    pub zeroed: bool,
}

/// Where the next window is made.
#[derive(Debug)]
pub(crate) struct Prep {
    current: Blank,
    next_offset: u64,
    /// The files after the current one, in order, numbers contiguous.
    next: VecDeque<Blank>,
    /// Somebody makes the next file, without the lock: it is synced, which may take longer than the windows of this one last.
    making: bool,
    pace: Pace,
}

impl Prep {
    /// Whether so many more windows take another file than there are.
    fn takes_another(&self, windows: usize) -> bool {
        let here = (self.current.len - self.next_offset).div_ceil(CHUNK);
        let there = self.next.iter().map(|blank| blank.len.div_ceil(CHUNK)).sum::<u64>();
        here + there < windows as u64
    }

    /// The last file that there is.
    fn last(&self) -> &Blank {
        self.next.back().unwrap_or(&self.current)
    }
}

/// How many windows the log fills between syncs.
#[derive(Debug, Default)]
struct Pace {
    /// Windows made since `period` began.
    made: u64,
    /// Syncs there had been when the last window was made, and when the period began.
    syncs: u64,
    period: u64,
    /// In the last whole period there were few syncs.
    streams: bool,
}

impl Pace {
    /// Windows per period.
    const PERIOD: u64 = 16;
    /// Syncs in it at most, that windows be made of large pieces.
    const FEW: u64 = 4;

    /// Whether a window that is made after so many syncs will be filled before the next one, most likely.
    fn streams(&mut self, syncs: u64) -> bool {
        let none_lately = syncs <= self.syncs + 1;
        self.syncs = syncs;
        self.made += 1;
        if self.made == Self::PERIOD {
            self.streams = syncs - self.period <= Self::FEW;
            (self.made, self.period) = (0, syncs);
        }
        self.streams && none_lately
    }
}

/// What all handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub storage: Arc<dyn Storage>,
    pub options: Options,
    /// Everything below was appended whole. Written by the appender only, after the bytes are in the window.
    pub end: AtomicU64,
    pub records: AtomicU64,
    /// Everything below is on the device (`log.durable_is_synced`). Written by sync leaders only.
    pub durable: AtomicU64,
    /// `end` when the log was opened.
    pub opened_at: Lsn,
    pub poisoned: AtomicBool,
    /// There is to be a reserve and there is none. Changed with `prep` held.
    pub reserve_missing: AtomicBool,
    pub poison: Mutex<Option<betree_storage::Error>>,
    pub queue: Mutex<Queue>,
    pub prep: Mutex<Prep>,
    /// What `prep` knows of the last period. Changed with `prep` held.
    streams: AtomicBool,
    /// Signalled (with `queue`) when a window was taken.
    work: Condvar,
    /// Signalled (with `prep`) when the next file is no longer being made.
    made: Condvar,
    pub sync: Mutex<SyncState>,
    pub synced: Condvar,
    pub counters: Counters,
}

impl Shared {
    /// The state after recovery: the log ends at `end`, at `offset` of the last of `live`, which has `len` bytes.
    pub fn new(
        storage: Arc<dyn Storage>,
        options: Options,
        end: Lsn,
        live: VecDeque<LiveFile>,
        tail: Blank,
        offset: u64,
        spares: Vec<Spare>,
    ) -> Self {
        // Of a file that is full to the last byte, the last window is taken: the appender leaves it itself.
        let next_offset = offset.min(tail.len - 1) / CHUNK * CHUNK;
        let queue = Queue {
            live,
            windows: VecDeque::new(),
            left: VecDeque::new(),
            draining: VecDeque::new(),
            spares,
            roused: false,
        };
        let reserve_missing = AtomicBool::new(options.reserve_file);
        Self {
            storage,
            options,
            end: AtomicU64::new(end.0),
            records: AtomicU64::new(0),
            durable: AtomicU64::new(end.0),
            opened_at: end,
            poisoned: AtomicBool::new(false),
            reserve_missing,
            poison: Mutex::new(None),
            queue: Mutex::new(queue),
            prep: Mutex::new(Prep {
                current: tail,
                next_offset,
                next: VecDeque::new(),
                making: false,
                pace: Pace::default(),
            }),
            streams: AtomicBool::new(false),
            work: Condvar::new(),
            made: Condvar::new(),
            sync: Mutex::new(SyncState::default()),
            synced: Condvar::new(),
            counters: Counters::default(),
        }
    }

    /// Makes sure the appender can take `count` windows. Either all are there or the files are as before.
    pub fn ensure_windows(&self, count: usize, claim: Claim) -> Result<()> {
        if self.queue.lock().windows.len() >= count {
            return Ok(());
        }
        let mut prep = self.prep.lock();
        let there = loop {
            let there = self.queue.lock().windows.len();
            if there >= count {
                return Ok(());
            }
            if !(prep.making && prep.takes_another(count - there)) {
                break there;
            }
            self.made.wait(&mut prep);
        };
        let (current, next_offset, next) = (prep.current.clone(), prep.next_offset, prep.next.clone());
        let mut made = Vec::new();
        for _ in there..count {
            match self.make_window(&mut prep, claim, Pages::OnDemand) {
                Ok(window) => made.push(window),
                Err(error) => {
                    // What this attempt took must not stay taken: others may need the space more.
                    drop(made);
                    let keep = next.back().unwrap_or(&current).number;
                    for number in keep + 1..=prep.current.number {
                        self.remove(number);
                    }
                    (prep.current, prep.next_offset, prep.next) = (current, next_offset, next);
                    if self.reserve_missing.load(Relaxed) {
                        // It may have been among them.
                        let _ = self.make_reserve(&prep);
                    }
                    return Err(error);
                }
            }
        }
        add(&self.counters.unprepared_windows, made.len() as u64);
        self.queue.lock().windows.extend(made);
        Ok(())
    }

    /// Does what makes appending cheap: see [`crate::Wal::prepare`].
    ///
    /// Windows come first: starting write-back may block on a busy device for longer than they last.
    pub fn prepare(&self) -> Result<()> {
        self.ensure_reserve()?;
        loop {
            if self.queue.lock().windows.len() < AHEAD {
                let mut prep = self.prep.lock();
                // The appender may have made some while this thread waited.
                if self.queue.lock().windows.len() < AHEAD {
                    if prep.making && prep.takes_another(1) {
                        return Ok(());
                    }
                    let ready = self.make_window(&mut prep, Claim::Ordinary, Pages::Single)?;
                    self.queue.lock().windows.push_back(ready);
                }
            } else if !self.process_left() {
                break;
            }
        }
        let number = {
            let mut prep = self.prep.lock();
            let ahead = if self.streams() { FILES_AHEAD } else { 1 };
            if prep.making || prep.next.len() >= ahead {
                return Ok(());
            }
            prep.making = true;
            prep.last().number + 1
        };
        let file = self.make_file(number, Claim::Ordinary);
        let mut prep = self.prep.lock();
        prep.making = false;
        self.made.notify_all();
        match file {
            Ok(file) => prep.next.push_back(file),
            // It goes on with one, and nobody needs to make room for more.
            Err(error) if error.is_no_space() && !prep.next.is_empty() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the log fills many windows between syncs.
    pub fn streams(&self) -> bool {
        self.streams.load(Relaxed)
    }

    /// Nothing was appended for a while: gives back the files that a log needs which streams.
    pub fn rest(&self) {
        if self.streams() {
            let mut prep = self.prep.lock();
            prep.pace = Pace::default();
            self.streams.store(false, Relaxed);
        }
        self.remove_files_ahead();
        self.remove_spares(self.options.spare_files);
    }

    /// Removes the files made ahead, but for the next one.
    pub fn remove_files_ahead(&self) {
        let mut prep = self.prep.lock();
        // The one in the making has the number after theirs, and there must be no gap.
        while !prep.making && prep.next.len() > 1 {
            if let Some(blank) = prep.next.pop_back() {
                self.remove(blank.number);
            }
        }
    }

    /// Makes the reserve if it is missing and the device has room.
    pub fn ensure_reserve(&self) -> Result<()> {
        if !self.reserve_missing.load(Relaxed) {
            return Ok(());
        }
        self.make_reserve(&self.prep.lock())
    }

    /// `_prep` is the proof that nobody else makes files.
    fn make_reserve(&self, _prep: &Prep) -> Result<()> {
        if !self.reserve_missing.load(Relaxed) {
            return Ok(());
        }
        let made = make_blank(&*self.storage, RESERVE, Content::NoFile, self.options.file_bytes);
        if made.is_err() {
            // Whatever part of the space it got, others may need more.
            let _ = self.storage.remove(RESERVE);
        }
        made?.sync().and_then(|()| self.storage.sync_dir()).map_err(|error| self.poison(error))?;
        self.reserve_missing.store(false, Relaxed);
        Ok(())
    }

    /// Makes the zeroed file `number`, which is not needed any more, the reserve if that is missing. Whether it did.
    pub fn becomes_reserve(&self, number: u64) -> bool {
        let _prep = self.prep.lock();
        let missing = self.reserve_missing.load(Relaxed);
        let renamed = missing && self.storage.rename(&file_name(number), RESERVE).is_ok();
        if renamed {
            self.reserve_missing.store(false, Relaxed);
        }
        renamed
    }

    /// Waits until [`Shared::prepare`] has something to do, or for `timeout`; says whether it has.
    pub fn wait_for_work(&self, timeout: Duration) -> bool {
        let mut queue = self.queue.lock();
        if !Self::has_work(&queue) && !queue.roused {
            self.work.wait_for(&mut queue, timeout);
        }
        queue.roused = false;
        Self::has_work(&queue)
    }

    /// Ends a wait for work, the next one if there is none now.
    pub fn rouse(&self) {
        self.queue.lock().roused = true;
        self.work.notify_one();
    }

    /// Whether [`Shared::prepare`] has something to do.
    pub fn has_work(queue: &Queue) -> bool {
        !queue.left.is_empty() || queue.windows.len() < AHEAD
    }

    /// Takes the next window for the log at `lsn`; with the first window of a file, the file becomes live.
    ///
    /// [`Shared::ensure_windows`] made sure of it, and only the appender takes windows.
    pub fn take_window(&self, lsn: Lsn) -> ReadyWindow {
        let mut queue = self.queue.lock();
        let Some(ready) = queue.windows.pop_front() else {
            unreachable!("a window was taken that ensure_windows did not provide");
        };
        if queue.live.back().is_none_or(|live| live.number != ready.blank.number) {
            let file = ready.blank.file.clone();
            queue.live.push_back(LiveFile { number: ready.blank.number, first: lsn, file });
        }
        ready
    }

    /// Hands over a piece the appender has left, and wakes whoever prepares.
    pub fn leave(&self, left: Left) {
        self.queue.lock().left.push_back(left);
        self.work.notify_one();
    }

    /// `pages`: unless the log streams.
    fn make_window(&self, prep: &mut Prep, claim: Claim, pages: Pages) -> Result<ReadyWindow> {
        if prep.next_offset >= prep.current.len {
            let next = match prep.next.pop_front() {
                Some(next) => next,
                None => self.make_file(prep.current.number + 1, claim)?,
            };
            prep.current = next;
            prep.next_offset = 0;
        }
        let offset = prep.next_offset;
        let len = CHUNK.min(prep.current.len - offset);
        // The first window, which may have records in it, is never made of large ones: no period is over.
        let pages = if prep.pace.streams(self.counters.syncs.load(Relaxed)) { Pages::Large } else { pages };
        self.streams.store(prep.pace.streams, Relaxed);
        let window = prep.current.file.window(offset, len as usize, pages)?;
        prep.next_offset += len;
        Ok(ReadyWindow { blank: prep.current.clone(), offset, window })
    }

    /// Makes a file with zeroed space whose directory entry is durable; leaves nothing behind when it fails. `prep` is held, or says that it is being
    /// made.
    fn make_file(&self, number: u64, claim: Claim) -> Result<Blank> {
        let spare = self.queue.lock().spares.pop();
        let made = self.try_make_file(number, spare);
        if let (Err(error), Claim::Reserved, false) = (&made, claim, self.reserve_missing.load(Relaxed))
            && error.is_no_space()
        {
            self.remove(number);
            return self.take_reserve(number);
        }
        match &made {
            Ok(_) if spare.is_some() => add(&self.counters.recycled, 1),
            Ok(_) => add(&self.counters.created, 1),
            Err(_) => self.remove(number),
        }
        made
    }

    /// Makes the reserve the file `number`.
    fn take_reserve(&self, number: u64) -> Result<Blank> {
        let name = file_name(number);
        self.storage.rename(RESERVE, &name)?;
        self.reserve_missing.store(true, Relaxed);
        let taken = make_blank(&*self.storage, &name, Content::Zeroed, self.options.file_bytes);
        if taken.is_err() {
            self.remove(number);
        }
        let file = taken?;
        file.sync().and_then(|()| self.storage.sync_dir()).map_err(|error| self.poison(error))?;
        add(&self.counters.reserve_taken, 1);
        Ok(Blank { number, file, len: self.options.file_bytes })
    }

    fn try_make_file(&self, number: u64, spare: Option<Spare>) -> Result<Blank> {
        let name = file_name(number);
        let len = self.options.file_bytes;
        let content = match spare {
            None => Content::NoFile,
            Some(spare) => {
                self.storage.rename(&file_name(spare.number), &name)?;
                self.storage.reached("log-file-renamed");
                if spare.zeroed { Content::Zeroed } else { Content::Stale }
            }
        };
        let blank = make_blank(&*self.storage, &name, content, len)?;
        self.storage.reached("log-file-made");
        // A failed sync may have lost what only a later sync would seem to confirm: final, as in `sync`.
        blank
            .sync()
            .and_then(|()| {
                self.storage.reached("log-file-synced");
                self.storage.sync_dir()
            })
            .map_err(|error| self.poison(error))?;
        Ok(Blank { number, file: blank, len })
    }

    /// Removes a file that holds nothing needed. A failure leaves a file that the next open removes.
    pub fn remove(&self, number: u64) {
        if self.storage.remove(&file_name(number)).is_ok() {
            add(&self.counters.removed, 1);
        }
    }
}
