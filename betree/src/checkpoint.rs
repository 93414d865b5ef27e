//! Checkpoints: one version of all trees becomes the start of recovery.
//!
//! Order, and why a crash between any two steps is harmless:
//! 1. Under the commit lock: take every keyspace's view, and the Lsn from which the log is needed beside these trees.
//! 2. Sync the log up to where the newest message in a tree was logged. Without it a tree could durably hold a message while an older
//!    one of another keyspace is lost with the log's tail: no prefix. What is newer is in no tree and need not be durable for it: a
//!    checkpoint that comes because much was rewritten finds the log synced far enough by the one that came after the last flush.
//! 3. Write the nodes that have no place yet, children before parents, and the catalog. The old checkpoint's
//!    extents are still owned (by `Durable`), so nothing of it is overwritten.
//! 4. Publish: data sync, superblock copies, sync (the pager's). Before: the old checkpoint counts. After: the new one.
//! 5. Only then let go of the old checkpoint's trees (their extents become free) and trim the log. A crash before leaves
//!    unused extents, which are free by not being reachable, and log records that replay skips by their Seqno.
//!
//! Invariants: `log.covers_checkpoint` (every message that is in no tree of the checkpoint, and was logged, is in the log above
//! `log_start`), `checkpoint.log_end_is_durable` (the log was synced up to `log_end` before the checkpoint: damage below it is never
//! taken for a torn tail, which would leave a tree with a message and without an older one), `checkpoint.holds_its_extents`.
//!
//! ```text
//! superblock payload := pointer to the catalog (as to a node) | log_end varint; or nothing before the first checkpoint
//! catalog page: 0 u32 checksum | 4 u8 page type = 4 | 5 3 bytes zero | 8 u32 body length | 12 4 bytes zero | 16 body | zeros
//! body     := log_start | next Seqno | next keyspace id | count | keyspace* | count | pointer to rows*     (varints)
//! keyspace := id | bytes(name) | bytes(operator name) | flushed Seqno | node pointer
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use betree_pager::{BLOCK, Extent, Keep, PageKind, Pager};
use betree_wal::Lsn;

use crate::message::{get_varint, put_varint};
use crate::node::{Node, NodePlace, Target};
use crate::node_codec::{self, NodePointer, get_bytes, put_bytes};
use crate::recovery::MAX_SEQNO;
use crate::remember::Remembered;
use crate::shared::Shared;
use crate::stats::Counters;
use crate::task_io::TaskIo;
use crate::types::{KeyspaceId, Seqno};
use crate::{Error, Result};

/// Page type of catalogs.
pub(crate) const TYPE_CATALOG: u8 = 4;
const HEADER: usize = 16;
/// No position in the log is above: see `docs/format.md`.
const MAX_LSN: u64 = 1 << 62;

/// What the durable checkpoint needs alive.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    pub roots: Vec<Arc<Node>>,
    pub catalog: Option<Arc<Extent>>,
    pub rows: Remembered,
    pub log_start: Lsn,
    /// For each keyspace, up to where its messages are in its tree.
    pub flushed: HashMap<KeyspaceId, Seqno>,
}

/// A keyspace in the catalog.
#[derive(Debug)]
pub(crate) struct CatalogEntry {
    pub id: KeyspaceId,
    pub name: String,
    /// Empty: none.
    pub operator: String,
    pub flushed: Seqno,
    pub root: NodePointer,
}

/// What a checkpoint says.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub log_start: Lsn,
    /// Up to here the log was durable when this was written. In the superblock's payload; zero if only the catalog was found.
    pub log_end: Lsn,
    pub next: Seqno,
    pub next_id: u32,
    pub entries: Vec<CatalogEntry>,
    /// Rows blocks (`remember`).
    pub rows: Vec<NodePointer>,
}

