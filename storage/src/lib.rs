//! The I/O layer: the only crate that makes system calls for files.
//!
//! Owns: opening files below one directory, aligned buffers, the submit/complete interface ([`Ring`]) with its
//! io_uring and portable implementations, mapped append windows, directory sync, the directory lock, the
//! latching of the first failed sync, and the locks and threads of the layers above ([`primitives`]). Knows nothing of logs, pages or keys.
//!
//! The traits here are the device boundary: `testkit` implements them once more over a simulated disk.

mod buf;
mod disk;
mod error;
mod file;
mod frames;
mod latch;
mod locks;
mod pool;
mod portable;
pub mod prefetch;
pub mod primitives;
pub mod processor;
mod region;
mod slabs;
mod sys;
#[cfg(target_os = "linux")]
mod uring;
mod window;

use std::fmt::Debug;
use std::io::IoSliceMut;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

pub use buf::{ALIGN, AlignedBuf};
pub use disk::{Backend, DiskStorage, LOCK_FILE};
pub use error::{Error, Result};
pub use frames::{FRAME, Frame, Frames};
pub use latch::SyncLatch;
pub use pool::BufPool;
pub use region::{HUGE_PAGE, Region};
pub use slabs::{Piece, Slabs};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist.
    Existing,
    /// The file is created; it must not exist.
    CreateNew,
}

/// How a file reaches the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Through the operating system's page cache.
    Buffered,
    /// Past it (`O_DIRECT`) where the file system can, buffered otherwise. Offsets, lengths and buffers of reads
    /// and writes must then be multiples of [`ALIGN`].
    Direct,
}

/// One directory of files: everything a database touches lies in it.
///
/// File names are plain names without separators.
pub trait Storage: Debug + Send + Sync {
    /// Opens a file. A created file exists durably only after [`Storage::sync_dir`].
    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> Result<Arc<dyn File>>;
    /// The names of all files in the directory, sorted.
    fn list(&self) -> Result<Vec<String>>;
    /// Removes a file; durable after [`Storage::sync_dir`].
    fn remove(&self, name: &str) -> Result<()>;
    /// Renames a file, replacing the target; durable after [`Storage::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Makes created, removed and renamed entries durable.
    fn sync_dir(&self) -> Result<()>;
    /// Takes the exclusive lock of the directory, or fails with [`Error::Locked`]. Released when dropped.
    fn lock(&self) -> Result<Box<dyn DirLock>>;
    /// A new ring that keeps at most `depth` requests in flight. One per thread and purpose.
    fn ring(&self, depth: usize) -> Result<Box<dyn Ring>>;
    /// Whether [`Ring::busy_wait`] does what it says.
    fn can_busy_wait(&self) -> bool {
        false
    }
    /// The directory's path, for messages.
    fn path(&self) -> String;
    /// The name of the backend, for messages and stats: `io_uring`, `portable`, `simulated`.
    fn backend(&self) -> &'static str;
    /// What was decided for the caller and should be said once in its log: a fallback, with its reason.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// 128 bits that no other file has: identities are drawn from them. The operating system's randomness; a simulated
    /// disk draws them from its seed, so that a run can be repeated.
    fn entropy(&self) -> u128 {
        sys::entropy()
    }
    /// The clock that decides how long somebody waits: time since a moment that stays the same while the process lives. A
    /// simulated disk has a clock of its own, which moves with its operations.
    fn now(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
    /// Waits for so long by the clock of [`Storage::now`].
    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
    /// Background work has reached the state of this name, between two steps that a crash must not tell apart. Nothing happens;
    /// a simulated disk counts it and may end the world there.
    fn reached(&self, _state: &'static str) {}
}

/// Held while a directory is in use; releases the lock when dropped.
pub trait DirLock: Debug + Send + Sync {}

/// An open file. All methods may be called from any thread.
pub trait File: Debug + Send + Sync {
    /// The file's name in its directory.
    fn name(&self) -> &str;
    /// Its length in bytes.
    fn len(&self) -> Result<u64>;
    /// Whether its length is zero.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with a hole) the file.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Reserves space for `offset..offset + len`, extending the file; the range reads as zeros where it was not
    /// written. Fails with [`Error::NoSpace`] when the device is full.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;
    /// Gives the range's space back; it then reads as zeros. Where the file system cannot, nothing happens and the
    /// bytes stay.
    fn punch_hole(&self, offset: u64, len: u64) -> Result<()>;
    /// Makes the range read as zeros, with its space reserved as by [`File::allocate`]. Not durable before the next sync.
    fn zero_range(&self, offset: u64, len: u64) -> Result<()> {
        self.punch_hole(offset, len)?;
        self.allocate(offset, len)
    }
    /// Fills `buf` from `offset`; a range that ends past the file's end is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Fills the buffers one after the other from `offset`, as [`File::read_at`], with one request where possible.
    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let mut at = offset;
        for buf in bufs {
            self.read_at(at, buf)?;
            at += buf.len() as u64;
        }
        Ok(())
    }
    /// Writes all of `buf` at `offset`, extending the file when needed.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;
    /// Makes everything written before durable (fdatasync). The first failure is latched: every later call on
    /// this file fails with the same error.
    fn sync(&self) -> Result<()>;
    /// Starts writing dirty pages of the range back without waiting (a hint).
    fn start_write_back(&self, offset: u64, len: u64);
    /// Lets the operating system drop clean cached pages of the range (a hint).
    fn drop_cache(&self, offset: u64, len: u64);
    /// Maps `offset..offset + len`, which must have been allocated, for appending.
    fn window(&self, offset: u64, len: usize, pages: Pages) -> Result<Box<dyn Window>>;
    /// The descriptor for backends that need one.
    fn raw_fd(&self) -> Option<i32> {
        None
    }
    /// The latch of failed syncs, for rings that sync without [`File::sync`].
    fn sync_latch(&self) -> Option<&SyncLatch> {
        None
    }
}

/// A mapped, preallocated part of a file into which bytes are copied without a system call.
///
/// What was copied survives the process being killed; it survives power loss after [`File::sync`].
pub trait Window: Debug + Send {
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// Whether its length is zero.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies `bytes` to `at`; panics when they do not fit (the caller keeps count).
    fn copy_in(&mut self, at: usize, bytes: &[u8]);
}

/// How the memory behind a [`Window`] comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Page by page, when bytes are copied in.
    OnDemand,
    /// Now, page by page: nothing faults later, and a sync writes the pages that were written to since the last one.
    Single,
    /// Now, in pieces as large as the operating system makes them, for less than a third of the work. A sync writes whole pieces, so this is
    /// for windows that fill up between syncs. The range is overwritten with zeros: REQUIRES that nothing was written there.
    Large,
}

