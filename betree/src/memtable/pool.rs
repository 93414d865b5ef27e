//! The memory of memtables that are gone, kept for the next ones.
//!
//! A memtable fills some ten thousand pages of fresh memory each time; getting them from the operating system, zeroed, and giving them back
//! costs a tenth of all CPU time of a load. Owns the idle chunks of one database. Held by every arena; locked when an arena grows
//! by a chunk and when it is dropped.
//!
//! Bounded so that memtables and idle chunks together stay within what the budget sets aside for memtables: live ones are at most
//! three per keyspace, and idle chunks make up at most two.

use betree_storage::primitives::Mutex;

use super::arena::Chunk;

/// See the module's text.
pub(crate) struct ArenaPool {
    memtable_bytes: usize,
    idle: Mutex<Vec<Chunk>>,
}

impl ArenaPool {
    /// For memtables that are frozen at `memtable_bytes`.
    pub(crate) fn new(memtable_bytes: usize) -> ArenaPool {
        ArenaPool { memtable_bytes, idle: Mutex::new(Vec::new()) }
    }

    /// Size at which memtables are frozen.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.memtable_bytes
    }

    /// A chunk of `size` bytes without content.
    pub(super) fn take(&self, size: usize) -> Chunk {
        let mut idle = self.idle.lock();
        match idle.iter().position(|chunk| chunk.size() == size) {
            Some(at) => idle.swap_remove(at),
            None => {
                drop(idle);
                Chunk::new(size)
            }
        }
    }

    /// Bytes of idle chunks.
    pub(crate) fn idle_bytes(&self) -> usize {
        self.idle.lock().iter().map(Chunk::size).sum()
    }

    /// Gives the idle chunks back to the operating system.
    pub(crate) fn release(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }

    /// Takes a chunk back that nobody reads any more.
    pub(super) fn put(&self, chunk: Chunk) {
        let mut idle = self.idle.lock();
        let held: usize = idle.iter().map(Chunk::size).sum();
        if held + chunk.size() <= 2 * self.memtable_bytes {
            idle.push(chunk.emptied());
        }
    }
}

impl std::fmt::Debug for ArenaPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArenaPool").field("memtable_bytes", &self.memtable_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_used_again_and_idle_ones_are_bounded() {
        let pool = ArenaPool::new(1 << 20);
        for _ in 0..9 {
            pool.put(Chunk::new(1 << 18));
        }
        pool.put(Chunk::new(1 << 19));
        assert_eq!(pool.idle.lock().len(), 8, "two memtables' worth");
        assert_eq!(pool.take(1 << 18).size(), 1 << 18);
        assert_eq!(pool.take(1 << 19).size(), 1 << 19);
        assert_eq!(pool.idle.lock().len(), 7);
    }
}
