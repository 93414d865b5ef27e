//! Large reads past the page cache for the cursors of one walk: all through one channel, which is made when the first is asked for.
//!
//! A read is named by a ticket, and whoever has it takes the buffer when it needs it. Reads that nobody will take are given up; their buffers go
//! back to the pool when they arrive. Owned by a walk.

use std::sync::Arc;

use betree_pager::{Extent, IoCompletion, Pager, PagerIo};
use betree_storage::AlignedBuf;

use crate::Result;

/// Names a read under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// See the module's text.
pub(crate) struct ReadAhead {
    pager: Pager,
    io: Option<PagerIo>,
    next: u64,
    arrived: Vec<IoCompletion>,
    given_up: Vec<Ticket>,
}

impl ReadAhead {
    pub(crate) fn new(pager: &Pager) -> ReadAhead {
        ReadAhead { pager: pager.clone(), io: None, next: 0, arrived: Vec::new(), given_up: Vec::new() }
    }

    /// Asks for `len` bytes at byte `at` of an extent; under way at the latest after [`ReadAhead::kick`].
    pub(crate) fn ask(&mut self, extent: &Arc<Extent>, at: u32, len: usize) -> Result<Ticket> {
        let io = match &mut self.io {
            Some(io) => io,
            None => self.io.insert(self.pager.io()?),
        };
        self.next += 1;
        io.submit_read(extent, at, len, self.next);
        Ok(Ticket(self.next))
    }

    /// Everything asked for goes to the device.
    pub(crate) fn kick(&mut self) {
        if let Some(io) = &mut self.io {
            io.kick();
        }
    }

    /// Waits for a read. `None`: it was taken or given up before.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Result<Option<AlignedBuf>> {
        loop {
            if let Some(done) = self.arrived(ticket) {
                done.result?;
                return Ok(Some(done.buf));
            }
            let Some(io) = self.io.as_mut().filter(|io| io.pending() > 0) else { return Ok(None) };
            io.wait(1, &mut self.arrived);
            for ticket in std::mem::take(&mut self.given_up) {
                self.give_up(ticket);
            }
        }
    }

    /// Nobody will take this one.
    pub(crate) fn give_up(&mut self, ticket: Ticket) {
        match self.arrived(ticket) {
            Some(done) => self.recycle(done.buf),
            None => self.given_up.push(ticket),
        }
    }

    /// Takes a buffer back for reuse.
    pub(crate) fn recycle(&self, buf: AlignedBuf) {
        if let Some(io) = &self.io {
            io.recycle(buf);
        }
    }

    fn arrived(&mut self, ticket: Ticket) -> Option<IoCompletion> {
        let at = self.arrived.iter().position(|done| done.token == ticket.0)?;
        Some(self.arrived.swap_remove(at))
    }
}
