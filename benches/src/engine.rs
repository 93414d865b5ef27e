//! What the comparison asks of an engine, and the registry that opens one by name.
//!
//! The face is narrow on purpose: every engine is driven by the same loop, and each adapter is free to use the engine's best
//! way of doing the thing (prepared statements, one read transaction for a phase, batches).
//! Called by the phases; an [`Engine`] is shared by threads, a [`Session`] belongs to one.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::engines;
use crate::record::{Batch, Key};

/// The engines that can be named, whether or not they are built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineName {
    /// This project's Bε-tree.
    Betree,
    /// The same, which remembers no rows when it is closed.
    BetreeCold,
    /// redb, a copy-on-write B-tree.
    Redb,
    /// LMDB through heed, a memory-mapped copy-on-write B-tree.
    Lmdb,
    /// SQLite through rusqlite, a B-tree with a write-ahead log.
    Sqlite,
    /// fjall, an LSM tree.
    Fjall,
    /// RocksDB, an LSM tree.
    Rocksdb,
}

impl EngineName {
    /// All of them.
    pub const ALL: [EngineName; 7] = [
        EngineName::Betree,
        EngineName::BetreeCold,
        EngineName::Redb,
        EngineName::Lmdb,
        EngineName::Sqlite,
        EngineName::Fjall,
        EngineName::Rocksdb,
    ];

    /// The name used on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineName::Betree => "betree",
            EngineName::BetreeCold => "betree-cold",
            EngineName::Redb => "redb",
            EngineName::Lmdb => "lmdb",
            EngineName::Sqlite => "sqlite",
            EngineName::Fjall => "fjall",
            EngineName::Rocksdb => "rocksdb",
        }
    }

    /// Whether it updates pages in place of a B-tree, so that larger batches are what its users would choose.
    pub fn is_btree(self) -> bool {
        matches!(self, EngineName::Redb | EngineName::Lmdb | EngineName::Sqlite)
    }

    /// Whether this build contains it.
    pub fn is_built_in(self) -> bool {
        match self {
            EngineName::Betree | EngineName::BetreeCold => true,
            EngineName::Redb => cfg!(feature = "redb"),
            EngineName::Lmdb => cfg!(feature = "lmdb"),
            EngineName::Sqlite => cfg!(feature = "sqlite"),
            EngineName::Fjall => cfg!(feature = "fjall"),
            EngineName::Rocksdb => cfg!(feature = "rocksdb"),
        }
    }

    /// Opens (or creates) a database.
    ///
    /// # Errors
    /// What the engine says, or that it is not built in.
    pub fn open(self, setup: &Setup<'_>) -> Result<Box<dyn Engine>> {
        match self {
            EngineName::Betree => engines::betree::open(setup, true),
            EngineName::BetreeCold => engines::betree::open(setup, false),
            #[cfg(feature = "redb")]
            EngineName::Redb => engines::redb::open(setup),
            #[cfg(feature = "lmdb")]
            EngineName::Lmdb => engines::lmdb::open(setup),
            #[cfg(feature = "sqlite")]
            EngineName::Sqlite => engines::sqlite::open(setup),
            #[cfg(feature = "fjall")]
            EngineName::Fjall => engines::fjall::open(setup),
            #[cfg(feature = "rocksdb")]
            EngineName::Rocksdb => engines::rocksdb::open(setup),
            #[allow(unreachable_patterns, reason = "reached only in builds without some engine")]
            absent => bail!("{absent} is not in this build: add `--features {absent}`"),
        }
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EngineName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        EngineName::ALL.into_iter().find(|e| e.as_str() == name).ok_or_else(|| {
            let names: Vec<_> = EngineName::ALL.iter().map(|e| e.as_str()).collect();
            format!("no engine {name:?}; there are {}", names.join(", "))
        })
    }
}

/// What a database is opened for: some engines have switches that help one use and hurt another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Random inserts, or random reads.
    Points,
    /// Reading in key order.
    Scans,
}

/// What a commit promises when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CommitDurability {
    /// It does not wait for the device.
    #[default]
    Buffered,
    /// It survives power loss.
    Sync,
}

/// How to open a database.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// Its directory, which exists.
    pub dir: &'a Path,
    /// What it is opened for.
    pub purpose: Purpose,
    /// The limit in bytes for heap and page cache together. Each adapter gives the engine's own cache its usual share.
    pub memory: u64,
    /// How many sessions will be open at a time, for engines whose cache is one per session.
    pub threads: usize,
    /// The budget of betree's options, if not the usual share.
    pub betree_memory: Option<u64>,
    /// What a commit promises.
    pub durability: CommitDurability,
}