impl Catalog {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        out[4] = TYPE_CATALOG;
        put_varint(&mut out, self.log_start.0);
        put_varint(&mut out, self.next.0);
        put_varint(&mut out, u64::from(self.next_id));
        put_varint(&mut out, self.entries.len() as u64);
        for entry in &self.entries {
            put_varint(&mut out, u64::from(entry.id.0));
            put_bytes(&mut out, entry.name.as_bytes());
            put_bytes(&mut out, entry.operator.as_bytes());
            put_varint(&mut out, entry.flushed.0);
            entry.root.encode(&mut out);
        }
        put_varint(&mut out, self.rows.len() as u64);
        self.rows.iter().for_each(|block| block.encode(&mut out));
        let body = (out.len() - HEADER) as u32;
        out[8..12].copy_from_slice(&body.to_le_bytes());
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    pub(crate) fn decode(page: &[u8]) -> Option<Catalog> {
        let reserved = page.get(5..8)?.iter().chain(page.get(12..HEADER)?);
        if *page.get(4)? != TYPE_CATALOG || reserved.into_iter().any(|&b| b != 0) {
            return None;
        }
        let body = u32::from_le_bytes(page.get(8..12)?.try_into().ok()?) as usize;
        let mut input = page.get(HEADER..HEADER.checked_add(body)?)?;
        let input = &mut input;
        let mut catalog = Catalog {
            log_start: Lsn(get_varint(input)?),
            log_end: Lsn(0),
            next: Seqno(get_varint(input)?),
            next_id: u32::try_from(get_varint(input)?).ok()?,
            entries: Vec::new(),
            rows: Vec::new(),
        };
        for _ in 0..get_varint(input)? {
            catalog.entries.push(CatalogEntry {
                id: KeyspaceId(u32::try_from(get_varint(input)?).ok()?),
                name: String::from_utf8(get_bytes(input)?.to_vec()).ok()?,
                operator: String::from_utf8(get_bytes(input)?.to_vec()).ok()?,
                flushed: Seqno(get_varint(input)?),
                root: NodePointer::decode(input)?,
            });
        }
        for _ in 0..get_varint(input)? {
            catalog.rows.push(NodePointer::decode(input)?);
        }
        (input.is_empty() && catalog.is_sound()).then_some(catalog)
    }

    /// Whether numbers are in their bounds, and no number or name occurs twice.
    fn is_sound(&self) -> bool {
        let ids: HashSet<_> = self.entries.iter().map(|entry| entry.id.0).collect();
        let names: HashSet<_> = self.entries.iter().map(|entry| &entry.name).collect();
        (1..=MAX_SEQNO).contains(&self.next.0)
            && self.entries.iter().all(|entry| entry.id.0 < self.next_id && entry.flushed < self.next)
            && ids.len() == self.entries.len()
            && names.len() == self.entries.len()
    }

    /// Reads the catalog that a superblock's payload points to, and takes ownership of its extent.
    pub(crate) fn read(pager: &Pager, payload: &[u8]) -> Result<(Catalog, Arc<Extent>)> {
        let lie = |offset, detail: &str| Error::Corrupt {
            file: betree_pager::FILE_NAME.to_string(),
            offset,
            structure: "catalog",
            detail: detail.to_string(),
        };
        let (pointer, log_end) =
            decode_payload(payload).ok_or_else(|| lie(0, "the superblock's payload does not decode"))?;
        let extent = Arc::new(pager.adopt(pointer.offset, pointer.len)?);
        let page = pager.get(&extent, 0, pointer.len, pointer.crc, PageKind::Node)?;
        let catalog =
            Catalog::decode(&page).ok_or_else(|| lie(pointer.offset, "the body does not decode"))?;
        if catalog.log_start > log_end || log_end.0 > MAX_LSN {
            return Err(lie(pointer.offset, "the log begins above its end"));
        }
        Ok((Catalog { log_end, ..catalog }, extent))
    }
}

/// Where a superblock's payload says that the catalog is, and up to where the log was durable.
pub(crate) fn decode_payload(mut payload: &[u8]) -> Option<(NodePointer, Lsn)> {
    let pointer = NodePointer::decode(&mut payload)?;
    let log_end = Lsn(get_varint(&mut payload)?);
    payload.is_empty().then_some((pointer, log_end))
}

/// Writes pages of a checkpoint and waits for them at the end.
pub(crate) struct PageWriter<'a> {
    pub shared: &'a Shared,
    pub io: &'a mut TaskIo,
}

