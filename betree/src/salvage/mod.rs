//! Salvage: everything that still verifies, out of a damaged database into a fresh one.
//!
//! `source` finds the catalogs, `trunk` walks the trees over their holes, `stream` and `fold` put the records of each leaf's range together,
//! and the log is applied on top. The damaged directory is opened to read only and locked if it can be. What is written is ordinary writes
//! of the new database, not logged, with a checkpoint at the end: memory stays within its budget, and a salvage that was interrupted is
//! repeated into another directory.
//!
//! What is promised: keys outside the suspect ranges of the report have exactly their content; a key inside has a value that it once
//! had, or is absent.

mod fold;
mod report;
mod source;
mod stream;
mod trunk;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use betree_pager::FILE_NAME;
use betree_storage::Storage;
use betree_wal::{Finding, examine};

pub use report::{Damage, KeyRange, SalvageReport, SalvagedKeyspace};

use crate::check::Progress;
use crate::check::offline::{inspector_of, log_salt, storage_of};
use crate::checkpoint::{Catalog, CatalogEntry};
use crate::message::{Kind, MessageRef, Messages, take_batch_header};
use crate::node_codec::NodePointer;
use crate::options::{Builder, Durability, KeyspaceOptions};
use crate::types::{KeyspaceId, Seqno};
use crate::{Db, Error, Keyspace, Result, WriteBatch, recovery};
use report::Losses;
use source::{Root, find_roots};
use stream::Source;
use trunk::Walk;

/// Size at which a batch is written.
const BATCH: usize = 1 << 20;

/// The new database and what is to be written to it.
struct Target {
    db: Db,
    batch: WriteBatch,
}

impl Target {
    fn write(&mut self, fill: impl FnOnce(&mut WriteBatch) -> Result<()>) -> Result<()> {
        fill(&mut self.batch)?;
        if self.batch.encoded_len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.db.write_with(&mut self.batch, Durability::None)
    }
}

/// A keyspace on its way over.
struct Passage {
    keyspace: Keyspace,
    flushed: Seqno,
    log_messages: u64,
    operands_dropped: u64,
}

/// Salvages the database in the directory `from` into the directory `into`.
pub(crate) fn salvage_at(
    from: &Path,
    into: &Path,
    builder: Builder,
    progress: &mut dyn FnMut(Progress),
) -> Result<SalvageReport> {
    let source = storage_of(from)?;
    // Before the target is made: a mistyped source leaves nothing behind.
    inspector_of(&*source)?;
    salvage(&*source, || recovery::storage_at(into, &builder.options), builder.clone(), progress)
}

