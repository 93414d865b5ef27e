//! Options drawn from a seed: small enough that a few hundred operations split, merge and flush on every level.

use betree::{AddI64, Append, Builder, Durability, KeyspaceOptions, Options, TreeOptions};
use betree_testkit::{Fold, Rng};

/// Names and operators of the keyspaces of every session. The last comes and goes.
pub const SPACES: [(&str, Fold); 4] =
    [("plain", Fold::None), ("count", Fold::AddI64), ("text", Fold::Append), ("brief", Fold::None)];

/// Options of one life of a database.
#[derive(Debug, Clone)]
pub struct Shape {
    /// As given to the engine.
    pub options: Options,
}

impl Shape {
    /// Tiny nodes, pages, memtables and log files.
    #[must_use]
    pub fn tiny(rng: &mut Rng) -> Self {
        let mut tree = TreeOptions::default();
        tree.fanout = rng.between(4, 8) as usize;
        tree.page_bytes = if rng.chance(0.8) { 4096 } else { 8192 };
        tree.segment_bytes = tree.page_bytes + 4096 * rng.between(1, 4) as usize;
        tree.leaf_bytes = tree.page_bytes * rng.between(1, 4) as usize;
        tree.max_runs = rng.between(1, 8) as usize;
        tree.leaf_delta_percent = [10, 50, 200][rng.index(3)];
        tree.leaf_garbage_percent = [5, 40, 1000][rng.index(3)];
        tree.filter_bits = [0, 10][rng.index(2)];
        let mut options = Options::default();
        options.memory = 1 << 20;
        let memtable = rng.between(1024, 8192) as usize;
        // Some are so large that most of what is in them is overtaken, and they are compacted in memory.
        options.memtable_bytes =
            Some(if memtable % 8 == 5 { 8 * memtable + memtable / 8 % 2 } else { memtable });
        options.durability = if rng.chance(0.25) { Durability::Sync } else { Durability::Buffered };
        options.background_threads = 0;
        options.sync_interval = None;
        options.log_file_bytes = 4096 * rng.between(1, 16);
        options.tree = tree;
        Self { options }
    }

    /// The same with the smallest leaves and nodes, and with segments so large that slices are merged on their way down and do not
    /// go by reference: the trees become high, and inner nodes are flushed into.
    #[must_use]
    pub fn deep(mut self) -> Self {
        let tree = &mut self.options.tree;
        (tree.fanout, tree.page_bytes, tree.leaf_bytes, tree.segment_bytes) = (4, 4096, 4096, 20 << 10);
        self
    }

    /// The same with background threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.background_threads = threads;
        self
    }

    /// Whether there is a row cache although such a database fits in memory. Half of the shapes.
    #[must_use]
    pub fn caches_rows(&self) -> bool {
        self.options.memtable_bytes.is_some_and(|bytes| bytes % 2 == 0)
    }

    /// A builder with the options.
    #[must_use]
    pub fn builder(&self) -> Builder {
        betree::Db::builder().options(self.options.clone())
    }

    /// Options of keyspace `index` of [`SPACES`].
    #[must_use]
    pub fn keyspace_options(index: usize) -> KeyspaceOptions {
        match SPACES[index].1 {
            Fold::None => KeyspaceOptions::new(),
            Fold::AddI64 => KeyspaceOptions::new().merge_operator(AddI64),
            Fold::Append => KeyspaceOptions::new().merge_operator(Append),
        }
    }
}
