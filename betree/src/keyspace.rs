//! The handle of one keyspace.

use std::ops::RangeBounds;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use crate::batch::check_limits;
use crate::db::Handle;
use crate::iter::{bounds, prefix_bounds};
use crate::message::{Kind, MessageRef};
use crate::readers::{Answer, ColdRead, GetFuture, MultiGetFuture, PrefetchFuture, Reading};
use crate::state::State;
use crate::stats::Counters;
use crate::types::{KeyspaceId, Seqno};
use crate::view::View;
use crate::{Error, Iter, Result, get};

/// An ordered map of byte strings within a database: a Bε-tree of its own. Cheap to clone, usable from any thread.
///
/// Writes are blind: they do not read, and return nothing about what was there. What a write survives when it returns is
/// the database's [`crate::Durability`].
#[derive(Clone, Debug)]
pub struct Keyspace {
    handle: Arc<Handle>,
    pub(crate) state: Arc<State>,
}

impl Keyspace {
    pub(crate) fn new(handle: Arc<Handle>, state: Arc<State>) -> Keyspace {
        Keyspace { handle, state }
    }

    pub(crate) fn id(&self) -> KeyspaceId {
        self.state.id
    }

    pub(crate) fn same(&self, other: &Keyspace) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    pub(crate) fn check_belongs(&self, handle: &Arc<Handle>) -> Result<()> {
        if Arc::ptr_eq(&self.handle.shared, &handle.shared) {
            return Ok(());
        }
        Err(Error::ForeignKeyspace { keyspace: self.state.name.clone() })
    }

    pub(crate) fn require_operator(&self) -> Result<()> {
        if self.state.has_operator() {
            return Ok(());
        }
        Err(Error::MergeOperator {
            keyspace: self.state.name.clone(),
            detail: "it has no merge operator".into(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The value of `key`, or `None`. At most one device read when filters and indexes are cached.
    ///
    /// # Errors
    /// Those of the device, and corruption with its place.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        let shared = &self.handle.shared;
        shared.check_open()?;
        Counters::add(&shared.counters.gets, 1);
        let view = self.state.peek();
        get::get(self.reader(), || self.state.operator(), &view, key.as_ref(), Seqno(u64::MAX))
    }

    /// The values of `keys`, in their order, all of one moment. Up to 64 page reads are in flight together; a page that several keys need is read once.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        let shared = &self.handle.shared;
        shared.check_open()?;
        Counters::add(&shared.counters.gets, keys.len() as u64);
        let (view, at) = self.moment();
        let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        get::multi_get(self.reader(), self.state.operator(), &view, &keys, at)
    }

    /// The value of `key` if memory can tell; [`Poll::Pending`] if the device would have to be read. Never waits for the device.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn try_get(&self, key: impl AsRef<[u8]>) -> Result<Poll<Option<Bytes>>> {
        let shared = &self.handle.shared;
        shared.check_open()?;
        let view = self.state.peek();
        let key = key.as_ref();
        let found = get::in_memory(self.reader(), || self.state.operator(), &view, key, Seqno(u64::MAX))?;
        Counters::add(&shared.counters.gets, u64::from(found.is_ready()));
        Ok(found)
    }

    /// As [`Keyspace::get`], for callers that have an event loop: it does not wait for the device. The future works with every runtime, and may be
    /// sent to other threads.
    ///
    /// The read begins here and not when the future is polled, so that several that are begun one after the other are in flight together.
    /// What memory has is looked up in the call; the future is then ready. Otherwise a thread of the database reads, up to 64 at a time,
    /// which costs some ten microseconds more than [`Keyspace::get`] takes for it. To drop the future is to give the read up. A database opened with [`background_threads`](crate::Options::background_threads) = 0
    /// reads in the call.
    ///
    /// ```
    /// # use std::future::Future;
    /// # fn block_on<F: Future>(f: F) -> F::Output {
    /// #     let mut f = std::pin::pin!(f);
    /// #     let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(v) = f.as_mut().poll(&mut cx) { return v; }
    /// #     }
    /// # }
    /// # let dir = tempfile::tempdir()?;
    /// # let db = betree::Db::open(dir.path())?;
    /// let towns = db.keyspace("towns")?;
    /// towns.insert("Ulm", "Danube")?;
    /// let river = block_on(async { towns.get_async("Ulm").await })?;
    /// assert_eq!(river.as_deref(), Some(&b"Danube"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The future's are those of [`Keyspace::get`]; [`Error::Closed`] if the database is closed meanwhile.
    pub fn get_async(&self, key: impl AsRef<[u8]>) -> GetFuture {
        GetFuture(self.read_async(&[key], true))
    }

    /// As [`Keyspace::multi_get`], without waiting for the device: see [`Keyspace::get_async`].
    ///
    /// # Errors
    /// As [`Keyspace::get_async`].
    pub fn multi_get_async<K: AsRef<[u8]>>(&self, keys: &[K]) -> MultiGetFuture {
        MultiGetFuture(self.read_async(keys, true))
    }

    /// Begins to read what point reads of `keys` need into the caches, without waiting for the device. Once the future has completed, they find it
    /// there, unless it was displaced meanwhile. To drop the future is to give up what was not read yet.
    ///
    /// # Errors
    /// As [`Keyspace::get_async`].
    pub fn prefetch<K: AsRef<[u8]>>(&self, keys: &[K]) -> PrefetchFuture {
        PrefetchFuture(self.read_async(keys, false))
    }

    fn read_async<K: AsRef<[u8]>>(&self, keys: &[K], keep: bool) -> Reading {
        let mut values = vec![None; if keep { keys.len() } else { 0 }];
        let (view, at) = self.moment();
        let mut cold = Vec::new();
        let mut look = || -> Result<()> {
            self.handle.shared.check_open()?;
            Counters::add(&self.handle.shared.counters.gets, if keep { keys.len() as u64 } else { 0 });
            let reader = self.reader();
            for (index, key) in keys.iter().enumerate() {
                match get::in_memory(reader, || self.state.operator(), &view, key.as_ref(), at)? {
                    Poll::Ready(value) if keep => values[index] = value,
                    Poll::Ready(_) => {}
                    Poll::Pending => cold.push(index),
                }
            }
            Ok(())
        };
        if let Err(error) = look() {
            return Reading::Known(Err(error));
        }
        if cold.is_empty() {
            return Reading::Known(Ok(values));
        }
        let answer = Answer::new(values, cold.len(), keep);
        let read = |index: usize| ColdRead {
            state: self.state.clone(),
            view: view.clone(),
            at,
            key: keys[index].as_ref().into(),
            answer: Arc::downgrade(&answer),
            index,
        };
        self.handle.read_later(cold.into_iter().map(read).collect());
        Reading::Waiting(answer)
    }

    /// Whether `key` is present.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// Sets `key` to `value`.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let db = betree::Db::open(dir.path())?;
    /// let towns = db.keyspace("towns")?;
    /// towns.insert("Ulm", "Danube")?;
    /// assert_eq!(towns.get("Ulm")?.as_deref(), Some(&b"Danube"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::KeyTooLong`], [`Error::ValueTooLong`], [`Error::NoSpace`], [`Error::Poisoned`] after an earlier failure; the write then
    /// had no effect.
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(Kind::Put, key.as_ref(), value.as_ref())
    }

