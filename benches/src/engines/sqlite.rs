//! SQLite through rusqlite: a `WITHOUT ROWID` table, write-ahead log, synchronous NORMAL, no memory map.
//!
//! The log is checkpointed at 64 MiB instead of the default 4 MB: random inserts touch many pages, and a longer log
//! writes each of them back less often and syncs less often, so it favours SQLite.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use crate::engine::{CommitDurability, Engine, RowVisitor, Session, Setup, mib, promise, share};
use crate::record::{Batch, Key};

const CACHE_PERCENT: u64 = 50;
/// Pages of 4 KiB in the log at which a commit checkpoints it.
const CHECKPOINT_PAGES: u32 = 16_384;

struct Sqlite {
    path: PathBuf,
    cache: u64,
    durability: CommitDurability,
    /// Used for syncing and closing only; a connection is not shared by threads.
    main: Mutex<Connection>,
}

pub(crate) fn open(setup: &Setup<'_>) -> Result<Box<dyn Engine>> {
    let path = setup.dir.join("data.sqlite");
    let cache = share(setup.memory, CACHE_PERCENT) / setup.threads.max(1) as u64;
    // The main connection reads nothing, so it needs no cache of its own beside the sessions'.
    let main = connect(&path, 1 << 20, setup.durability)?;
    main.execute_batch(
        "CREATE TABLE IF NOT EXISTS records (k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID",
    )?;
    Ok(Box::new(Sqlite { path, cache, durability: setup.durability, main: Mutex::new(main) }))
}

fn connect(path: &Path, cache: u64, durability: CommitDurability) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = if durability == CommitDurability::Sync { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    // Negative: in KiB instead of pages.
    connection.pragma_update(None, "cache_size", -((cache >> 10) as i64))?;
    Ok(connection)
}

impl Engine for Sqlite {
    fn configuration(&self) -> String {
        format!(
            "SQLite {}, WITHOUT ROWID, WAL, {}, cache {} per connection, pages of 4 KiB, \
             checkpoint at {} MiB of log, no memory map",
            rusqlite::version(),
            promise(self.durability, "synchronous NORMAL (survives a killed process)"),
            mib(self.cache),
            CHECKPOINT_PAGES / 256
        )
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        let connection = connect(&self.path, self.cache, self.durability)?;
        Ok(Box::new(SqliteSession { connection, reading: false }))
    }

    fn sync(&self) -> Result<()> {
        let main = self.main.lock().map_err(|_| anyhow!("a thread panicked"))?;
        main.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        let main = self.main.into_inner().map_err(|_| anyhow!("a thread panicked"))?;
        main.close().map_err(|(_, e)| e.into())
    }
}

struct SqliteSession {
    connection: Connection,
    /// Whether a read transaction is open: one for all reads between two writes of this session.
    reading: bool,
}

impl SqliteSession {
    fn begin_reading(&mut self) -> Result<()> {
        if !self.reading {
            self.run("BEGIN DEFERRED")?;
            self.reading = true;
        }
        Ok(())
    }

    fn run(&self, statement: &str) -> Result<()> {
        self.statement(statement)?.execute([])?;
        Ok(())
    }

    fn statement(&self, statement: &str) -> Result<CachedStatement<'_>> {
        Ok(self.connection.prepare_cached(statement)?)
    }
}

impl Session for SqliteSession {
    fn insert(&mut self, batch: &Batch) -> Result<()> {
        self.renew_view()?;
        self.run("BEGIN IMMEDIATE")?;
        {
            let mut insert = self.statement("INSERT OR REPLACE INTO records (k, v) VALUES (?1, ?2)")?;
            for (key, value) in batch.iter() {
                insert.execute(params![key.as_slice(), value])?;
            }
        }
        self.run("COMMIT")
    }

    fn delete(&mut self, keys: &[Key]) -> Result<()> {
        self.renew_view()?;
        self.run("BEGIN IMMEDIATE")?;
        {
            let mut delete = self.statement("DELETE FROM records WHERE k = ?1")?;
            for key in keys {
                delete.execute(params![key.as_slice()])?;
            }
        }
        self.run("COMMIT")
    }

    fn delete_range(&mut self, start: &Key, end: &Key) -> Result<bool> {
        self.renew_view()?;
        let mut delete = self.statement("DELETE FROM records WHERE k >= ?1 AND k < ?2")?;
        delete.execute(params![start.as_slice(), end.as_slice()])?;
        Ok(true)
    }

    fn renew_view(&mut self) -> Result<()> {
        if std::mem::take(&mut self.reading) {
            self.run("COMMIT")?;
        }
        Ok(())
    }

    fn get(&mut self, key: &Key, visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.begin_reading()?;
        let mut select = self.statement("SELECT v FROM records WHERE k = ?1")?;
        let found = select.query_row(params![key.as_slice()], |row| {
            visit(row.get_ref(0)?.as_blob()?);
            Ok(())
        });
        Ok(found.optional()?.is_some())
    }

    fn scan(&mut self, start: &[u8], limit: u64, visit: RowVisitor<'_>) -> Result<u64> {
        self.begin_reading()?;
        let mut select = self.statement("SELECT k, v FROM records WHERE k >= ?1 ORDER BY k LIMIT ?2")?;
        let mut rows = select.query(params![start, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            visit(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?)?;
            count += 1;
        }
        Ok(count)
    }
}
