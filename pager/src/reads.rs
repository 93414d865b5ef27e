//! Reads of pages, many of them in flight, each taken when it has come.
//!
//! Whoever needs many pages asks for each as soon as it is known, and goes on with each as soon as it is there: the processor works on what has come
//! and on what is to be asked for next while the device reads. Rings come from a pool. Owned by one thread; dropping it waits for what is in flight.

use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use betree_storage::{AlignedBuf, Completion, Request, Ring};

use crate::busy;
use crate::cache::{Page, PageKind};
use crate::error::{Error, Result};
use crate::pager::Pager;
use crate::read::{PageRef, check_bounds};

/// Requests in flight, and requests of a ring of the pool.
const READS_AT_ONCE: usize = 64;
/// Requests queued before they are handed over unasked.
const BATCH: usize = 8;
/// Requests that are waited for together, unless there are fewer: to be woken for each costs more than it saves.
const FEW: usize = 3;
/// Idle rings kept.
const MAX_IDLE_RINGS: usize = 16;

/// See the module's text.
pub struct PageReads<'p> {
    pager: &'p Pager,
    /// None before the first request.
    ring: Option<Box<dyn Ring>>,
    queued: Vec<(u64, Request)>,
    done: Vec<Completion>,
}

/// What was read for one request. Goes back by [`PageReads::recycle`].
#[derive(Debug)]
pub struct Arrived {
    /// The token given with the request.
    pub token: u64,
    buf: AlignedBuf,
    result: Result<()>,
}

impl Pager {
    /// Nothing is in flight yet.
    #[must_use]
    pub fn reads(&self) -> PageReads<'_> {
        PageReads { pager: self, ring: None, queued: Vec::new(), done: Vec::new() }
    }

    /// A ring with nothing in flight.
    fn idle_ring(&self) -> Result<Box<dyn Ring>> {
        let idle = self.0.rings.lock().pop();
        Ok(match idle {
            Some(ring) => ring,
            None => self.0.storage.ring(READS_AT_ONCE)?,
        })
    }

    /// Takes a ring with nothing in flight back.
    fn keep_ring(&self, ring: Box<dyn Ring>) {
        let mut rings = self.0.rings.lock();
        if rings.len() < MAX_IDLE_RINGS {
            rings.push(ring);
        }
    }

    /// Fills the buffers from `offset` of the file by one request, for whose end this thread looks without sleeping.
    pub(crate) fn read_busily(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let Ok(mut ring) = self.idle_ring() else {
            return Ok(self.0.file.read_vectored_at(offset, bufs)?);
        };
        self.0.counters.busy_reads.fetch_add(1, Relaxed);
        let buf = self.0.buffers.get(bufs.iter().map(|buf| buf.len()).sum());
        ring.submit(&mut vec![(0, Request::Read { file: Arc::clone(&self.0.file), offset, buf })]);
        ring.busy_wait(busy::LONGEST);
        let mut done = Vec::with_capacity(1);
        ring.wait(1, &mut done);
        self.keep_ring(ring);
        let Some(Completion { buf: Some(read), result, .. }) = done.pop() else {
            debug_assert!(false, "a ring gave no buffer back");
            return Ok(self.0.file.read_vectored_at(offset, bufs)?);
        };
        let mut from = &read[..];
        for buf in bufs {
            let (part, rest) = from.split_at(buf.len());
            buf.copy_from_slice(part);
            from = rest;
        }
        self.0.buffers.put(read);
        Ok(result?)
    }
}

impl PageReads<'_> {
    /// Requests that have not been taken.
    fn pending(&self) -> usize {
        self.queued.len() + self.done.len() + self.ring.as_ref().map_or(0, |ring| ring.in_flight())
    }

    /// Whether another request should wait until one is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pending() >= READS_AT_ONCE
    }

    /// Asks for `len` bytes from where `first` begins; under way at the latest with the next [`PageReads::take`]. REQUIRES that the extent is not given
    /// back meanwhile.
    pub fn ask(&mut self, first: &PageRef<'_>, len: usize, token: u64) -> Result<()> {
        check_bounds(first.extent, first.at, len)?;
        if self.ring.is_none() {
            self.ring = Some(self.pager.idle_ring()?);
        }
        if first.kind == PageKind::Data {
            self.pager.0.foreground.reads(&*self.pager.0.storage);
        }
        self.pager.0.counters.read(len);
        let buf = self.pager.0.buffers.get(len);
        let (file, offset) = (Arc::clone(&self.pager.0.file), first.file_offset());
        self.queued.push((token, Request::Read { file, offset, buf }));
        if self.queued.len() >= BATCH {
            self.kick();
        }
        Ok(())
    }

    fn kick(&mut self) {
        if let Some(ring) = self.ring.as_mut().filter(|_| !self.queued.is_empty()) {
            ring.submit(&mut self.queued);
        }
    }

    /// A request that is done, in any order; waits for it. `None`: none is left.
    pub fn take(&mut self) -> Option<Arrived> {
        if self.done.is_empty() {
            self.kick();
            let ring = self.ring.as_mut()?;
            ring.wait(FEW.min(ring.in_flight()), &mut self.done);
        }
        let Completion { token, buf, result, .. } = self.done.pop()?;
        Some(Arrived {
            token,
            buf: buf.unwrap_or_else(AlignedBuf::empty),
            result: result.map_err(Error::from),
        })
    }

    /// Waits for all that was asked for: each [`PageReads::take`] then has one at once.
    pub fn wait_for_all(&mut self) {
        self.kick();
        if let Some(ring) = &mut self.ring {
            ring.wait(ring.in_flight(), &mut self.done);
        }
    }

    /// The page at byte `at` of what was read: verified, and cached if it is to be kept.
    pub fn page(&self, arrived: &Arrived, at: usize, want: &PageRef<'_>) -> Result<Page> {
        arrived.result.clone()?;
        self.pager.accept(want, &arrived.buf[at..at + want.len as usize])
    }

    /// Takes the memory back for the next request.
    pub fn recycle(&self, arrived: Arrived) {
        self.pager.0.buffers.put(arrived.buf);
    }
}

impl Drop for PageReads<'_> {
    fn drop(&mut self) {
        let Some(mut ring) = self.ring.take() else { return };
        while ring.in_flight() > 0 {
            ring.wait(ring.in_flight(), &mut self.done);
        }
        self.pager.keep_ring(ring);
    }
}
