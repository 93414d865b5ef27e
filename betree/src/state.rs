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
use crate::message::MessageRef;
use crate::node::Node;
use crate::operator::MergeOperator;
use crate::options::TreeOptions;
use crate::room::FlushCost;
use crate::types::{KeyspaceId, Seqno};
use crate::view::{Frozen, Head, View};

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
        let head = Arc::new(Head::new(Memtable::new(arenas.clone(), operator.clone())));
        State {
            id,
            name: name.to_string(),
            operator: RwLock::new(operator),
            tree,
            arenas,
            flush_cost: FlushCost::new(&tree),
            view: ArcSwap::from_pointee(View { heads: vec![head], frozen: Frozen::Flush, root, flushed }),
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

    /// Puts a new active memtable before the others; those that are frozen are to be flushed. REQUIRES the commit lock.
    pub(crate) fn freeze(&self) {
        self.freeze_for(Frozen::Flush);
    }

    /// Puts a new active memtable before the others. REQUIRES the commit lock.
    pub(crate) fn freeze_for(&self, frozen: Frozen) {
        let _change = self.change.lock();
        let view = self.view.load();
        let mut heads = Vec::with_capacity(view.heads.len() + 1);
        heads.push(Arc::new(Head::new(Memtable::new(self.arenas.clone(), self.operator()))));
        heads.extend(view.heads.iter().cloned());
        self.publish(View { heads, frozen, root: view.root.clone(), flushed: view.flushed });
    }

    /// Has the frozen memtables flushed, whatever was meant to become of them. Whether that is news.
    pub(crate) fn flush_frozen(&self) -> bool {
        let _change = self.change.lock();
        let view = self.view.load();
        if view.frozen == Frozen::Flush {
            return false;
        }
        let (heads, root) = (view.heads.clone(), view.root.clone());
        self.publish(View { heads, frozen: Frozen::Flush, root, flushed: view.flushed });
        true
    }

    /// Publishes a view with `new` in the place of the oldest memtables, `olds`, which then rests or is flushed.
    pub(crate) fn install_compacted(&self, olds: &[Arc<Head>], new: Arc<Head>, rests: bool) {
        let _change = self.change.lock();
        let view = self.view.load();
        let mut heads = view.heads.clone();
        heads.retain(|head| !olds.iter().any(|old| Arc::ptr_eq(old, head)));
        debug_assert!(heads.len() + olds.len() == view.heads.len(), "the memtables were in the view");
        heads.push(new);
        // Somebody may want them flushed by now.
        let frozen = if rests && view.frozen == Frozen::Compact { Frozen::Rest } else { Frozen::Flush };
        self.publish(View { heads, frozen, root: view.root.clone(), flushed: view.flushed });
    }

    /// A memtable of what `olds`, newest first, have and nobody who sees all of them needs a later message for; `kept` is told what that is.
    pub(crate) fn compacted(&self, olds: &[Arc<Head>], kept: &mut dyn FnMut(MessageRef<'_>)) -> Head {
        let tables: Vec<&Memtable> = olds.iter().map(|head| &*head.table).collect();
        Head::new(Memtable::compacted(&tables, self.arenas.clone(), self.operator(), kept))
    }

    /// Publishes a new root made from the current one, unless `make` answers `None`. Returns whether it did.
    pub(crate) fn change(&self, make: impl FnOnce(&Arc<Node>) -> Option<Arc<Node>>) -> bool {
        let _change = self.change.lock();
        let view = self.view.load();
        let Some(root) = make(&view.root) else { return false };
        let (heads, frozen) = (view.heads.clone(), view.frozen);
        self.publish(View { heads, frozen, root, flushed: view.flushed });
        true
    }

    /// Publishes a new root in which the oldest memtable is in the tree, and takes the memtable out of the view.
    pub(crate) fn install(&self, head: &Arc<Head>, last: Seqno, make: impl FnOnce(&Arc<Node>) -> Arc<Node>) {
        let _change = self.change.lock();
        let view = self.view.load();
        let heads: Vec<_> = view.heads.iter().filter(|h| !Arc::ptr_eq(h, head)).cloned().collect();
        debug_assert!(heads.len() + 1 == view.heads.len(), "the memtable was in the view");
        let (root, flushed) = (make(&view.root), view.flushed.max(last));
        self.publish(View { heads, frozen: view.frozen, root, flushed });
    }

    /// REQUIRES the change lock: what is published was made from the view that it replaces.
    fn publish(&self, view: View) {
        point();
        self.view.store(Arc::new(view));
    }
}
