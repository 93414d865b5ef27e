//! The bulk channel: reads and writes of extents past the cache, many in flight.
//!
//! Used by flush, compaction and write-back, one channel per thread, and by those who read ahead for somebody. Requests are queued and handed over in batches,
//! by a background channel few at a time while somebody waits for reads ([`crate::foreground`]).
//! Every request holds its extent until it completes, so that blocks are never freed, and allocated to somebody else,
//! under a write.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;

use betree_storage::{AlignedBuf, Completion, Request, Ring};

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::foreground::PIECE;
use crate::pager::{Pager, Shared};
use crate::read::check_bounds;

/// Requests in flight.
const DEPTH: usize = 64;
/// Requests queued before they are handed over unasked.
const BATCH: usize = 16;
/// A piece that is longer than any request, of whole blocks.
const ANY: usize = 1 << 30;

/// A channel for bulk reads and writes. Not shared: each thread makes its own.
///
/// Dropping it waits for what is in flight.
pub struct PagerIo {
    // Dropped before `held`: the ring waits for its requests, whose extents must live until then.
    ring: Box<dyn Ring>,
    queued: Vec<(u64, Request)>,
    /// Failed before they reached the ring.
    refused: Vec<IoCompletion>,
    completions: Vec<Completion>,
    /// What each request of the ring needs alive and what the caller calls it.
    held: HashMap<u64, (u64, Arc<Extent>)>,
    next: u64,
    background: bool,
    /// Whether requests are handed over a few at a time, in pieces.
    gives_way: bool,
    shared: Arc<Shared>,
}

/// The end of one request.
#[derive(Debug)]
pub struct IoCompletion {
    /// The token given at submission.
    pub token: u64,
    /// The request's buffer. Handing it to [`PagerIo::recycle`] spares the next one an allocation.
    pub buf: AlignedBuf,
    /// Whether all of it was read or written. What was read is not verified: the caller knows the pages in it.
    pub result: Result<()>,
}

impl Pager {
    /// A new bulk channel for what somebody waits for.
    pub fn io(&self) -> Result<PagerIo> {
        self.channel(false)
    }

    /// A new bulk channel for background work: while somebody reads it has few requests in flight.
    pub fn background_io(&self) -> Result<PagerIo> {
        self.channel(true)
    }

    fn channel(&self, background: bool) -> Result<PagerIo> {
        Ok(PagerIo {
            ring: self.0.storage.ring(DEPTH)?,
            queued: Vec::with_capacity(BATCH),
            refused: Vec::new(),
            completions: Vec::new(),
            held: HashMap::new(),
            next: 0,
            background,
            gives_way: false,
            shared: Arc::clone(&self.0),
        })
    }
}

impl PagerIo {
    /// A buffer of `len` bytes, recycled if possible; its content is unspecified.
    #[must_use]
    pub fn buffer(&self, len: usize) -> AlignedBuf {
        self.shared.buffers.get(len)
    }

    /// Takes a buffer back for reuse.
    pub fn recycle(&self, buf: AlignedBuf) {
        self.shared.buffers.put(buf);
    }

    /// Queues reading `len` bytes from byte `at` of `extent`. Both are multiples of [`BLOCK`](crate::BLOCK).
    pub fn submit_read(&mut self, extent: &Arc<Extent>, at: u32, len: usize, token: u64) {
        debug_assert!(extent.is_of(&self.shared), "an extent of another pager");
        if let Err(error) = check_bounds(extent, at, len) {
            self.refused.push(IoCompletion { token, buf: AlignedBuf::empty(), result: Err(error) });
            return;
        }
        let (file, offset) = (Arc::clone(&self.shared.file), extent.offset() + u64::from(at));
        let buf = self.shared.buffers.get(len);
        self.shared.counters.read(len);
        if !self.background {
            self.shared.foreground.reads(&*self.shared.storage);
        }
        self.queue(extent, token, Request::Read { file, offset, buf });
    }

