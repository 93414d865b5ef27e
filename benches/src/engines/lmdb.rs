//! LMDB through heed: a 64 GiB map, `MDB_NOSYNC`, no read-ahead where access is random.
#![allow(unsafe_code, reason = "opening an environment, and its NOSYNC flag, are unsafe calls of heed")]

use std::ops::Bound;

use anyhow::{Result, anyhow};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};

use crate::engine::{CommitDurability, Engine, Purpose, RowVisitor, Session, Setup, promise};
use crate::record::{Batch, Key};

const MAP_BYTES: usize = 64 << 30;

struct Lmdb {
    env: Env<WithoutTls>,
    records: Database<Bytes, Bytes>,
    read_ahead: bool,
    durability: CommitDurability,
}

pub(crate) fn open(setup: &Setup<'_>) -> Result<Box<dyn Engine>> {
    let read_ahead = setup.purpose == Purpose::Scans;
    let mut flags = EnvFlags::empty();
    if setup.durability == CommitDurability::Buffered {
        flags |= EnvFlags::NO_SYNC;
    }
    if !read_ahead {
        flags |= EnvFlags::NO_READ_AHEAD;
    }
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_BYTES).max_readers(128);
    // SAFETY: NOSYNC gives up consistency after a crash of the machine only; after one, the comparison starts anew with an
    // empty directory and never opens what was left.
    unsafe { options.flags(flags) };
    // SAFETY: the directory belongs to this run alone, and the parent process starts one child at a time, so nobody else
    // maps, truncates or writes the file while it is mapped here.
    let env = unsafe { options.open(setup.dir)? };
    let mut create = env.write_txn()?;
    let records = env.create_database(&mut create, None)?;
    create.commit()?;
    Ok(Box::new(Lmdb { env, records, read_ahead, durability: setup.durability }))
}

impl Engine for Lmdb {
    fn configuration(&self) -> String {
        let version = heed::lmdb_version();
        format!(
            "liblmdb {}.{}.{}, map {} GiB, {}, {}read-ahead, all memory as page cache",
            version.major,
            version.minor,
            version.patch,
            MAP_BYTES >> 30,
            promise(self.durability, "NOSYNC (survives a killed process)"),
            if self.read_ahead { "" } else { "no " }
        )
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(LmdbSession { engine: self, reader: None }))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Lmdb { env, .. } = *self;
        env.prepare_for_closing().wait();
        Ok(())
    }
}

struct LmdbSession<'a> {
    engine: &'a Lmdb,
    /// One read transaction for all reads between two writes of this session.
    reader: Option<RoTxn<'a, WithoutTls>>,
}

impl<'a> LmdbSession<'a> {
    fn reader(&mut self) -> Result<&RoTxn<'a, WithoutTls>> {
        if self.reader.is_none() {
            self.reader = Some(self.engine.env.read_txn()?);
        }
        self.reader.as_ref().ok_or_else(|| anyhow!("no reader"))
    }
}

impl Session for LmdbSession<'_> {
    fn insert(&mut self, batch: &Batch) -> Result<()> {
        self.reader = None;
        let mut write = self.engine.env.write_txn()?;
        for (key, value) in batch.iter() {
            self.engine.records.put(&mut write, key.as_slice(), value)?;
        }
        Ok(write.commit()?)
    }

    fn delete(&mut self, keys: &[Key]) -> Result<()> {
        self.reader = None;
        let mut write = self.engine.env.write_txn()?;
        for key in keys {
            self.engine.records.delete(&mut write, key.as_slice())?;
        }
        Ok(write.commit()?)
    }

    fn delete_range(&mut self, start: &Key, end: &Key) -> Result<bool> {
        self.reader = None;
        let mut write = self.engine.env.write_txn()?;
        let bounds = (Bound::Included(start.as_slice()), Bound::Excluded(end.as_slice()));
        self.engine.records.delete_range(&mut write, &bounds)?;
        write.commit()?;
        Ok(true)
    }

    fn renew_view(&mut self) -> Result<()> {
        self.reader = None;
        Ok(())
    }

    fn get(&mut self, key: &Key, visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let records = self.engine.records;
        let value = records.get(self.reader()?, key.as_slice())?;
        if let Some(value) = value {
            visit(value);
        }
        Ok(value.is_some())
    }

    fn scan(&mut self, start: &[u8], limit: u64, visit: RowVisitor<'_>) -> Result<u64> {
        let records = self.engine.records;
        let mut rows = 0;
        // LMDB has no empty keys, so an empty start means the first key.
        let bounds = if start.is_empty() {
            (Bound::Unbounded, Bound::Unbounded)
        } else {
            (Bound::Included(start), Bound::Unbounded)
        };
        let mut iter = records.range(self.reader()?, &bounds)?;
        while rows < limit
            && let Some(row) = iter.next()
        {
            let (key, value) = row?;
            visit(key, value)?;
            rows += 1;
        }
        Ok(rows)
    }
}
