//! redb: `Durability::None` for the commits, with an immediate one each second, which also lets it use freed pages again.
//!
//! That is a weaker promise than betree's and SQLite's: what was committed since the last immediate commit is lost with the
//! process. redb has no level between.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition, WriteTransaction};

use crate::engine::{CommitDurability, Engine, RowVisitor, Session, Setup, mib, promise, share};
use crate::record::{Batch, Key};

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
const CACHE_PERCENT: u64 = 50;
const IMMEDIATE_EVERY: Duration = Duration::from_secs(1);

struct Redb {
    db: Database,
    cache: u64,
    durability: CommitDurability,
    last_immediate: Mutex<Instant>,
}

pub(crate) fn open(setup: &Setup<'_>) -> Result<Box<dyn Engine>> {
    let cache = share(setup.memory, CACHE_PERCENT);
    let path: &Path = &setup.dir.join("data.redb");
    let db = Database::builder().set_cache_size(cache as usize).create(path)?;
    let mut create = db.begin_write()?;
    create.set_durability(Durability::None)?;
    create.open_table(TABLE)?;
    create.commit()?;
    Ok(Box::new(Redb { db, cache, durability: setup.durability, last_immediate: Mutex::new(Instant::now()) }))
}

impl Engine for Redb {
    fn configuration(&self) -> String {
        format!(
            "cache {}, {}",
            mib(self.cache),
            promise(
                self.durability,
                "Durability::None (lost with the process) and an Immediate commit each second"
            )
        )
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(RedbSession { engine: self, reader: None }))
    }

    fn sync(&self) -> Result<()> {
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        Ok(write.commit()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        drop(self);
        Ok(())
    }
}

struct RedbSession<'a> {
    engine: &'a Redb,
    /// One read transaction for all reads between two writes of this session.
    reader: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl RedbSession<'_> {
    fn reader(&mut self) -> Result<&ReadOnlyTable<&'static [u8], &'static [u8]>> {
        if self.reader.is_none() {
            self.reader = Some(self.engine.db.begin_read()?.open_table(TABLE)?);
        }
        self.reader.as_ref().ok_or_else(|| anyhow!("no reader"))
    }
}

impl RedbSession<'_> {
    fn begin_write(&mut self) -> Result<WriteTransaction> {
        self.reader = None;
        let mut write = self.engine.db.begin_write()?;
        // The writer's lock of redb is held here, so this lock is never waited for.
        let mut last = self.engine.last_immediate.lock().map_err(|_| anyhow!("a writer panicked"))?;
        let immediate = self.engine.durability == CommitDurability::Sync || last.elapsed() >= IMMEDIATE_EVERY;
        write.set_durability(if immediate { Durability::Immediate } else { Durability::None })?;
        if immediate {
            *last = Instant::now();
        }
        Ok(write)
    }
}

impl Session for RedbSession<'_> {
    fn insert(&mut self, batch: &Batch) -> Result<()> {
        let write = self.begin_write()?;
        {
            let mut table = write.open_table(TABLE)?;
            for (key, value) in batch.iter() {
                table.insert(key.as_slice(), value)?;
            }
        }
        Ok(write.commit()?)
    }

    fn delete(&mut self, keys: &[Key]) -> Result<()> {
        let write = self.begin_write()?;
        {
            let mut table = write.open_table(TABLE)?;
            for key in keys {
                table.remove(key.as_slice())?;
            }
        }
        Ok(write.commit()?)
    }

    fn delete_range(&mut self, start: &Key, end: &Key) -> Result<bool> {
        let write = self.begin_write()?;
        write.open_table(TABLE)?.retain_in(start.as_slice()..end.as_slice(), |_, _| false)?;
        write.commit()?;
        Ok(true)
    }

    fn renew_view(&mut self) -> Result<()> {
        self.reader = None;
        Ok(())
    }

    fn get(&mut self, key: &Key, visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.reader()?.get(key.as_slice())?;
        if let Some(value) = &value {
            visit(value.value());
        }
        Ok(value.is_some())
    }

    fn scan(&mut self, start: &[u8], limit: u64, visit: RowVisitor<'_>) -> Result<u64> {
        let mut rows = 0;
        let mut iter = self.reader()?.range(start..)?;
        while rows < limit
            && let Some(row) = iter.next()
        {
            let (key, value) = row?;
            visit(key.value(), value.value())?;
            rows += 1;
        }
        Ok(rows)
    }
}