/// See the module's text.
pub(crate) fn salvage(
    from: &dyn Storage,
    into: impl FnOnce() -> Result<Arc<dyn Storage>>,
    builder: Builder,
    progress: &mut dyn FnMut(Progress),
) -> Result<SalvageReport> {
    let mut losses = Losses::default();
    let _lock = match from.lock() {
        Ok(lock) => Some(lock),
        Err(error @ betree_storage::Error::Locked { .. }) => return Err(error.into()),
        Err(error) => {
            losses.report.notes.push(format!("the directory could not be locked: {error}"));
            None
        }
    };
    let mut inspector = inspector_of(from)?;
    // A newer release's file is not damaged, and what this one makes of it would be wrong.
    if let Err(error @ betree_pager::Error::UnknownVersion { .. }) = inspector.newest() {
        return Err(error.into());
    }
    let (roots, trust) = find_roots(&mut inspector, &mut losses);
    let Some(best) = roots.first() else {
        return Err(Error::Corrupt {
            file: FILE_NAME.into(),
            offset: 0,
            structure: "catalog",
            detail: "no superblock leads to a catalog that can be read, and none was found in the file: the names and roots of \
                     the keyspaces are lost"
                .into(),
        });
    };
    losses.report.source = best.origin.clone();
    let into = into()?;
    if !into.list()?.is_empty() {
        return Err(Error::NotEmpty { path: into.path() });
    }
    let operators = recovery::operators(&builder.operators);
    let db = Db::open_on(into, builder)?;
    let mut target = Target { batch: db.batch(), db };

    let total = inspector.len().unwrap_or(0);
    let mut done = 0;
    let mut passages: HashMap<KeyspaceId, Passage> = HashMap::new();
    for entry in &best.catalog.entries {
        let operator = operators.get(&entry.operator);
        if !entry.operator.is_empty() && operator.is_none() {
            let why = format!("it needs the merge operator {:?}", entry.operator);
            losses.report.left_out.push((entry.name.clone(), why));
            continue;
        }
        let options = KeyspaceOptions { merge_operator: operator.cloned(), tree: None };
        let keyspace = match target.db.keyspace_with(&entry.name, options) {
            Ok(keyspace) => keyspace,
            Err(error @ Error::InvalidKeyspace { .. }) => {
                losses.report.left_out.push((entry.name.clone(), error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut passage = Passage { keyspace, flushed: entry.flushed, log_messages: 0, operands_dropped: 0 };
        let pointers = pointers_of(&roots, entry);
        let mut source = Source::new(&inspector, &entry.name);
        let before = done;
        let mut visit = |losses: &mut Losses, low: &[u8], high: Option<&[u8]>, layers: &[trunk::Layer]| {
            let mut emit =
                |key: &[u8], value: &[u8]| target.write(|batch| batch.insert(&passage.keyspace, key, value));
            passage.operands_dropped +=
                fold::fold(&mut source, operator, layers, low, high, losses, &mut emit)?;
            done = before + source.read;
            progress(Progress { what: "data file", done, total: total.max(done) });
            Ok(())
        };
        Walk { inspector: &inspector, keyspace: &entry.name, losses: &mut losses, trust, visit: &mut visit }
            .run(&pointers)?;
        passages.insert(entry.id, passage);
    }
    target.flush()?;
    let salt = inspector.uuid().map(log_salt);
    replay(from, salt, best, &mut passages, &mut target, &mut losses, progress)?;
    finish(target, passages, losses)
}

/// The roots of a keyspace, newest first.
fn pointers_of(roots: &[Root], entry: &CatalogEntry) -> Vec<NodePointer> {
    let same = |root: &Root| root.catalog.entries.iter().find(|e| e.id == entry.id).map(|e| e.root);
    let mut pointers: Vec<_> = roots.iter().filter_map(same).collect();
    pointers.dedup();
    pointers
}

/// Applies the log above the checkpoint.
fn replay(
    from: &dyn Storage,
    salt: Option<u64>,
    root: &Root,
    passages: &mut HashMap<KeyspaceId, Passage>,
    target: &mut Target,
    losses: &mut Losses,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let mut failed = None;
    // Behind a gap any key may have lost messages.
    let mut gap = false;
    let mut read = 0;
    let Catalog { log_start, log_end, .. } = root.catalog;
    let seen = examine(from, salt, log_start, log_end, &mut |finding| {
        match finding {
        Finding::Record { .. } if failed.is_some() => {}
        Finding::Record { lsn, payload } => {
            read += payload.len() as u64;
            progress(Progress { what: "log", done: read, total: read });
            match apply(payload, passages, target, losses, gap) {
                Ok(true) => {}
                Ok(false) => {
                    gap = true;
                    losses.all_suspect();
                    losses.add(log_damage("log".into(), lsn.0, payload.len() as u64, "a batch does not decode".into()));
                }
                Err(error) => failed = Some(error),
            }
        }
        Finding::Damage { file, offset, len, lsn, what } => {
            gap = true;
            losses.all_suspect();
            let detail = format!("{what} (lsn {}); whole records behind it were applied as newer writes", lsn.0);
            losses.add(log_damage(file, offset, len, detail));
        }
        Finding::Torn { file, offset, lsn, frames } => losses.report.notes.push(format!(
            "{file} at offset {offset} (lsn {}): the log ends in what was being written ({frames} valid frames behind)",
            lsn.0
        )),
    }
    })?;
    losses.report.log_records = seen.records;
    failed.map_or_else(|| target.flush(), Err)
}

fn log_damage(file: String, offset: u64, len: u64, detail: String) -> Damage {
    Damage { structure: "log", file, offset, len, keyspace: None, range: None, messages: None, detail }
}

/// Applies one record; false if it does not decode, and then nothing of it is applied.
fn apply(
    record: &[u8],
    passages: &mut HashMap<KeyspaceId, Passage>,
    target: &mut Target,
    losses: &Losses,
    gap: bool,
) -> Result<bool> {
    let mut body = record;
    let Some((first, count)) = take_batch_header(&mut body) else { return Ok(false) };
    let mut messages = Messages::new(body);
    if messages.by_ref().count() as u64 != u64::from(count) || !messages.finished() {
        return Ok(false);
    }
    let numbered = (first.0..).zip(Messages::new(body));
    for (seqno, (id, MessageRef { kind, key, value })) in numbered {
        let Some(passage) = passages.get_mut(&id) else { continue };
        if Seqno(seqno) <= passage.flushed {
            continue;
        }
        let keyspace = &passage.keyspace;
        if kind == Kind::Merge && (gap || losses.is_suspect(keyspace.name(), key)) {
            passage.operands_dropped += 1;
            continue;
        }
        passage.log_messages += 1;
        target.write(|batch| match kind {
            Kind::Put => batch.insert(keyspace, key, value),
            Kind::Delete => batch.remove(keyspace, key),
            Kind::Merge => batch.merge(keyspace, key, value),
            Kind::RangeDelete => batch.remove_range(keyspace, key, value),
        })?;
    }
    Ok(true)
}

/// Counts what is there, makes it durable, and closes.
fn finish(target: Target, passages: HashMap<KeyspaceId, Passage>, losses: Losses) -> Result<SalvageReport> {
    let mut keyspaces = Vec::with_capacity(passages.len());
    for passage in passages.into_values() {
        let mut records = 0;
        for record in passage.keyspace.iter() {
            record?;
            records += 1;
        }
        let name = passage.keyspace.name().to_string();
        keyspaces.push(SalvagedKeyspace {
            records,
            log_messages: passage.log_messages,
            operands_dropped: passage.operands_dropped,
            suspect: losses.suspect_ranges(&name),
            name,
        });
    }
    keyspaces.sort_by(|a, b| a.name.cmp(&b.name));
    target.db.close()?;
    Ok(SalvageReport { keyspaces, ..losses.report })
}
