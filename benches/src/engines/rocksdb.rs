//! RocksDB: levelled, no compression, direct I/O, one cache that holds blocks, indexes, filters and memtables.

use anyhow::Result;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, CompactOptions, DB, DBCompactionStyle,
    DBCompressionType, Options, ReadOptions, WriteBatch, WriteBufferManager, WriteOptions,
};

use crate::engine::{CommitDurability, Engine, RowVisitor, Session, Setup, mib, promise, share};
use crate::record::{Batch, Key};

const CACHE_PERCENT: u64 = 80;
const MEMTABLE_PERCENT: u64 = 13;
const MEMTABLES: i32 = 3;
const JOBS: i32 = 3;

struct RocksDb {
    db: DB,
    cache: u64,
    memtable: u64,
    durability: CommitDurability,
}

pub(crate) fn open(setup: &Setup<'_>) -> Result<Box<dyn Engine>> {
    let cache_bytes = share(setup.memory, CACHE_PERCENT);
    let memtable = share(setup.memory, MEMTABLE_PERCENT).min(64 << 20);
    let cache = Cache::new_lru_cache(cache_bytes as usize);

    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    table.set_block_size(4096);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compaction_style(DBCompactionStyle::Level);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(memtable as usize);
    options.set_max_write_buffer_number(MEMTABLES);
    // The memtables are charged to the cache; the manager never stalls writers by itself.
    options
        .set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(0, false, cache));
    options.set_max_bytes_for_level_base(4 * memtable);
    options.set_target_file_size_base(64 << 20);
    options.set_max_background_jobs(JOBS);
    options.set_use_direct_reads(true);
    options.set_use_direct_io_for_flush_and_compaction(true);
    let db = DB::open(&options, setup.dir)?;
    Ok(Box::new(RocksDb { db, cache: cache_bytes, memtable, durability: setup.durability }))
}

impl Engine for RocksDb {
    fn configuration(&self) -> String {
        format!(
            "cache {} for blocks, indexes, filters and memtables, memtable {} × {MEMTABLES}, blocks of 4 KiB, Bloom 10 bits, \
             levelled, no compression, {JOBS} jobs, direct I/O, {}",
            mib(self.cache),
            mib(self.memtable),
            promise(self.durability, "log in the system's buffers (survives a killed process)")
        )
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        let mut write_options = WriteOptions::default();
        write_options.set_sync(self.durability == CommitDurability::Sync);
        Ok(Box::new(RocksSession { engine: self, write_options }))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.flush_wal(true)?)
    }

    fn settle(&self) -> Result<bool> {
        let mut options = CompactOptions::default();
        // Files of the last level are rewritten too: they may have grown apart from the levels above.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db.compact_range_opt(None::<&[u8]>, None::<&[u8]>, &options);
        Ok(true)
    }

    fn close(self: Box<Self>) -> Result<()> {
        drop(self);
        Ok(())
    }
}

struct RocksSession<'a> {
    engine: &'a RocksDb,
    write_options: WriteOptions,
}

impl Session for RocksSession<'_> {
    fn insert(&mut self, batch: &Batch) -> Result<()> {
        let db = &self.engine.db;
        if batch.len() == 1 {
            for (key, value) in batch.iter() {
                db.put_opt(key, value, &self.write_options)?;
            }
            return Ok(());
        }
        let mut write = WriteBatch::default();
        for (key, value) in batch.iter() {
            write.put(key, value);
        }
        Ok(db.write_opt(write, &self.write_options)?)
    }

    fn delete(&mut self, keys: &[Key]) -> Result<()> {
        let db = &self.engine.db;
        if let [key] = keys {
            return Ok(db.delete_opt(key, &self.write_options)?);
        }
        let mut write = WriteBatch::default();
        for key in keys {
            write.delete(key);
        }
        Ok(db.write_opt(write, &self.write_options)?)
    }

    fn delete_range(&mut self, start: &Key, end: &Key) -> Result<bool> {
        let mut write = WriteBatch::default();
        write.delete_range(start, end);
        self.engine.db.write_opt(write, &self.write_options)?;
        Ok(true)
    }

    fn get(&mut self, key: &Key, visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.engine.db.get_pinned(key)?;
        if let Some(value) = &value {
            visit(value);
        }
        Ok(value.is_some())
    }

    fn multi_get(&mut self, keys: &[Key], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<bool> {
        for (i, value) in self.engine.db.multi_get(keys).into_iter().enumerate() {
            visit(i, value?.as_deref());
        }
        Ok(true)
    }

    fn scan(&mut self, start: &[u8], limit: u64, visit: RowVisitor<'_>) -> Result<u64> {
        let mut options = ReadOptions::default();
        // Direct reads get no read-ahead from the system.
        options.set_readahead_size(if limit == u64::MAX { 2 << 20 } else { 0 });
        let mut iter = self.engine.db.raw_iterator_opt(options);
        iter.seek(start);
        let mut rows = 0;
        while rows < limit
            && let Some((key, value)) = iter.item()
        {
            visit(key, value)?;
            rows += 1;
            iter.next();
        }
        iter.status()?;
        Ok(rows)
    }
}
