//! Rows that outlive the process: what the row cache holds when a database is closed is there again after it is opened, so that a skewed read
//! load does not begin from nothing.
//!
//! The last checkpoint writes rows, those that were read most lately first, in blocks that the catalog points to. They are copies: who loses them
//! loses time. A row says as of which Seqno it is (`row.as_of`), and leaves say on disk up to where deletes may have vanished, so a row holds for
//! every later state of the tree as it does in memory: checkpoints after this one only point to the same blocks, and neither writers nor recovery
//! have to know of them. Only rows as of a Seqno that the checkpoint's trees have are written: what a crash takes back is in none (`rows.in_their_trees`).
//!
//! Blocks are read in the background once keys are read, as far as the row cache has room. Cost: a sequential write when closing and a sequential read after
//! opening, of a 16th of the data or a third of the memory budget at most.
//!
//! ```text
//! rows block: header of a node with page type 5 | body | zeros
//! body := row*        row := keyspace | at | credit u8 | bytes(key) | bytes(value)     (numbers are varints unless said)
//! ```
//!
//! Called by `checkpoint`, `scheduler`, `recovery`, `check`. The blocks still to be read are under a mutex under which nothing else is locked.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use betree_pager::BLOCK;
use betree_storage::AlignedBuf;
use betree_storage::primitives::Mutex;

use crate::Result;
use crate::checkpoint::PageWriter;
use crate::message::{get_varint, put_varint};
use crate::node::NodePlace;
use crate::node_codec::{get_bytes, get_u8, put_bytes};
use crate::rows::Row;
use crate::shared::Shared;
use crate::stored::HEADER;
use crate::task_io::TaskIo;
use crate::types::{KeyspaceId, Seqno};

/// Page type of rows blocks.
pub(crate) const TYPE_ROWS: u8 = 5;
/// Most bytes of a block.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks whose writes are in flight together.
const TOGETHER: usize = 4;
/// Rows take at most this part of the memory budget, and of the data, and so many bytes.
const MEMORY_PART: u64 = 3;
const DATA_PART: u64 = 16;
const MOST_BYTES: u64 = 256 << 20;
/// Rows are remembered if at least this part of the point reads found one.
const WORTH: u64 = 16;

/// Lays rows out in blocks.
pub(crate) struct Blocks {
    open: Vec<u8>,
    pub full: Vec<Vec<u8>>,
}

impl Blocks {
    pub(crate) fn new() -> Blocks {
        Blocks { open: vec![0; HEADER], full: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: &Row<'_>) {
        // Four varints take at most forty bytes.
        if self.open.len() + 40 + row.key.len() + row.value.len() > BLOCK_BYTES {
            self.close();
        }
        put_varint(&mut self.open, u64::from(row.keyspace.0));
        put_varint(&mut self.open, row.at.0);
        self.open.push(row.credit);
        put_bytes(&mut self.open, row.key);
        put_bytes(&mut self.open, row.value);
    }

    pub(crate) fn close(&mut self) {
        if self.open.len() == HEADER {
            return;
        }
        let mut block = std::mem::replace(&mut self.open, vec![0; HEADER]);
        block[4] = TYPE_ROWS;
        let body = (block.len() - HEADER) as u32;
        block[8..12].copy_from_slice(&body.to_le_bytes());
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        self.full.push(block);
    }
}

/// The rows of a block whose checksums were verified. `None`: it does not decode.
pub(crate) fn decode(page: &[u8]) -> Option<Vec<Row<'_>>> {
    let reserved = page.get(5..8)?.iter().chain(page.get(12..HEADER)?);
    if *page.get(4)? != TYPE_ROWS || reserved.into_iter().any(|&b| b != 0) {
        return None;
    }
    let body = u32::from_le_bytes(page.get(8..12)?.try_into().ok()?) as usize;
    let mut input = page.get(HEADER..HEADER.checked_add(body)?)?;
    let mut rows = Vec::new();
    while !input.is_empty() {
        rows.push(Row {
            keyspace: KeyspaceId(u32::try_from(get_varint(&mut input)?).ok()?),
            at: Seqno(get_varint(&mut input)?),
            credit: get_u8(&mut input)?,
            key: get_bytes(&mut input)?,
            value: get_bytes(&mut input)?,
        });
    }
    Some(rows)
}

/// Names what is wrong with a block, where keyspaces have these messages in their trees.
pub(crate) fn fault(page: &[u8], flushed: &HashMap<KeyspaceId, Seqno>) -> Option<String> {
    let Some(rows) = decode(page) else { return Some("page.sealed: it does not decode".into()) };
    let wrong = |row: &&Row<'_>| flushed.get(&row.keyspace).is_none_or(|&flushed| row.at > flushed);
    rows.iter().find(wrong).map(|row| {
        format!(
            "rows.in_their_trees: a row of keyspace {} as of {}, which its tree does not have",
            row.keyspace.0, row.at
        )
    })
}

/// Blocks that a checkpoint points to.
pub(crate) type Remembered = Arc<[Arc<NodePlace>]>;

fn bytes_of(blocks: &Remembered) -> u64 {
    blocks.iter().map(|block| u64::from(block.len)).sum()
}