    /// Queues writing `buf` at byte `at` of `extent`. `at` and the length are multiples of [`BLOCK`](crate::BLOCK).
    pub fn submit_write(&mut self, extent: &Arc<Extent>, at: u32, buf: AlignedBuf, token: u64) {
        debug_assert!(extent.is_of(&self.shared), "an extent of another pager");
        let allowed = self.shared.check_poison().and_then(|()| check_bounds(extent, at, buf.len()));
        if let Err(error) = allowed {
            self.refused.push(IoCompletion { token, buf, result: Err(error) });
            return;
        }
        let (file, offset) = (Arc::clone(&self.shared.file), extent.offset() + u64::from(at));
        self.shared.counters.wrote(buf.len());
        self.queue(extent, token, Request::Write { file, offset, buf });
    }

    /// Hands everything queued to the device without waiting, or as much of it as may be there.
    pub fn kick(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let give_way = self.background && self.shared.foreground.is_reading(&*self.shared.storage);
        if give_way != self.gives_way {
            self.gives_way = give_way;
            self.ring.set_piece(if give_way { PIECE } else { ANY });
        }
        if !give_way {
            self.ring.submit(&mut self.queued);
            return;
        }
        let room = self.shared.foreground.requests().saturating_sub(self.ring.in_flight());
        if room > 0 {
            let next = self.queued.drain(..room.min(self.queued.len()));
            self.ring.submit(&mut next.collect());
        }
    }

    /// Requests submitted and not yet handed out by [`PagerIo::wait`].
    #[must_use]
    pub fn pending(&self) -> usize {
        self.held.len() + self.refused.len()
    }

    /// Waits until at least `min` requests (or all pending, if fewer) are complete and appends all that are to `out`. A background channel hands over what was
    /// held back; with 0 it does that without waiting.
    pub fn wait(&mut self, min: usize, out: &mut Vec<IoCompletion>) {
        let wanted = out.len() + min;
        out.append(&mut self.refused);
        loop {
            self.kick();
            if self.held.is_empty() {
                return;
            }
            self.ring.wait(wanted.saturating_sub(out.len()), &mut self.completions);
            self.note_background();
            for completion in self.completions.drain(..) {
                // The ring answers each request once, so the entry is there; its extent is let go of here.
                let Some((token, _extent)) = self.held.remove(&completion.token) else { continue };
                let buf = completion.buf.unwrap_or_else(AlignedBuf::empty);
                out.push(IoCompletion { token, buf, result: completion.result.map_err(Error::from) });
            }
            if out.len() >= wanted || self.queued.is_empty() {
                return;
            }
        }
    }

    /// Lets other threads end a [`PagerIo::wait`] for one request early.
    pub fn waker(&mut self) -> Waker {
        self.ring.waker()
    }

    /// Waits for everything pending and returns the first failure. Buffers are recycled.
    pub fn finish(&mut self) -> Result<()> {
        let mut result = Ok(());
        let mut done = Vec::new();
        while self.pending() > 0 {
            self.wait(1, &mut done);
            for completion in done.drain(..) {
                result = result.and(completion.result);
                self.recycle(completion.buf);
            }
        }
        result
    }

    fn note_background(&self) {
        if self.background {
            self.shared.busy_wait.background(self.shared.storage.now());
        }
    }

    fn queue(&mut self, extent: &Arc<Extent>, token: u64, request: Request) {
        // The caller's tokens may repeat; the ring's must not.
        self.next += 1;
        self.held.insert(self.next, (token, Arc::clone(extent)));
        self.note_background();
        self.queued.push((self.next, request));
        if self.queued.len() >= BATCH {
            self.kick();
        }
    }
}

impl Drop for PagerIo {
    fn drop(&mut self) {
        // What was queued was promised; a write that silently never happened would be found only by its checksum.
        drop(self.finish());
    }
}

impl std::fmt::Debug for PagerIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagerIo").field("pending", &self.pending()).finish_non_exhaustive()
    }
}
