//! fjall: no compression, journal in the operating system's buffers when the call returns.

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::engine::{CommitDurability, Engine, RowVisitor, Session, Setup, mib, promise, share};
use crate::record::{Batch, Key};

const CACHE_PERCENT: u64 = 45;
const MEMTABLE_PERCENT: u64 = 13;
const JOURNAL_PERCENT: u64 = 50;
const WORKERS: usize = 2;

struct Fjall {
    db: Database,
    records: Keyspace,
    cache: u64,
    memtable: u64,
    durability: CommitDurability,
}

pub(crate) fn open(setup: &Setup<'_>) -> Result<Box<dyn Engine>> {
    let cache = share(setup.memory, CACHE_PERCENT);
    let memtable = share(setup.memory, MEMTABLE_PERCENT).min(64 << 20);
    let db = Database::builder(setup.dir)
        .cache_size(cache)
        .worker_threads(WORKERS)
        // The engine refuses journals below 64 MiB.
        .max_journaling_size(share(setup.memory, JOURNAL_PERCENT).max(64 << 20))
        .open()?;
    let records = db.keyspace("records", || KeyspaceCreateOptions::default().max_memtable_size(memtable))?;
    Ok(Box::new(Fjall { db, records, cache, memtable, durability: setup.durability }))
}

impl Engine for Fjall {
    fn configuration(&self) -> String {
        format!(
            "cache {}, memtable {}, {WORKERS} workers, no compression, {}",
            mib(self.cache),
            mib(self.memtable),
            promise(self.durability, "journal in the system's buffers (survives a killed process)")
        )
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(FjallSession { engine: self }))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn settle(&self) -> Result<bool> {
        self.records.rotate_memtable_and_wait()?;
        self.records.major_compact()?;
        Ok(true)
    }

    fn close(self: Box<Self>) -> Result<()> {
        drop(self);
        Ok(())
    }
}

struct FjallSession<'a> {
    engine: &'a Fjall,
}

impl FjallSession<'_> {
    /// What a commit owes beside its own call.
    fn persist(&self) -> Result<()> {
        match self.engine.durability {
            CommitDurability::Buffered => Ok(()),
            CommitDurability::Sync => Ok(self.engine.db.persist(PersistMode::SyncData)?),
        }
    }
}

impl Session for FjallSession<'_> {
    fn insert(&mut self, batch: &Batch) -> Result<()> {
        let Fjall { db, records, .. } = self.engine;
        if batch.len() == 1 {
            for (key, value) in batch.iter() {
                records.insert(key.as_slice(), value)?;
            }
            return self.persist();
        }
        let mut write = db.batch();
        for (key, value) in batch.iter() {
            write.insert(records, key.as_slice(), value);
        }
        write.commit()?;
        self.persist()
    }

    fn delete(&mut self, keys: &[Key]) -> Result<()> {
        let Fjall { db, records, .. } = self.engine;
        if let [key] = keys {
            records.remove(key.as_slice())?;
            return self.persist();
        }
        let mut write = db.batch();
        for key in keys {
            write.remove(records, key.as_slice());
        }
        write.commit()?;
        self.persist()
    }

    fn get(&mut self, key: &Key, visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.engine.records.get(key)?;
        if let Some(value) = &value {
            visit(value);
        }
        Ok(value.is_some())
    }

    fn scan(&mut self, start: &[u8], limit: u64, visit: RowVisitor<'_>) -> Result<u64> {
        let mut rows = 0;
        let mut iter = self.engine.records.range(start..);
        while rows < limit
            && let Some(row) = iter.next()
        {
            let (key, value) = row.into_inner()?;
            visit(&key, &value)?;
            rows += 1;
        }
        Ok(rows)
    }
}
