//! Options, as prose with the trade-off behind each.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use betree_storage::Storage;
use serde::{Deserialize, Serialize};

use crate::check::{CheckReport, Progress, offline};
use crate::operator::MergeOperator;
use crate::salvage::{self, SalvageReport};
use crate::{Db, Result};

/// When a write that returned survives what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When the write returns, it survives a killed process; a background sync (see [`Options::sync_interval`]) bounds
    /// what power loss can take.
    #[default]
    Buffered,
    /// When the write returns, it survives power loss. Concurrent writers share one sync.
    Sync,
    /// Not logged: survives from the next checkpoint on. Fastest, for loads that can be repeated.
    None,
}

/// Options of a database, the same for every keyspace in it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The budget in bytes for what the database keeps in memory: memtables, page cache and the buffers of background
    /// work. Default 512 MiB, at least 1 MiB. More memory means fewer device reads and larger, rarer flushes.
    /// The log's mapped files (about two [`Options::log_file_bytes`]) come on top, in the operating system's page cache.
    pub memory: usize,
    /// Size at which a memtable is frozen. Default: a fifth of `memory`, at most 128 MiB, divided by the number of keyspaces that are written
    /// to at the time. Larger memtables lower write amplification, and lengthen recovery. Up to two frozen ones wait for background work beside the active one.
    /// One that is overtaken by a third is compacted in memory first, and is flushed when half of this size is left.
    pub memtable_bytes: Option<usize>,
    /// What a write promises when nothing else is said. Default [`Durability::Buffered`].
    pub durability: Durability,
    /// Longest time before a `Buffered` write is synced to the device in the background. Default 1 s; `None`
    /// leaves it to checkpoints.
    pub sync_interval: Option<Duration>,
    /// Threads for flushes, compactions and checkpoints. Default: 2. With 0 there are none: work is then done by calls of
    /// [`Db::run_background`] and by writers that have reached the hard limit; meant for tests and simulations.
    pub background_threads: usize,
    /// Size of a log file. Default 16 MiB. Smaller files are recycled sooner.
    /// While writers are at full speed, up to 128 MiB of files that are not needed at the moment are kept for recycling; they are removed when writing rests.
    pub log_file_bytes: u64,
    /// Whether a missing database is created. Default true.
    pub create_if_missing: bool,
    /// Use plain reads and writes instead of io_uring. Default false: io_uring where the kernel lets us.
    pub portable_io: bool,
    /// Whether a thread that waits for a page of a get or scan may keep its processor instead of sleeping, where that is measured to be faster by a tenth (in
    /// virtual machines that halt by a fifth to a third). Default true. At most half of the processors are used so, or two of two or three, and none while more threads
    /// read than there are processors or background work is under way. Where processors are shared with others or power counts, false. With io_uring only.
    pub busy_wait: bool,
    /// Whether popular rows survive closing. Default true: [`Db::close`] writes rows of the row cache to the data file, those that were read most lately first, if point reads have found
    /// use for it: at most a third of `memory`, a 16th of the data and 256 MiB; when keys are read after opening, they are read in the background. If false, none are written, read
    /// or kept.
    pub remember_rows: bool,
    /// How the keyspaces are shaped that do not say otherwise.
    pub tree: TreeOptions,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            memory: 512 << 20,
            memtable_bytes: None,
            durability: Durability::Buffered,
            sync_interval: Some(Duration::from_secs(1)),
            background_threads: 2,
            log_file_bytes: 16 << 20,
            create_if_missing: true,
            portable_io: false,
            busy_wait: true,
            remember_rows: true,
            tree: TreeOptions::default(),
        }
    }
}