/// An open database.
pub trait Engine: Send + Sync {
    /// Its settings in words, for the report.
    fn configuration(&self) -> String;

    /// A handle for one thread.
    ///
    /// # Errors
    /// What the engine says.
    fn session(&self) -> Result<Box<dyn Session + '_>>;

    /// Makes everything that was inserted survive power loss.
    ///
    /// # Errors
    /// What the engine says.
    fn sync(&self) -> Result<()>;

    /// Merges everything the database has into its final form; `false` if the engine has no such call.
    ///
    /// # Errors
    /// What the engine says.
    fn settle(&self) -> Result<bool> {
        Ok(false)
    }

    /// The engine's own counters, if it has some.
    fn stats(&self) -> Option<serde_json::Value> {
        None
    }

    /// Closes the database; background work that the engine does at closing is waited for.
    ///
    /// # Errors
    /// What the engine says.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Called with a key and a value of a scan.
pub type RowVisitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<()>;
/// Is given the number of a read, and the value if the key is there.
pub type AnswerVisitor<'a> = &'a mut dyn FnMut(u64, Option<&[u8]>) -> Result<()>;
/// Writes records as [`Session::insert`] does.
pub type Inserter<'a> = &'a mut dyn FnMut(&Batch) -> Result<()>;
/// Gives the next key to read and the number of that read, until there is none; it may write before.
pub type Asker<'a> = &'a mut dyn FnMut(Inserter<'_>) -> Result<Option<(u64, Key)>>;

/// One thread's handle.
pub trait Session {
    /// Writes the records in one commit, with the durability that the configuration states.
    ///
    /// # Errors
    /// What the engine says.
    fn insert(&mut self, batch: &Batch) -> Result<()>;

    /// Deletes the keys in one commit.
    ///
    /// # Errors
    /// What the engine says.
    fn delete(&mut self, keys: &[Key]) -> Result<()>;

    /// Deletes every key from `start` up to, and without, `end` by one call; `false` if the engine has no such call.
    ///
    /// # Errors
    /// What the engine says.
    fn delete_range(&mut self, start: &Key, end: &Key) -> Result<bool> {
        let _ = (start, end);
        Ok(false)
    }

    /// Ends the view that the reads between two writes of this session share, if the engine has views: the next read sees what others
    /// committed meanwhile, and the engine may use the space of what they replaced.
    ///
    /// # Errors
    /// What the engine says.
    fn renew_view(&mut self) -> Result<()> {
        Ok(())
    }

    /// Calls `visit` with the value if the key is there, and says whether it was.
    ///
    /// # Errors
    /// What the engine says.
    fn get(&mut self, key: &Key, visit: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Looks up many keys at once, calling `visit` with each key's index; `false` if the engine has no such call.
    ///
    /// # Errors
    /// What the engine says.
    fn multi_get(&mut self, keys: &[Key], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<bool> {
        let _ = (keys, visit);
        Ok(false)
    }

    /// Looks up the keys that `next` gives, each on its own, with so many in flight from this thread, calling `visit` with the number that came
    /// with the key; `false` if the engine has no such call.
    ///
    /// # Errors
    /// What the engine, `next` or the visitor says.
    fn gets_in_flight(&mut self, most: usize, next: Asker<'_>, visit: AnswerVisitor<'_>) -> Result<bool> {
        let _ = (most, next, visit);
        Ok(false)
    }

    /// Visits up to `limit` rows in key order from `start` on, and returns how many there were.
    ///
    /// # Errors
    /// What the engine or the visitor says.
    fn scan(&mut self, start: &[u8], limit: u64, visit: RowVisitor<'_>) -> Result<u64>;
}

/// The given percentage of the memory limit.
pub(crate) fn share(memory: u64, percent: u64) -> u64 {
    memory / 100 * percent
}

/// What the configuration's words say of commits: `buffered` unless each is synced.
pub(crate) fn promise(durability: CommitDurability, buffered: &'static str) -> &'static str {
    match durability {
        CommitDurability::Buffered => buffered,
        CommitDurability::Sync => "every commit synced (survives power loss)",
    }
}

/// Bytes in MiB, for the configuration's words.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