/// One request to a [`Ring`]. The ring owns the buffer until it hands it back with the completion.
#[derive(Debug)]
pub enum Request {
    /// Fill the whole of `buf` from `offset`.
    Read {
        /// The file to read.
        file: Arc<dyn File>,
        /// Where in the file.
        offset: u64,
        /// Filled completely, or the completion is an error.
        buf: AlignedBuf,
    },
    /// Write the whole of `buf` at `offset`.
    Write {
        /// The file to write.
        file: Arc<dyn File>,
        /// Where in the file.
        offset: u64,
        /// Written completely, or the completion is an error.
        buf: AlignedBuf,
    },
    /// As [`File::sync`], latch included. Not while another sync of the same file is under way: the operating
    /// system reports a failure to one of the two only.
    Sync {
        /// The file to sync.
        file: Arc<dyn File>,
    },
}

/// The end of one request.
#[derive(Debug)]
pub struct Completion {
    /// The token given at submission.
    pub token: u64,
    /// The request's buffer (none for a sync).
    pub buf: Option<AlignedBuf>,
    /// Whether the whole request was carried out. Short reads and writes are continued by the ring.
    pub result: Result<()>,
}

/// The submit/complete interface. Requests of one ring may complete in any order and are not ordered by it: a write
/// that must come after another is submitted after the other completed.
///
/// Dropping a ring waits for what is in flight.
pub trait Ring: Debug + Send {
    /// Submits every request of the batch (draining it) with one system call where possible. When more than the
    /// ring's depth would be in flight, it waits for completions first and keeps them for [`Ring::wait`].
    fn submit(&mut self, batch: &mut Vec<(u64, Request)>);
    /// Waits until at least `min` completions (or all in flight, if fewer) are there and appends all there are to
    /// `out`.
    fn wait(&mut self, min: usize, out: &mut Vec<Completion>);
    /// Returns when something is there for [`Ring::wait`], or `limit` has passed. The thread does not sleep. Nothing happens
    /// where [`Storage::can_busy_wait`] says no.
    fn busy_wait(&mut self, limit: Duration) {
        let _ = limit;
    }
    /// Requests submitted and not yet handed out by [`Ring::wait`].
    fn in_flight(&self) -> usize;
    /// From now on no transfer asks the device for more than `bytes` at once, a multiple of [`ALIGN`]: longer requests reach it piece after piece, the next
    /// one when [`Ring::wait`] sees the end of the last. A hint, of no use where requests do not reach a device as they are.
    fn set_piece(&mut self, bytes: usize) {
        let _ = bytes;
    }
    /// Lets other threads end a [`Ring::wait`] for one completion early: to wake it ends the one that is under way, or else the next one. For rings
    /// that never wait for long it does nothing.
    fn waker(&mut self) -> Waker {
        Waker::noop().clone()
    }
}
