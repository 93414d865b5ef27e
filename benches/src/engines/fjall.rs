//! fjall: no compression, journal in the operating system's buffers when the call returns.

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::engine::{Engine, RowVisitor, Session, Setup, mib, share};
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
    Ok(Box::new(Fjall { db, records, cache, memtable }))
}

impl Engine for Fjall {
    fn configuration(&self) -> String {
        format!(
            "cache {}, memtable {}, {WORKERS} workers, no compression, journal in the system's buffers (survives a killed process)",
            mib(self.cache),
            mib(self.memtable)
        )
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(FjallSession { engine: self }))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        drop(self);
        Ok(())
    }
}

struct FjallSession<'a> {
    engine: &'a Fjall,
}

impl Session for FjallSession<'_> {
    fn insert(&mut self, batch: &Batch) -> Result<()> {
        let Fjall { db, records, .. } = self.engine;
        if batch.len() == 1 {
            for (key, value) in batch.iter() {
                records.insert(key.as_slice(), value)?;
            }
            return Ok(());
        }
        let mut write = db.batch();
        for (key, value) in batch.iter() {
            write.insert(records, key.as_slice(), value);
        }
        Ok(write.commit()?)
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
