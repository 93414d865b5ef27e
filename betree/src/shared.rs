//! What all handles of one database share.
//!
//! Lock order, outermost first: `creating`, `checkpoint`, `commit`, a keyspace's change lock, the scheduler's lock. `keyspaces` is
//! taken for a moment only, under any of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use betree_pager::Pager;
use betree_storage::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use betree_storage::primitives::{Condvar, Mutex, RwLock};
use betree_storage::{DirLock, Storage};
use betree_wal::{Appender, Wal};

use crate::checkpoint::Durable;
use crate::memory::Memory;
use crate::memtable::ArenaPool;
use crate::options::Options;
use crate::pins::Pins;
use crate::poison::Poison;
use crate::pressure::Pressure;
use crate::readers::Readers;
use crate::remember::Recall;
use crate::rows::Rows;
use crate::scheduler::Scheduler;
use crate::state::State;
use crate::stats::Counters;
use crate::turns::Turns;
use crate::types::{KeyspaceId, Seqno};
use crate::{Error, Result, get};

/// What only the writer in the commit path touches.
#[derive(Debug)]
pub(crate) struct Commit {
    pub appender: Appender,
    /// Seqno of the next message.
    pub next: Seqno,
    /// Bytes of space promised and not yet charged to a memtable.
    pub allowance: u64,
    /// Bytes charged to memtables so far.
    pub spent: u64,
}

/// The keyspaces that exist.
#[derive(Debug, Default)]
pub(crate) struct Keyspaces {
    pub by_name: BTreeMap<String, Arc<State>>,
    pub by_id: HashMap<KeyspaceId, Arc<State>>,
    /// Operator names as stored, for those opened without one.
    pub operator_names: HashMap<KeyspaceId, String>,
    pub next_id: u32,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Shared {
    pub options: Options,
    /// Size at which a memtable is frozen where one keyspace is written to.
    pub memtable_bytes: usize,
    /// Memory for memtables.
    pub arenas: Arc<ArenaPool>,
    pub storage: Arc<dyn Storage>,
    pub pager: Pager,
    pub rows: Rows,
    pub recall: Recall,
    pub pins: Pins,
    pub memory: Memory,
    pub wal: Wal,
    pub commit: Mutex<Commit>,
    /// Who should ask for it.
    pub turns: Turns,
    /// Signalled when a frozen memtable was installed, or background work failed.
    pub room: Condvar,
    /// Last Seqno that readers may see.
    pub visible: AtomicU64,
    /// Bytes that flushes will take from the reserve: deletes accepted on a full device.
    pub unpaid: AtomicU64,
    pub keyspaces: RwLock<Keyspaces>,
    /// Held while a keyspace is created and while one is looked up by name: nobody is handed a keyspace (or an operator)
    /// that the durable catalog does not have, for what they log would name what recovery does not know.
    pub creating: Mutex<()>,
    /// The last durable checkpoint: keeps its extents from being reused.
    pub checkpoint: Mutex<Durable>,
    pub scheduler: Scheduler,
    pub readers: Readers,
    pub pressure: Pressure,
    pub poison: Poison,
    pub counters: Counters,
    pub closed: AtomicBool,
    pub opened: Instant,
    /// Dropped last: the lock of the directory.
    pub _lock: Box<dyn DirLock>,
}

impl Shared {
    /// All keyspaces in the order of their names.
    pub(crate) fn states(&self) -> Vec<Arc<State>> {
        self.keyspaces.read().by_name.values().cloned().collect()
    }

    /// Where point reads of a keyspace look beside a view.
    pub(crate) fn reader(&self, keyspace: KeyspaceId) -> get::Reader<'_> {
        get::Reader { pager: &self.pager, pins: &self.pins, rows: &self.rows, keyspace }
    }

    /// The last Seqno that readers may see.
    pub(crate) fn visible(&self) -> Seqno {
        Seqno(self.visible.load(Ordering::Acquire))
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Most frozen memtables of a keyspace before its writers have to wait.
    pub(crate) const MAX_FROZEN: usize = 2;

    /// Bytes of log that recovery may have to read before memtables are flushed for its sake.
    pub(crate) fn log_limit(&self) -> u64 {
        (4 * self.memtable_bytes as u64).max(4 * self.options.log_file_bytes)
    }
}