/// The shape of a keyspace's tree. Recorded nowhere: a tree takes new values as its nodes are rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TreeOptions {
    /// Most children of a node (F ≈ B^ε: the ε of the Bε-tree). Default 64. A larger fanout makes the tree flatter and reads
    /// cheaper, and each flush smaller.
    pub fanout: usize,
    /// Size to which leaves are cut, in bytes. Default 4 MiB, and at most a 24th of the memory budget (or 512 KiB). Larger leaves mean less trunk memory and larger compactions.
    pub leaf_bytes: usize,
    /// Most runs a child may have waiting in its parent's buffer, and most delta runs of a leaf (K). Default 10; where they overwrite what is in a leaf, a tenth
    /// fewer may wait for it. More runs lower write amplification; a cold read of an absent key asks one filter for each.
    pub max_runs: usize,
    /// A leaf is compacted when its delta runs exceed this share of its base, in percent. Default 150. Larger means less
    /// write amplification, and more runs to look at.
    pub leaf_delta_percent: usize,
    /// A leaf is compacted when what its delta runs overwrite or delete, and what is to become one of them probably does, exceeds this share of its base,
    /// in percent (a quarter more or less, so that not all come due together). Default 24: data that is overwritten all over has no delta runs. Larger means
    /// less write amplification of overwrites and deletes, and more space while writing goes on; when nothing was written for two seconds, what is
    /// above 10 percent is given back.
    pub leaf_garbage_percent: usize,
    /// Size of a data page in bytes, a multiple of 4096. Default 4096. Larger pages read more per cold get and
    /// make scans and compaction a little cheaper.
    pub page_bytes: usize,
    /// Size to which runs are cut into segments (the unit of allocation), in bytes. Default 2 MiB, and at most a 64th of the
    /// memory budget (or 256 KiB). In buffers of nodes segments end where a leaf does, from an eighth of it on: a segment keeps its space
    /// until all leaves have taken what is in it for them.
    pub segment_bytes: usize,
    /// Bits of filter per key. Default 20: in about 0.03 % of the cases a run is searched in vain for a key that it
    /// does not have, with 16 in 0.1 %. 0 means no filter. More bits take memory from the cache. Where filters of so many bits would take more than two fifths of the memory budget, new ones
    /// have fewer, down to 8: filters that are not in memory cost more reads than they save.
    pub filter_bits: usize,
}

impl Default for TreeOptions {
    fn default() -> Self {
        TreeOptions {
            fanout: 64,
            leaf_bytes: 4 << 20,
            max_runs: 10,
            leaf_delta_percent: 150,
            leaf_garbage_percent: 24,
            page_bytes: 4096,
            segment_bytes: 2 << 20,
            filter_bits: 20,
        }
    }
}

impl TreeOptions {
    /// The same, with leaves and segments no larger than the buffers of background work may be within a budget of `memory` bytes: a
    /// worker has several segments in flight, and as many pieces of a leaf as it merges.
    pub(crate) fn within(mut self, memory: usize) -> TreeOptions {
        self.segment_bytes = self.segment_bytes.min((memory / 64).max(256 << 10));
        self.leaf_bytes = self.leaf_bytes.min((memory / 24).max(512 << 10));
        self
    }
}

/// Options of one keyspace.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct KeyspaceOptions {
    /// Folds the operands of [`crate::Keyspace::merge`]. Its name is stored with the keyspace.
    pub merge_operator: Option<Arc<dyn MergeOperator>>,
    /// The shape of the tree; default: that of the database.
    pub tree: Option<TreeOptions>,
}

impl KeyspaceOptions {
    /// Default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the merge operator.
    pub fn merge_operator(mut self, operator: impl MergeOperator + 'static) -> Self {
        self.merge_operator = Some(Arc::new(operator));
        self
    }

    /// Sets the shape of the tree.
    pub fn tree(mut self, tree: TreeOptions) -> Self {
        self.tree = Some(tree);
        self
    }
}

/// Opens a database with options: `Db::builder().memory(1 << 30).open(path)`.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    pub(crate) options: Options,
    pub(crate) operators: Vec<Arc<dyn MergeOperator>>,
}

impl Builder {
    /// Starts from these options.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// See [`Options::memory`].
    pub fn memory(mut self, bytes: usize) -> Self {
        self.options.memory = bytes;
        self
    }

