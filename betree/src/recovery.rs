//! Opening a database: superblock, catalog, trunk, free map by reachability, replay of the log above the checkpoint.
//!
//! Nothing is written before everything was read. A crash during recovery changes nothing: replay only fills
//! memtables, and what it flushes is unreachable until a checkpoint publishes it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use betree_pager::Pager;
use betree_storage::primitives::atomic::{AtomicBool, AtomicU64};
use betree_storage::primitives::{Condvar, Mutex, RwLock};
use betree_storage::{Backend, DiskStorage, Storage};
use betree_wal::{Lsn, Wal};

use crate::checkpoint::{Catalog, Durable};
use crate::memory::{self, Memory};
use crate::memtable::ArenaPool;
use crate::message::{MessageRef, Messages, take_batch_header};
use crate::node::Node;
use crate::node_codec::NodeReader;
use crate::operator::{AddI64, Append, Max, MergeOperator, Min};
use crate::options::{Builder, Options};
use crate::poison::Poison;
use crate::pressure::Pressure;
use crate::readers::Readers;
use crate::remember::Recall;
use crate::rows::Rows;
use crate::scheduler::Scheduler;
use crate::shared::{Commit, Keyspaces, Shared};
use crate::state::State;
use crate::stats::Counters;
use crate::turns::Turns;
use crate::types::{KeyspaceId, Seqno};
use crate::{Error, Result};

/// Opens the directory `path` with the backend that the options name.
pub(crate) fn storage_at(path: &Path, options: &Options) -> Result<Arc<dyn Storage>> {
    if !options.create_if_missing && !path.join(betree_pager::FILE_NAME).exists() {
        return Err(Error::Missing { path: path.display().to_string() });
    }
    let backend = if options.portable_io { Backend::Portable } else { Backend::Auto };
    Ok(DiskStorage::open(path, backend)?)
}

fn refuse<T>(option: &'static str, detail: impl Into<String>) -> Result<T> {
    Err(Error::InvalidOption { option, detail: detail.into() })
}

/// Checks the options against their limits and one another; the memtable size they mean.
pub(crate) fn check_options(options: &Options) -> Result<usize> {
    if options.memory < 1 << 20 {
        return refuse("memory", format!("{} bytes is under the least of 1 MiB", options.memory));
    }
    let memtable = options.memtable_bytes.unwrap_or((options.memory / 5).min(128 << 20));
    if memtable < 1024 || memtable > options.memory / 4 {
        return refuse("memtable_bytes", format!("{memtable} is not between 1 KiB and a quarter of memory"));
    }
    check_tree(&options.tree)?;
    Ok(memtable)
}

/// Checks the shape of a tree.
pub(crate) fn check_tree(tree: &crate::TreeOptions) -> Result<()> {
    if !(4..=4096).contains(&tree.fanout) {
        return refuse("fanout", format!("{} is not between 4 and 4096", tree.fanout));
    }
    if !tree.page_bytes.is_multiple_of(4096) || !(4096..=64 << 10).contains(&tree.page_bytes) {
        return refuse("page_bytes", format!("{} is not a multiple of 4096 up to 65536", tree.page_bytes));
    }
    if tree.segment_bytes < tree.page_bytes + 4096 || tree.segment_bytes > 64 << 20 {
        return refuse("segment_bytes", format!("{} is not between a page and 64 MiB", tree.segment_bytes));
    }
    if tree.leaf_bytes < tree.page_bytes || tree.leaf_bytes > 256 << 20 {
        return refuse("leaf_bytes", format!("{} is not between a page and 256 MiB", tree.leaf_bytes));
    }
    if !(1..=1024).contains(&tree.max_runs) {
        return refuse("max_runs", format!("{} is not between 1 and 1024", tree.max_runs));
    }
    if tree.filter_bits > 64 {
        return refuse("filter_bits", format!("{} is over 64", tree.filter_bits));
    }
    Ok(())
}

/// Space in the data file for work that makes room: what one leaf's compaction takes at most (it may be half as large again as
/// the limit when it is split), the nodes of a checkpoint, and the deletes of a full memtable.
fn reserve_bytes(options: &Options, memtable: usize) -> u64 {
    let leaf = 3 * options.tree.leaf_bytes as u64;
    let least = (options.memory as u64 / 64).clamp(256 << 10, 8 << 20);
    least.max(leaf.min(64 << 20)).max((memtable as u64).min(4 << 20))
}

