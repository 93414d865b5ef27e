//! The memtable: the mutable head of a root's buffer.
//!
//! Messages lie in an arena in the order of arrival ([`arena`], large values in [`large`]); a B+ tree of 12-byte slots
//! ([`tree`], [`slots`]) gives their order by key; the arena's memory is used again ([`pool`]); range deletes are kept apart ([`range_deletes`]). [`cursor`] shows the
//! table as of a Seqno with one entry per key, which is how a run sees its own content too. [`compact`] makes a table without what is overtaken of frozen ones.
//!
//! REQUIRES one writer at a time (the commit lock) and Seqnos that ascend over all calls of `apply`. Readers, any number,
//! ask for a Seqno whose batch has been applied whole. Locks: `state` guards tree and range deletes, is taken for
//! writing by `apply` for at most [`STRETCH`] messages at once, for reading by lookups and by the writer while it looks for the place of a single message,
//! which stays right until it adds it; values are copied outside it, as arena entries never move. No other locks are taken while it is held.

mod arena;
mod compact;
mod cursor;
mod large;
#[cfg(all(test, feature = "shuttle"))]
mod models;
mod pool;
mod range_deletes;
mod slots;
mod tree;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use betree_storage::primitives::RwLock;
use bytes::Bytes;

use arena::{Arena, ArenaWriter, Entry, Loc};
pub(crate) use cursor::MemCursor;
pub(crate) use pool::ArenaPool;
use range_deletes::RangeDeletes;
use tree::{Tree, Way};

use crate::headed::head_of;
use crate::message::{Kind, MessageRef};
use crate::operator::MergeOperator;
use crate::spans::Spans;
use crate::types::Seqno;

/// Messages applied under one hold of the lock, so that a large batch does not keep readers waiting.
const STRETCH: usize = 128;

/// Where the search for a key ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Base {
    /// At this value.
    Put(Bytes),
    /// At a Delete or under a RangeDelete.
    Deleted,
}

struct State {
    writer: ArenaWriter,
    tree: Tree,
    range_deletes: RangeDeletes,
}

/// The mutable head of a root's buffer.
pub(crate) struct Memtable {
    arena: Arc<Arena>,
    operator: Option<Arc<dyn MergeOperator>>,
    state: RwLock<State>,
    bytes: AtomicUsize,
    len: AtomicUsize,
    /// Bytes of messages that a later Put or Delete of the same key hides, about.
    overtaken: AtomicUsize,
    /// First and last Seqno applied; `first` is 0 before any.
    first: AtomicU64,
    last: AtomicU64,
    /// The head of the greatest key of the tree, for the writer without the lock: what has a greater one comes after all. 0 before any.
    greatest: AtomicU64,
}

impl Memtable {
    /// An empty table that is expected to grow to about the size that the pool is for; it may exceed it.
    pub(crate) fn new(pool: Arc<ArenaPool>, operator: Option<Arc<dyn MergeOperator>>) -> Memtable {
        let (arena, writer) = Arena::new(pool);
        let state = State { writer, tree: Tree::new(), range_deletes: RangeDeletes::default() };
        Memtable {
            arena,
            operator,
            bytes: AtomicUsize::new(state.bytes()),
            state: RwLock::new(state),
            len: AtomicUsize::new(0),
            overtaken: AtomicUsize::new(0),
            first: AtomicU64::new(0),
            last: AtomicU64::new(0),
            greatest: AtomicU64::new(0),
        }
    }

