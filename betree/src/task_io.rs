//! The I/O channels of one worker: what flushes, checkpoints and remembered rows read and write in bulk, past the page cache.
//!
//! Writes are queued and waited for at the end of a task, or while the next one has begun (`scheduler`). No locks.

use std::sync::Arc;

use betree_pager::{Extent, IoCompletion, Pager, PagerIo};
use betree_storage::AlignedBuf;

use crate::Result;

/// The I/O channels of one worker.
pub(crate) struct TaskIo {
    pub read: PagerIo,
    pub write: PagerIo,
}

impl TaskIo {
    pub(crate) fn new(pager: &Pager) -> Result<TaskIo> {
        Ok(TaskIo { read: pager.background_io()?, write: pager.background_io()? })
    }

    /// Queues the write of a whole extent.
    pub(crate) fn write_whole(&mut self, extent: &Arc<Extent>, buf: AlignedBuf) {
        self.write.submit_write(extent, 0, buf, 0);
    }

    /// All of an extent, not verified.
    pub(crate) fn read_whole(&mut self, extent: &Arc<Extent>) -> Result<AlignedBuf> {
        let mut done = Vec::new();
        self.read.submit_read(extent, 0, extent.len() as usize, 0);
        loop {
            self.read.wait(1, &mut done);
            if let Some(IoCompletion { buf, result, .. }) = done.pop() {
                return Ok(result.map(|()| buf)?);
            }
        }
    }

    /// Takes a buffer back for reuse.
    pub(crate) fn recycle(&self, buf: AlignedBuf) {
        self.read.recycle(buf);
    }

    /// The channel of the writes that are in flight; `idle` takes its place.
    pub(crate) fn hand_over_writes(&mut self, idle: PagerIo) -> PagerIo {
        std::mem::replace(&mut self.write, idle)
    }

    /// Waits for every write queued; the first failure.
    pub(crate) fn finish_writes(&mut self) -> Result<()> {
        Ok(self.write.finish()?)
    }
}