/// The built-in operators and those given, by name.
pub(crate) fn operators(given: &[Arc<dyn MergeOperator>]) -> HashMap<String, Arc<dyn MergeOperator>> {
    let built_in: [Arc<dyn MergeOperator>; 4] =
        [Arc::new(AddI64), Arc::new(Append), Arc::new(Max), Arc::new(Min)];
    built_in.into_iter().chain(given.iter().cloned()).map(|o| (o.name().to_string(), o)).collect()
}

/// See the module's text.
pub(crate) fn open(storage: Arc<dyn Storage>, builder: Builder) -> Result<Arc<Shared>> {
    let Builder { mut options, operators } = builder;
    let memtable_bytes = check_options(&options)?;
    options.tree = options.tree.within(options.memory);
    let operators = self::operators(&operators);

    let lock = storage.lock()?;
    let pager_options = betree_pager::Options {
        cache_bytes: memory::least_cache(options.memory, memtable_bytes),
        idle_buffer_bytes: options.memory / memory::IDLE_BUFFERS,
        create: options.create_if_missing,
        min_growth: (options.memory as u64 / 32).clamp(1 << 20, 16 << 20),
        reserve: reserve_bytes(&options, memtable_bytes),
        busy_wait: options.busy_wait,
        ..Default::default()
    };
    let (pager, superblock) = Pager::open(storage.clone(), pager_options)?;

    let arenas = Arc::new(ArenaPool::new(memtable_bytes));
    let mut keyspaces = Keyspaces { next_id: 1, ..Keyspaces::default() };
    let mut durable = Durable::default();
    let mut next = Seqno(1);
    // Known to have been durable in the log; none before the first checkpoint, when there may be no log yet.
    let mut log_end = None;
    if let Some(superblock) = superblock {
        let (catalog, extent) = Catalog::read(&pager, &superblock.payload)?;
        log_end = Some(catalog.log_end);
        let mut reader = NodeReader::new(&pager);
        for entry in catalog.entries {
            let root = reader.read(entry.root, None, b"", None)?;
            durable.roots.push(root.clone());
            let operator = match &entry.operator[..] {
                "" => None,
                name => Some(operators.get(name).cloned().ok_or_else(|| Error::MergeOperator {
                    keyspace: entry.name.clone(),
                    detail: format!(
                        "it needs the merge operator {name:?}; give it to Builder::merge_operator"
                    ),
                })?),
            };
            if operator.is_some() {
                keyspaces.operator_names.insert(entry.id, entry.operator.clone());
            }
            let state = State::new(
                entry.id,
                &entry.name,
                operator,
                options.tree,
                arenas.clone(),
                root,
                entry.flushed,
            );
            let state = Arc::new(state);
            durable.flushed.insert(entry.id, entry.flushed);
            keyspaces.by_name.insert(entry.name, state.clone());
            keyspaces.by_id.insert(entry.id, state);
        }
        keyspaces.next_id = catalog.next_id;
        next = catalog.next;
        durable.rows = catalog.rows.iter().map(|pointer| pointer.adopt(&pager)).collect::<Result<_>>()?;
        durable.catalog = Some(extent);
        durable.log_start = catalog.log_start;
        pager.finish_recovery();
    }

    let wal_options = betree_wal::Options {
        file_bytes: options.log_file_bytes,
        spare_files: 2,
        reserve_file: true,
        salt: (pager.uuid() >> 64) as u64 ^ pager.uuid() as u64,
    };
    let log_start = durable.log_start;
    storage.reached("recovery-read");
    let by_id = &keyspaces.by_id;
    let next_id = keyspaces.next_id;
    let mut replay = |lsn, record: &[u8]| {
        let last = replay(by_id, next_id, lsn, record, memtable_bytes)?;
        next = next.max(Seqno(last.0 + 1));
        Ok(())
    };
    let (wal, appender, _) = match log_end {
        Some(durable) => Wal::reopen(storage.clone(), wal_options, log_start, durable, &mut replay)?,
        None => Wal::open(storage.clone(), wal_options, log_start, &mut replay)?,
    };
    storage.reached("recovery-replayed");

    let recall = Recall::new(&durable.rows, options.remember_rows);
    let pressure = Pressure::new(memtable_bytes, &*storage);
    let shared = Arc::new(Shared {
        memtable_bytes,
        arenas,
        storage,
        pager,
        wal,
        commit: Mutex::new(Commit { appender, next, allowance: 0, spent: 0 }),
        turns: Turns::default(),
        room: Condvar::new(),
        visible: AtomicU64::new(next.0 - 1),
        unpaid: AtomicU64::new(0),
        keyspaces: RwLock::new(keyspaces),
        creating: Mutex::new(()),
        checkpoint: Mutex::new(durable),
        scheduler: Scheduler::default(),
        readers: Readers::default(),
        pressure,
        rows: Rows::new(options.memory),
        recall,
        pins: crate::pins::Pins::default(),
        memory: Memory::new(memtable_bytes),
        poison: Poison::default(),
        counters: Counters::default(),
        closed: AtomicBool::new(false),
        opened: Instant::now(),
        options,
        _lock: lock,
    });
    shared.promise_recovered();
    Ok(shared)
}