    /// Removes `key`, whether or not it is there.
    ///
    /// # Errors
    /// As [`Keyspace::insert`].
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(Kind::Delete, key.as_ref(), b"")
    }

    /// Folds `operand` onto the value of `key` with the keyspace's merge operator, without reading it.
    ///
    /// # Errors
    /// As [`Keyspace::insert`], and [`Error::MergeOperator`] if the keyspace has no operator.
    pub fn merge(&self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>) -> Result<()> {
        self.require_operator()?;
        self.write(Kind::Merge, key.as_ref(), operand.as_ref())
    }

    /// Removes every key in `start..end` (end exclusive) by one message. Leaves that are covered wholly are dropped unread and their space
    /// is given back. An empty or inverted range removes nothing.
    ///
    /// # Errors
    /// As [`Keyspace::insert`].
    pub fn remove_range(&self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Result<()> {
        let (start, end) = (start.as_ref(), end.as_ref());
        if start >= end {
            return Ok(());
        }
        check_limits(end, b"")?;
        self.write(Kind::RangeDelete, start, end)
    }

    /// Removes every key.
    ///
    /// # Errors
    /// As [`Keyspace::insert`].
    pub fn clear(&self) -> Result<()> {
        match self.last_key_value()? {
            None => Ok(()),
            Some((last, _)) if last.len() < crate::MAX_KEY_LEN => {
                self.remove_range([], [&last[..], &[0]].concat())
            }
            Some((last, _)) => {
                self.remove_range([], &last)?;
                self.remove(&last)
            }
        }
    }

    /// Moves what was committed to a range of keys before the call down to the leaves, where it lies in one sorted piece, and checkpoints: the range is then scanned
    /// at the device's speed, and what was overwritten or deleted in it gives its space back. Others write and read meanwhile. An
    /// inverted range is empty. Cost: what the range holds is read and written, in whole leaves, about twice.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let db = betree::Db::open(dir.path())?;
    /// let events = db.keyspace("events")?;
    /// # for day in ["2026-03-01", "2026-03-02", "2026-04-01"] { events.insert(day, "")?; }
    /// events.compact_range("2026-03-01".."2026-04-01")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of the device, and [`Error::KeyspaceDropped`].
    pub fn compact_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        let shared = &self.handle.shared;
        shared.check_open()?;
        let (low, high) = bounds(&range);
        shared.compact_range(&self.state, low, high)?;
        shared.checkpoint_now(false)
    }

    /// Replaces the value of `key` by what `change` makes of it (`None`: absent), atomically with respect to other updates
    /// of the keyspace made by this function. The new value.
    ///
    /// # Errors
    /// As [`Keyspace::get`] and [`Keyspace::insert`].
    pub fn update(
        &self,
        key: impl AsRef<[u8]>,
        change: impl FnOnce(Option<&[u8]>) -> Option<Vec<u8>>,
    ) -> Result<Option<Bytes>> {
        let key = key.as_ref();
        let _guard = self.state.lock_for_update(key);
        let old = self.get(key)?;
        match change(old.as_deref()) {
            Some(value) => {
                self.insert(key, &value)?;
                Ok(Some(value.into()))
            }
            None => {
                if old.is_some() {
                    self.remove(key)?;
                }
                Ok(None)
            }
        }
    }

    /// The records of a key range in order. An inverted range is empty.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let db = betree::Db::open(dir.path())?;
    /// let towns = db.keyspace("towns")?;
    /// # for t in ["Aachen", "Bonn", "Celle", "Dessau"] { towns.insert(t, "")?; }
    /// let names: Vec<_> = towns.range("B".."D").rev().map(|r| r.map(|(k, _)| k)).collect::<Result<_, _>>()?;
    /// assert_eq!(names, ["Celle", "Bonn"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Iter {
        self.iter_bounds(bounds(&range))
    }

    /// The records whose keys begin with `prefix`.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        self.iter_bounds(prefix_bounds(prefix.as_ref()))
    }

    /// All records.
    pub fn iter(&self) -> Iter {
        self.iter_bounds((Vec::new(), None))
    }

    /// The record with the smallest key.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn first_key_value(&self) -> Result<Option<(Bytes, Bytes)>> {
        self.iter().next().transpose()
    }

    /// The record with the largest key.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn last_key_value(&self) -> Result<Option<(Bytes, Bytes)>> {
        self.iter().next_back().transpose()
    }

    /// An estimate of the number of keys, from above: each message counts that has not met an older one of its key.
    pub fn approximate_len(&self) -> u64 {
        let view = self.state.view();
        let mut messages: u64 = view.heads.iter().map(|h| h.table.len() as u64).sum();
        let mut seen = std::collections::HashSet::new();
        view.root.visit_segments(&mut |segment| {
            if seen.insert(segment.extent.id()) {
                messages += u64::from(segment.messages);
            }
        });
        messages
    }

    /// Where its point reads look beside a view.
    pub(crate) fn reader(&self) -> get::Reader<'_> {
        self.handle.shared.warm_if_asked();
        self.handle.shared.reader(self.state.id)
    }

    fn iter_bounds(&self, bounds: (Vec<u8>, Option<Vec<u8>>)) -> Iter {
        self.handle.shared.pins.demand();
        self.handle.shared.warm_if_asked();
        let (view, at) = self.moment();
        Iter::new(
            &self.handle.shared.pager,
            self.state.operator(),
            view,
            at,
            bounds,
            self.state.scans.clone(),
        )
    }

    /// A view and a Seqno that belong together: everything up to the Seqno is in the view, and what the view's tree has is not above it.
    fn moment(&self) -> (Arc<View>, Seqno) {
        loop {
            let view = self.state.view();
            let at = self.handle.shared.visible();
            // Unchanged since: no memtable was frozen or installed between the two looks.
            if Arc::ptr_eq(&view, &self.state.peek()) {
                return (view, at);
            }
        }
    }

    fn write(&self, kind: Kind, key: &[u8], value: &[u8]) -> Result<()> {
        check_limits(key, if kind == Kind::RangeDelete { b"" } else { value })?;
        let shared = &self.handle.shared;
        shared.commit_one(&self.state, MessageRef { kind, key, value }, shared.options.durability)
    }
}