    /// See [`Options::memtable_bytes`].
    pub fn memtable_bytes(mut self, bytes: usize) -> Self {
        self.options.memtable_bytes = Some(bytes);
        self
    }

    /// See [`Options::durability`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// See [`Options::sync_interval`].
    pub fn sync_interval(mut self, interval: Option<Duration>) -> Self {
        self.options.sync_interval = interval;
        self
    }

    /// See [`Options::background_threads`].
    pub fn background_threads(mut self, threads: usize) -> Self {
        self.options.background_threads = threads;
        self
    }

    /// See [`Options::create_if_missing`].
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.options.create_if_missing = create;
        self
    }

    /// See [`Options::busy_wait`].
    pub fn busy_wait(mut self, busy_wait: bool) -> Self {
        self.options.busy_wait = busy_wait;
        self
    }

    /// See [`Options::remember_rows`].
    pub fn remember_rows(mut self, remember: bool) -> Self {
        self.options.remember_rows = remember;
        self
    }

    /// See [`Options::tree`].
    pub fn tree(mut self, tree: TreeOptions) -> Self {
        self.options.tree = tree;
        self
    }

    /// Makes an operator known before keyspaces are opened by name, so that recovery and background work can fold its operands. The
    /// built-in operators are always known.
    pub fn merge_operator(mut self, operator: impl MergeOperator + 'static) -> Self {
        self.operators.push(Arc::new(operator));
        self
    }

    /// Opens (or creates) the database in the directory `path`.
    ///
    /// # Errors
    /// [`crate::Error::Locked`] if another process has it open; [`crate::Error::Corrupt`] with the place if what lies
    /// there cannot be trusted; [`crate::Error::InvalidOption`] names an option out of its limits.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Db> {
        Db::open_with(path.as_ref(), self)
    }

    /// Opens (or creates) the database on another storage, such as a simulated disk.
    pub fn open_on(self, storage: Arc<dyn Storage>) -> Result<Db> {
        Db::open_on(storage, self)
    }

    /// Checks the closed database in the directory `path` without changing anything there: superblocks, catalog, nodes, runs, pages, log.
    /// Damage that keeps it from opening is in the report like any other. Of the options only what is needed to read is used.
    ///
    /// # Errors
    /// [`crate::Error::Locked`] if it is open elsewhere; [`crate::Error::Missing`] if there is none.
    pub fn check_at(
        &self,
        path: impl AsRef<Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<CheckReport> {
        self.check_on(&*offline::storage_of(path.as_ref())?, progress)
    }

    /// As [`Builder::check_at`], on another storage.
    ///
    /// # Errors
    /// As [`Builder::check_at`].
    pub fn check_on(&self, storage: &dyn Storage, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport> {
        offline::check(storage, progress)
    }

    /// Reads everything that still verifies out of the damaged (or undamaged) database in `from` into a fresh one in `into`, and says what was
    /// lost. Nothing in `from` is changed. The builder's options and merge operators are those of the new database; keyspaces whose
    /// operator is not among them are left out.
    ///
    /// Keys outside the report's suspect ranges are exactly as they were; a key inside has a value that it once had, or is absent.
    ///
    /// # Errors
    /// [`crate::Error::Missing`] if there is no database in `from`, [`crate::Error::Locked`] if it is open, [`crate::Error::NotEmpty`] if
    /// `into` has files, [`crate::Error::Corrupt`] if not even the names of keyspaces can be found; errors of writing. What cannot be
    /// read is not an error but in the report. After an error what lies in `into` is incomplete.
    pub fn salvage(
        self,
        from: impl AsRef<Path>,
        into: impl AsRef<Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<SalvageReport> {
        salvage::salvage_at(from.as_ref(), into.as_ref(), self, progress)
    }

    /// As [`Builder::salvage`], on other storages.
    ///
    /// # Errors
    /// As [`Builder::salvage`].
    pub fn salvage_on(
        self,
        from: &dyn Storage,
        into: Arc<dyn Storage>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<SalvageReport> {
        salvage::salvage(from, || Ok(into), self, progress)
    }
}