/// No Seqno from disk is above: arithmetic on them cannot overflow.
pub(crate) const MAX_SEQNO: u64 = 1 << 62;

/// Applies one record of the log to the memtables of the keyspaces that do not have it in their tree. Its last Seqno.
fn replay(
    by_id: &HashMap<KeyspaceId, Arc<State>>,
    next_id: u32,
    lsn: Lsn,
    record: &[u8],
    memtable_bytes: usize,
) -> std::result::Result<Seqno, Box<dyn std::error::Error + Send + Sync>> {
    let lie = |detail: String| {
        Box::new(Error::Corrupt { file: "log".into(), offset: lsn.0, structure: "batch", detail })
    };
    let mut body = record;
    let (first, count) = take_batch_header(&mut body).ok_or_else(|| lie("no header".into()))?;
    if first.0 == 0 || count == 0 || first.0.checked_add(u64::from(count)).is_none_or(|end| end > MAX_SEQNO) {
        return Err(lie(format!("first Seqno {first}, {count} messages")));
    }
    let mut messages = Messages::new(body);
    let mut decoded: Vec<(Seqno, KeyspaceId, MessageRef<'_>)> = Vec::new();
    for (i, (keyspace, message)) in messages.by_ref().enumerate() {
        decoded.push((Seqno(first.0 + i as u64), keyspace, message));
    }
    if !messages.finished() || decoded.len() != count as usize {
        return Err(lie(format!("{} of {count} messages decode", decoded.len())));
    }
    // A number is logged only after a catalog gave it: this one is older than the log, and the keyspace would be lost.
    if let Some((_, keyspace, _)) = decoded.iter().find(|(_, keyspace, _)| keyspace.0 >= next_id) {
        return Err(lie(format!("keyspace {} of the catalog's {next_id}", keyspace.0)));
    }
    for (seqno, keyspace, message) in decoded {
        // A keyspace that is not there any more was dropped after this was logged.
        let Some(state) = by_id.get(&keyspace) else { continue };
        let view = state.peek();
        if seqno <= view.flushed {
            continue;
        }
        if view.heads[0].table.bytes() >= memtable_bytes {
            state.freeze();
        }
        let view = state.peek();
        view.heads[0].table.apply_one(seqno, message);
        if view.heads[0].first_lsn.get().is_none() {
            let _ = view.heads[0].first_lsn.set(lsn);
        }
    }
    Ok(Seqno(first.0 + u64::from(count) - 1))
}

/// A keyspace that does not exist yet.
pub(crate) fn new_state(
    shared: &Shared,
    id: KeyspaceId,
    name: &str,
    operator: Option<Arc<dyn MergeOperator>>,
    tree: crate::TreeOptions,
    flushed: Seqno,
) -> Arc<State> {
    Arc::new(State::new(id, name, operator, tree, shared.arenas.clone(), Node::empty_root(), flushed))
}