impl PageWriter<'_> {
    fn write(&mut self, bytes: Vec<u8>) -> Result<NodePlace> {
        let extent = self.shared.pager.allocate_reserved(bytes.len())?;
        Ok(self.write_to(extent, bytes))
    }

    /// Writes what can be done without: `None` if there is no space.
    pub(crate) fn write_optional(&mut self, bytes: Vec<u8>) -> Result<Option<NodePlace>> {
        match self.shared.pager.allocate(bytes.len()) {
            Ok(extent) => Ok(Some(self.write_to(extent, bytes))),
            Err(error) if error.is_no_space() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write_to(&mut self, extent: Extent, mut bytes: Vec<u8>) -> NodePlace {
        let extent = Arc::new(extent);
        let crc = self.shared.pager.seal(&mut bytes, extent.offset());
        let mut buf = self.io.write.buffer(bytes.len());
        buf.copy_from_slice(&bytes);
        self.io.write_whole(&extent, buf);
        Counters::add(&self.shared.counters.checkpoint_bytes, bytes.len() as u64);
        NodePlace { len: bytes.len() as u32, extent, crc }
    }

    /// Writes what of the tree has no place yet.
    fn place(&mut self, node: &Node) -> Result<()> {
        if node.place.get().is_some() {
            return Ok(());
        }
        for child in &node.children {
            if let Target::Node(below) = &child.target {
                self.place(below)?;
            }
        }
        let place = self.write(node_codec::encode(node))?;
        // Checkpoints exclude one another: nobody else places nodes.
        let _ = node.place.set(place);
        Ok(())
    }
}

impl Shared {
    /// Makes the trees as they are now the durable checkpoint. Called by one task at a time. `last`: before the database is closed.
    pub(crate) fn take_checkpoint(&self, io: &mut TaskIo, last: bool) -> Result<()> {
        let mut durable = self.checkpoint.lock();
        let mut catalog = Catalog::default();
        let (mut roots, mut flushed) = (Vec::new(), HashMap::new());
        let mut log_end = self.wal.durable();
        let dropped;
        {
            let commit = self.commit.lock();
            let end = self.wal.end();
            catalog.log_start = end;
            catalog.next = commit.next;
            let keyspaces = self.keyspaces.read();
            catalog.next_id = keyspaces.next_id;
            for state in keyspaces.by_name.values() {
                let view = state.view();
                let oldest =
                    view.heads.iter().filter_map(|h| h.first_lsn.get()).min().copied().unwrap_or(end);
                catalog.log_start = catalog.log_start.min(oldest);
                // What is in the tree was logged before the oldest message that is not.
                if durable.flushed.get(&state.id) != Some(&view.flushed) {
                    log_end = log_end.max(oldest);
                }
                flushed.insert(state.id, view.flushed);
                let operator = state.operator().map(|o| o.name().to_string());
                let operator = operator.or_else(|| keyspaces.operator_names.get(&state.id).cloned());
                catalog.entries.push(CatalogEntry {
                    id: state.id,
                    name: state.name.clone(),
                    operator: operator.unwrap_or_default(),
                    flushed: view.flushed,
                    root: NodePointer { offset: 0, len: 0, crc: 0 },
                });
                roots.push(view.root.clone());
            }
            // That a keyspace was dropped comes after all that was written before.
            dropped = durable.flushed.keys().any(|id| !flushed.contains_key(id));
            if dropped {
                log_end = end;
            }
            log_end = log_end.max(catalog.log_start);
        }
        self.sync_log(log_end)?;
        self.storage.reached("checkpoint-log-synced");
        let rows = self.remembered(&durable.rows, &flushed, dropped, last, io);
        let written = rows.and_then(|rows| {
            catalog.rows = rows.iter().map(|place| NodePointer::of(place)).collect();
            Ok((self.write_pages(&mut catalog, &roots, io)?, rows))
        });
        // Nodes know their places from here on: should a write have failed, no later checkpoint may rely on them.
        io.finish_writes().inspect_err(|error| self.poison.set(error))?;
        let (place, rows) = written?;
        self.storage.reached("checkpoint-nodes-written");
        let mut payload = Vec::new();
        NodePointer::of(&place).encode(&mut payload);
        put_varint(&mut payload, log_end.0);
        self.pager.publish(self.pager.epoch().next(), &payload)?;
        self.recall.published(&rows);
        let log_start = catalog.log_start;
        *durable = Durable { roots, catalog: Some(place.extent), rows, log_start, flushed };
        self.storage.reached("checkpoint-published");
        self.wal.trim(catalog.log_start)?;
        Counters::add(&self.counters.checkpoints, 1);
        Ok(())
    }

    /// Gives back what only work to come would use: free space of the data file, and spare log files. Failures do no harm.
    pub(crate) fn leave_little_space(&self) {
        self.pager.foresee(0);
        while self.pager.give_back(Keep::Least) > 0 {}
        self.wal.remove_spares();
    }

    /// Queues the writes of all nodes without a place and of the catalog. Where the catalog lies.
    fn write_pages(&self, catalog: &mut Catalog, roots: &[Arc<Node>], io: &mut TaskIo) -> Result<NodePlace> {
        let mut writer = PageWriter { shared: self, io };
        for (root, entry) in roots.iter().zip(&mut catalog.entries) {
            writer.place(root)?;
            if let Some(place) = root.place.get() {
                entry.root = NodePointer::of(place);
            }
        }
        writer.write(catalog.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let entry = |id, name: &str| CatalogEntry {
            id: KeyspaceId(id),
            name: name.into(),
            operator: String::new(),
            flushed: Seqno(4),
            root: NodePointer { offset: 65_536, len: 4096, crc: 7 },
        };
        let entries = vec![entry(1, "one"), entry(2, "two")];
        let rows = vec![NodePointer { offset: 1 << 20, len: 8192, crc: 9 }];
        Catalog { log_start: Lsn(9), log_end: Lsn(0), next: Seqno(5), next_id: 3, entries, rows }
    }

    #[test]
    fn a_catalog_that_contradicts_itself_is_refused() {
        assert!(Catalog::decode(&catalog().encode()).is_some());
        let refused = |change: fn(&mut Catalog)| {
            let mut catalog = catalog();
            change(&mut catalog);
            assert!(Catalog::decode(&catalog.encode()).is_none(), "{catalog:?}");
        };
        refused(|c| c.next = Seqno(0));
        refused(|c| c.next = Seqno(u64::MAX));
        refused(|c| c.next = Seqno(4));
        refused(|c| c.next_id = 2);
        refused(|c| c.entries[1].id = KeyspaceId(1));
        refused(|c| c.entries[1].name = "one".into());
    }

    /// What only memtables have need not be durable for the trees.
    #[test]
    fn a_checkpoint_syncs_the_log_as_far_as_its_trees_go() -> Result<()> {
        let disk = betree_testkit::SimStorage::new(1);
        let options = || crate::Db::builder().memory(1 << 20).background_threads(0).sync_interval(None);
        let db = options().open_on(disk.as_storage())?;
        let (one, two) = (db.keyspace("one")?, db.keyspace("two")?);
        let shared = db.shared();
        one.insert("in the tree", "1")?;
        db.checkpoint()?;
        assert_eq!(shared.wal.durable(), shared.wal.end());
        let synced = (db.stats().log_syncs, shared.wal.durable());
        two.insert("older", "2")?;
        one.insert("newer", "3")?;
        shared.checkpoint_now(false)?;
        assert_eq!((db.stats().log_syncs, shared.wal.durable()), synced, "nothing new is in a tree");

        one.state.freeze();
        one.insert("in no tree", "4")?;
        let memtable = one.state.view().heads[1].clone();
        crate::flush::flush_memtable(shared, &one.state, &memtable, &mut TaskIo::new(&shared.pager)?)?;
        shared.checkpoint_now(false)?;
        let first = one.state.view().heads[0].first_lsn.get().copied();
        assert!(first.is_some_and(|first| shared.wal.durable() >= first));
        for seed in 0..20 {
            let db = options().open_on(disk.crashed_copy(seed).as_storage())?;
            let (one, two) = (db.keyspace("one")?, db.keyspace("two")?);
            assert!(one.get("newer")?.is_some() && two.get("older")?.is_some());
            assert!(db.check()?.is_clean());
        }

        assert!(db.drop_keyspace("two")?);
        assert_eq!(shared.wal.durable(), shared.wal.end(), "what came before the drop is older");
        Ok(())
    }
}
