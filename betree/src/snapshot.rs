//! Snapshots: a fixed view of all keyspaces.

use std::collections::HashMap;
use std::ops::RangeBounds;
use std::sync::Arc;

use bytes::Bytes;

use crate::db::Handle;
use crate::iter::{bounds, prefix_bounds};
use crate::types::{KeyspaceId, Seqno};
use crate::view::View;
use crate::{Error, Iter, Keyspace, Result, get};

/// The state of the whole database at one moment, atomic across keyspaces.
///
/// Costs nothing to make or to read through. While it lives, the memtables and extents it needs stay: a snapshot held over a long
/// time of writing holds memory and disk space.
#[derive(Clone, Debug)]
pub struct Snapshot {
    handle: Arc<Handle>,
    at: Seqno,
    views: Arc<HashMap<KeyspaceId, Arc<View>>>,
}

impl Snapshot {
    pub(crate) fn new(handle: Arc<Handle>) -> Snapshot {
        // Under the commit lock no batch is half applied and no memtable changes places.
        let commit = handle.shared.commit.lock();
        let views = handle.shared.states().into_iter().map(|s| (s.id, s.view())).collect();
        let at = handle.shared.visible();
        drop(commit);
        Snapshot { handle, at, views: Arc::new(views) }
    }

    fn view(&self, keyspace: &Keyspace) -> Result<Arc<View>> {
        keyspace.check_belongs(&self.handle)?;
        self.views.get(&keyspace.id()).cloned().ok_or_else(|| Error::InvalidKeyspace {
            keyspace: keyspace.name().to_string(),
            detail: "it was created after the snapshot".into(),
        })
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// Those of the device, corruption, and a keyspace younger than the snapshot or of another database.
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        let view = self.view(keyspace)?;
        get::get(keyspace.reader(), || keyspace.state.operator(), &view, key.as_ref(), self.at)
    }

    /// The values of `keys`, in their order; page reads are in flight together.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keyspace: &Keyspace, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        let view = self.view(keyspace)?;
        let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        get::multi_get(keyspace.reader(), keyspace.state.operator(), &view, &keys, self.at)
    }

    /// Whether `key` is present.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn contains_key(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get(keyspace, key)?.is_some())
    }

    /// The records of a key range.
    ///
    /// # Errors
    /// As [`Snapshot::prefix`].
    pub fn range<K: AsRef<[u8]>>(&self, keyspace: &Keyspace, range: impl RangeBounds<K>) -> Result<Iter> {
        self.iter_bounds(keyspace, bounds(&range))
    }

    /// The records whose keys begin with `prefix`.
    ///
    /// # Errors
    /// A keyspace younger than the snapshot or of another database.
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Result<Iter> {
        self.iter_bounds(keyspace, prefix_bounds(prefix.as_ref()))
    }

    /// All records.
    ///
    /// # Errors
    /// As [`Snapshot::prefix`].
    pub fn iter(&self, keyspace: &Keyspace) -> Result<Iter> {
        self.iter_bounds(keyspace, (Vec::new(), None))
    }

    fn iter_bounds(&self, keyspace: &Keyspace, bounds: (Vec<u8>, Option<Vec<u8>>)) -> Result<Iter> {
        let view = self.view(keyspace)?;
        let state = &keyspace.state;
        Ok(Iter::new(&self.handle.shared.pager, state.operator(), view, self.at, bounds, state.scans.clone()))
    }
}