/// Blocks that were not read since the database was opened.
#[derive(Debug, Default)]
pub(crate) struct Recall {
    blocks: Mutex<VecDeque<Arc<NodePlace>>>,
    bytes: AtomicUsize,
    rows: AtomicU64,
    /// Bytes of all blocks that the durable checkpoint points to.
    on_disk: AtomicU64,
}

impl Recall {
    /// For a checkpoint that points to these; all of them are to be read, or none.
    pub(crate) fn new(blocks: &Remembered, wanted: bool) -> Recall {
        let recall = Recall { on_disk: AtomicU64::new(bytes_of(blocks)), ..Recall::default() };
        if wanted {
            recall.blocks.lock().extend(blocks.iter().cloned());
            recall.bytes.store(bytes_of(blocks) as usize, Relaxed);
        }
        recall
    }

    /// The durable checkpoint points to these now. If they were forgotten their space is not kept.
    pub(crate) fn published(&self, blocks: &Remembered) {
        self.on_disk.store(bytes_of(blocks), Relaxed);
        if blocks.is_empty() {
            self.give_up();
        }
    }

    /// Bytes of all blocks that the durable checkpoint points to.
    pub(crate) fn on_disk(&self) -> u64 {
        self.on_disk.load(Relaxed)
    }

    /// Bytes of the blocks still to be read.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Rows that were read.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Relaxed)
    }

    fn next(&self) -> Option<Arc<NodePlace>> {
        let mut blocks = self.blocks.lock();
        let next = blocks.pop_front();
        self.bytes.store(blocks.iter().map(|block| block.len as usize).sum(), Relaxed);
        next
    }

    fn give_up(&self) {
        self.blocks.lock().clear();
        self.bytes.store(0, Relaxed);
    }
}

impl Shared {
    /// The blocks that a checkpoint of trees with these messages points to: new ones if it is the last and they are worth it, or those of `before`.
    pub(crate) fn remembered(
        &self,
        before: &Remembered,
        flushed: &HashMap<KeyspaceId, Seqno>,
        dropped: bool,
        last: bool,
        io: &mut TaskIo,
    ) -> Result<Remembered> {
        // On a full device there is better use for the space.
        if !self.options.remember_rows || self.scheduler.squeezing() {
            return Ok(Remembered::default());
        }
        let live = self.pager.allocated_bytes();
        let (rows, gets) = (self.rows.stats(), self.counters.gets.load(Relaxed));
        let worth = rows.rows > 0 && rows.hits * WORTH >= gets && self.recall.bytes() == 0;
        if last && worth {
            let most = (self.options.memory as u64 / MEMORY_PART).min(live / DATA_PART).min(MOST_BYTES);
            return self.write_rows(most as usize, flushed, io);
        }
        // Rows of a keyspace that is gone are of no use, and others are not worth any space.
        let stay = !dropped && bytes_of(before) <= live / DATA_PART * 2;
        Ok(if stay { before.clone() } else { Remembered::default() })
    }

    /// Queues the writes of blocks with rows of `most` bytes; as many as there is space for.
    fn write_rows(
        &self,
        most: usize,
        flushed: &HashMap<KeyspaceId, Seqno>,
        io: &mut TaskIo,
    ) -> Result<Remembered> {
        let mut places = Vec::new();
        let mut blocks = Blocks::new();
        for shard in 0..self.rows.shards() {
            self.rows.visit(shard, most / self.rows.shards(), &mut |row| {
                if flushed.get(&row.keyspace).is_some_and(|&flushed| row.at <= flushed) {
                    blocks.push(&row);
                }
            });
            if shard + 1 == self.rows.shards() {
                blocks.close();
            }
            for block in blocks.full.drain(..) {
                match (PageWriter { shared: self, io }).write_optional(block)? {
                    Some(place) => places.push(Arc::new(place)),
                    None => return Ok(places.into()),
                }
                if places.len() % TOGETHER == 0 {
                    io.finish_writes()?;
                }
            }
        }
        Ok(places.into())
    }

    /// Reads remembered rows into the row cache, as long as there is room and `pauses` does not say otherwise. What cannot be read
    /// is left to the checker: the same is in the tree.
    pub(crate) fn recall_rows(&self, io: &mut TaskIo, pauses: impl Fn() -> bool) {
        while !pauses()
            && let Some(place) = self.recall.next()
        {
            let page = io.read_whole(&place.extent).and_then(|page| {
                self.pager.verify(&page, place.extent.offset(), place.crc)?;
                Ok(page)
            });
            let room = page.is_ok_and(|page| {
                let room = self.recall_block(&page);
                io.recycle(page);
                room
            });
            if !room {
                self.recall.give_up();
            }
        }
    }

    /// Whether there may be room for more.
    fn recall_block(&self, page: &AlignedBuf) -> bool {
        let Some(mut rows) = decode(page) else { return false };
        let states = self.keyspaces.read();
        let known: HashMap<KeyspaceId, Seqno> =
            states.by_id.iter().map(|(&id, state)| (id, state.peek().flushed)).collect();
        drop(states);
        rows.retain(|row| known.get(&row.keyspace).is_some_and(|&flushed| row.at <= flushed));
        let taken = self.rows.recall(&rows);
        self.recall.rows.fetch_add(taken, Relaxed);
        taken > 0 || rows.is_empty()
    }
}
