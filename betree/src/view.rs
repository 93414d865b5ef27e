//! What readers look at: the memtables and the root of one keyspace, swapped as a whole.
//!
//! A view is immutable; freezing a memtable, installing its run and every change of the tree publish another. Readers
//! load it without a lock and keep what they loaded: a snapshot is a view and a Seqno.
//!
//! Invariant `view.nothing_between`: every committed message of the keyspace is in a memtable of the view or in its tree,
//! and what is in the tree has Seqnos up to `flushed`, what is in the memtables above it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use betree_wal::Lsn;

use crate::memtable::Memtable;
use crate::node::Node;
use crate::room::Charge;
use crate::types::Seqno;

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
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct View {
    /// Newest first; the first is active, the others are frozen.
    pub heads: Vec<Arc<Head>>,
    pub root: Arc<Node>,
    /// Last Seqno that is in the tree.
    pub flushed: Seqno,
}
