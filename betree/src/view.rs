//! What readers look at: the memtables and the root of one keyspace, swapped as a whole.
//!
//! A view is immutable; freezing a memtable, compacting frozen ones in memory, installing a run and every change of the tree publish another. Readers
//! load it without a lock and keep what they loaded: a snapshot is a view and a Seqno.
//!
//! Invariant `view.nothing_between`: every committed message of the keyspace that a reader of the view can see is in one of its memtables
//! or in its tree, and what is in the tree has Seqnos up to `flushed`, what is in the memtables above it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use betree_wal::Lsn;

use crate::memtable::Memtable;
use crate::node::Node;
use crate::room::Charge;
use crate::types::Seqno;

/// An active memtable is looked at whenever it has grown by this part of the size at which it is frozen: whether it should be compacted in memory.
const LOOK_PART: usize = 8;
/// With less it is not worth it.
const LEAST_LOOK: usize = 1 << 10;
/// It is compacted if this part of it is overtaken.
const OVERTAKEN_PART: usize = 3;

/// A memtable with what a checkpoint must know of it.
#[derive(Debug)]
pub(crate) struct Head {
    pub table: Arc<Memtable>,
    /// Where the log record of its first message begins.
    pub first_lsn: OnceLock<Lsn>,
    /// Whether any of its messages was not logged.
    pub unlogged: AtomicBool,
    /// What its flush has been granted.
    pub charge: Charge,
    /// The size at which the next writer looks at it, if that is less than the size at which it is frozen. Changes under the commit lock.
    look: AtomicUsize,
}

/// What becomes of the frozen memtables of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frozen {
    /// They are flushed, the oldest first.
    Flush,
    /// They become one without what is overtaken, and that rests.
    Compact,
    /// There is one, which was compacted and waits for the next.
    Rest,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct View {
    /// Newest first; the first is active, the others are frozen.
    pub heads: Vec<Arc<Head>>,
    pub frozen: Frozen,
    pub root: Arc<Node>,
    /// Last Seqno that is in the tree.
    pub flushed: Seqno,
}

impl Head {
    pub(crate) fn new(table: Memtable) -> Head {
        Head {
            table: Arc::new(table),
            first_lsn: OnceLock::new(),
            unlogged: AtomicBool::new(false),
            charge: Charge::default(),
            look: AtomicUsize::new(0),
        }
    }

    /// Whether a writer has to look for room in this active memtable, where they are frozen at `limit` bytes.
    #[inline]
    pub(crate) fn wants_look(&self, limit: usize) -> bool {
        self.table.bytes() >= limit.min(self.look.load(Relaxed))
    }
}

impl View {
    /// What is to be done with the active memtable, where they are frozen at `limit` bytes: nothing yet, or freezing it for this. REQUIRES the commit lock.
    pub(crate) fn due(&self, limit: usize) -> Option<Frozen> {
        let active = &self.heads[0];
        let bytes = active.table.bytes();
        if bytes + self.resting_bytes() >= limit {
            return Some(Frozen::Flush);
        }
        if bytes < active.look.load(Relaxed) {
            return None;
        }
        active.look.store(bytes + (limit / LOOK_PART).max(LEAST_LOOK), Relaxed);
        self.is_worth_compacting(limit).then_some(Frozen::Compact)
    }

    /// Bytes of the memtable that rests.
    fn resting_bytes(&self) -> usize {
        if self.frozen == Frozen::Rest { self.heads[1].table.bytes() } else { 0 }
    }

    fn is_worth_compacting(&self, limit: usize) -> bool {
        let active = &self.heads[0].table;
        active.bytes() >= (limit / LOOK_PART).max(LEAST_LOOK)
            && active.overtaken() >= active.bytes() / OVERTAKEN_PART
            && (self.heads.len() == 1 || self.frozen == Frozen::Rest)
            && self.heads.iter().all(|head| !head.charge.is_reserved())
    }
}