    /// Adds messages. REQUIRES one writer; Seqnos ascending over calls, from 1 on; keys and values within their limits; an
    /// operator if there are Merges.
    pub(crate) fn apply<'a>(&self, messages: impl IntoIterator<Item = (Seqno, MessageRef<'a>)>) {
        let mut messages = messages.into_iter();
        loop {
            let mut state = self.state.write();
            let mut stretch = 0;
            while stretch < STRETCH
                && let Some((seqno, message)) = messages.next()
            {
                self.add(&mut state, seqno, message, None);
                stretch += 1;
            }
            self.bytes.store(state.bytes(), Ordering::Relaxed);
            if stretch < STRETCH {
                return;
            }
        }
    }

    /// Adds one message. REQUIRES as for [`Memtable::apply`].
    pub(crate) fn apply_one(&self, seqno: Seqno, message: MessageRef<'_>) {
        self.expect(seqno, message.key).apply(message);
    }

    /// Gets ready for one message, whose place the processor then fetches while the caller does something else.
    #[inline]
    pub(crate) fn expect(&self, seqno: Seqno, key: &[u8]) -> Expecting<'_> {
        // Ascending keys need no look at the tree.
        let way = if head_of(key) > self.greatest.load(Ordering::Relaxed) {
            Way::End
        } else {
            self.state.read().tree.way(&self.arena, key, seqno)
        };
        Expecting { table: self, seqno, way }
    }

    fn add(&self, state: &mut State, seqno: Seqno, message: MessageRef<'_>, way: Option<Way>) {
        // Relaxed: the one writer reads its own stores, and readers of the counters need no order with the content.
        assert!(seqno.0 > self.last.load(Ordering::Relaxed), "memtable: Seqno {seqno} does not ascend");
        match message.kind {
            Kind::RangeDelete => state.range_deletes.push(seqno, message.key, message.value),
            Kind::Put | Kind::Delete | Kind::Merge => {
                assert!(
                    message.kind != Kind::Merge || self.operator.is_some(),
                    "memtable: Merge without operator"
                );
                let loc = state.writer.push(seqno, message);
                let way = way.unwrap_or_else(|| state.tree.way(&self.arena, message.key, seqno));
                let older = state.tree.insert(&self.arena, loc, message.key, seqno, &way);
                if let Some(older) = older
                    && message.kind != Kind::Merge
                {
                    let bytes = self.arena.entry(older).bytes();
                    self.overtaken.store(self.overtaken.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
                }
                if matches!(way, Way::End) {
                    self.greatest.store(head_of(message.key), Ordering::Relaxed);
                }
            }
        }
        self.len.store(self.len.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.last.store(seqno.0, Ordering::Relaxed);
        if self.first.load(Ordering::Relaxed) == 0 {
            self.first.store(seqno.0, Ordering::Release);
        }
    }

    /// Memory in use, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Messages applied.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Bytes of messages that a later Put or Delete of the same key hides; some that do are not noticed.
    pub(crate) fn overtaken(&self) -> usize {
        self.overtaken.load(Ordering::Relaxed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First and last Seqno applied.
    pub(crate) fn seqnos(&self) -> Option<(Seqno, Seqno)> {
        let first = self.first.load(Ordering::Acquire);
        (first > 0).then(|| (Seqno(first), Seqno(self.last.load(Ordering::Relaxed))))
    }

    /// The newest state of `key` visible at `at`. Appends the operands of Merges, newest first, until the Put, Delete or
    /// RangeDelete that ends the search; `None`: it goes on below.
    pub(crate) fn get(&self, key: &[u8], at: Seqno, operands: &mut Vec<Bytes>) -> Option<Base> {
        let mut merges = Vec::new();
        let end = self.find(key, at, &mut merges);
        operands.extend(merges.into_iter().map(|loc| self.arena.entry(loc).value_bytes()));
        Some(match end? {
            End::At(loc) => match self.arena.entry(loc) {
                entry if entry.kind == Kind::Put => Base::Put(entry.value_bytes()),
                _ => Base::Deleted,
            },
            End::Covered => Base::Deleted,
        })
    }

    fn find(&self, key: &[u8], at: Seqno, merges: &mut Vec<Loc>) -> Option<End> {
        let state = self.state.read();
        let covered = state.range_deletes.newest_over(key, at);
        for (loc, entry) in state.versions(&self.arena, key, at) {
            if covered > Some(entry.seqno) {
                break;
            }
            match entry.kind {
                Kind::Merge => merges.push(loc),
                _ => return Some(End::At(loc)),
            }
        }
        covered.map(|_| End::Covered)
    }

    /// What the range deletes visible at `at` cover.
    pub(crate) fn spans(&self, at: Seqno) -> Spans {
        self.state.read().range_deletes.spans(at)
    }

    /// Whether any range was deleted in it.
    pub(crate) fn has_range_deletes(&self) -> bool {
        !self.state.read().range_deletes.is_empty()
    }

    /// The table as of `at`; the cursor stands nowhere until a seek.
    pub(crate) fn cursor(self: &Arc<Self>, at: Seqno) -> MemCursor {
        MemCursor::new(self.clone(), at)
    }
}

/// A memtable that waits for one message. REQUIRES: nothing else is added before it.
pub(crate) struct Expecting<'a> {
    table: &'a Memtable,
    seqno: Seqno,
    way: Way,
}

impl Expecting<'_> {
    /// Adds the message. REQUIRES the key that was announced, and as for [`Memtable::apply`].
    #[inline]
    pub(crate) fn apply(self, message: MessageRef<'_>) {
        let mut state = self.table.state.write();
        self.table.add(&mut state, self.seqno, message, Some(self.way));
        self.table.bytes.store(state.bytes(), Ordering::Relaxed);
    }
}

/// What ended the search for a key.
enum End {
    /// The Put or Delete here.
    At(Loc),
    /// A RangeDelete.
    Covered,
}

impl State {
    fn bytes(&self) -> usize {
        self.writer.bytes() + self.tree.bytes() + self.range_deletes.bytes()
    }

    /// The messages of `key` at or before `at`, newest first.
    fn versions<'a>(
        &'a self,
        arena: &'a Arena,
        key: &'a [u8],
        at: Seqno,
    ) -> impl Iterator<Item = (Loc, Entry<'a>)> {
        let mut rest = self.tree.seek(arena, key, at).after();
        let mut last = at;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                // The leaf is done; Seqnos start at 1, so an older one can be asked for.
                rest = self.tree.seek(arena, key, Seqno(last.0.checked_sub(1)?)).after();
            }
            let (loc, others) = rest.split_first()?;
            rest = others;
            let entry = arena.entry(*loc);
            last = entry.seqno;
            (entry.key == key).then_some((*loc, entry))
        })
    }
}

impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seqnos = self.seqnos();
        f.debug_struct("Memtable")
            .field("len", &self.len())
            .field("bytes", &self.bytes())
            .field("seqnos", &seqnos)
            .finish()
    }
}
