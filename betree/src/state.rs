//! One keyspace: its view and the lock under which the view changes.
//!
//! Lock order: commit lock, then a keyspace's `change` lock, then nothing. The `change` lock is held for the in-memory change of a
//! tree only, never across I/O.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;
use betree_storage::primitives::{Mutex, MutexGuard, RwLock, point};

use crate::hash::hash;
use crate::iter::ScanHabit;
use crate::memtable::{ArenaPool, Memtable};
use crate::node::Node;
use crate::operator::MergeOperator;
use crate::options::TreeOptions;
use crate::room::FlushCost;
use crate::types::{KeyspaceId, Seqno};
use crate::view::{Head, View};

const UPDATE_STRIPES: usize = 64;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct State {
    pub id: KeyspaceId,
    pub name: String,
    /// Known operator; set again when the keyspace is opened with one.
    operator: RwLock<Option<Arc<dyn MergeOperator>>>,
    pub tree: TreeOptions,
    arenas: Arc<ArenaPool>,
    pub flush_cost: FlushCost,
    view: ArcSwap<View>,
    change: Mutex<()>,
    pub dropped: AtomicBool,
    /// What its iterators take.
    pub scans: Arc<ScanHabit>,
    /// Striped by key: held across the read and the write of an update.
    updates: Vec<Mutex<()>>,
}

impl State {
    pub(crate) fn new(
        id: KeyspaceId,
        name: &str,
        operator: Option<Arc<dyn MergeOperator>>,
        tree: TreeOptions,
        arenas: Arc<ArenaPool>,
        root: Arc<Node>,
        flushed: Seqno,
    ) -> State {
        let head = new_head(&arenas, operator.clone());
        State {
            id,
            name: name.to_string(),
            operator: RwLock::new(operator),
            tree,
            arenas,
            flush_cost: FlushCost::new(&tree),
            view: ArcSwap::from_pointee(View { heads: vec![head], root, flushed }),
            change: Mutex::new(()),
            dropped: AtomicBool::new(false),
            scans: Arc::default(),
            updates: (0..UPDATE_STRIPES).map(|_| Mutex::new(())).collect(),
        }
    }

    /// Excludes other updates of `key` (and of some other keys).
    pub(crate) fn lock_for_update(&self, key: &[u8]) -> MutexGuard<'_, ()> {
        self.updates[hash(key) as usize % UPDATE_STRIPES].lock()
    }

    pub(crate) fn set_operator(&self, operator: Arc<dyn MergeOperator>) {
        *self.operator.write() = Some(operator);
    }

    pub(crate) fn view(&self) -> Arc<View> {
        point();
        self.view.load_full()
    }

    /// As [`State::view`], for the moment only: cheaper, not to be kept.
    pub(crate) fn peek(&self) -> arc_swap::Guard<Arc<View>> {
        point();
        self.view.load()
    }

    pub(crate) fn operator(&self) -> Option<Arc<dyn MergeOperator>> {
        self.operator.read().clone()
    }

    pub(crate) fn has_operator(&self) -> bool {
        self.operator.read().is_some()
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Relaxed)
    }

    /// Puts a new active memtable before the others. REQUIRES the commit lock.
    pub(crate) fn freeze(&self) {
        let _change = self.change.lock();
        let view = self.view.load();
        let mut heads = Vec::with_capacity(view.heads.len() + 1);
        heads.push(new_head(&self.arenas, self.operator()));
        heads.extend(view.heads.iter().cloned());
        self.publish(View { heads, root: view.root.clone(), flushed: view.flushed });
    }

    /// Publishes a new root made from the current one, unless `make` answers `None`. Returns whether it did.
    pub(crate) fn change(&self, make: impl FnOnce(&Arc<Node>) -> Option<Arc<Node>>) -> bool {
        let _change = self.change.lock();
        let view = self.view.load();
        let Some(root) = make(&view.root) else { return false };
        self.publish(View { heads: view.heads.clone(), root, flushed: view.flushed });
        true
    }

    /// Publishes a new root in which the oldest memtable is in the tree, and takes the memtable out of the view.
    pub(crate) fn install(&self, head: &Arc<Head>, last: Seqno, make: impl FnOnce(&Arc<Node>) -> Arc<Node>) {
        let _change = self.change.lock();
        let view = self.view.load();
        let heads: Vec<_> = view.heads.iter().filter(|h| !Arc::ptr_eq(h, head)).cloned().collect();
        debug_assert!(heads.len() + 1 == view.heads.len(), "the memtable was in the view");
        self.publish(View { heads, root: make(&view.root), flushed: view.flushed.max(last) });
    }

    /// REQUIRES the change lock: what is published was made from the view that it replaces.
    fn publish(&self, view: View) {
        point();
        self.view.store(Arc::new(view));
    }
}

fn new_head(arenas: &Arc<ArenaPool>, operator: Option<Arc<dyn MergeOperator>>) -> Arc<Head> {
    Arc::new(Head {
        table: Arc::new(Memtable::new(arenas.clone(), operator)),
        first_lsn: Default::default(),
        unlogged: AtomicBool::new(false),
        charge: Default::default(),
    })
}
