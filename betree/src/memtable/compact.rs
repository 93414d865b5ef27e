//! In-memory compaction: one table of several frozen ones, without the messages that a later Put or Delete of the same key, or a later range delete, hides.
//!
//! What is left has its Seqno still, so the new table answers every reader that sees all of the old ones as they do. It is filled in the order of
//! keys: each message goes behind the last. Source of the idea: Bortnikov, Braginsky, Hillel, Keidar, Sheffi: "Accordion: Better Memory Organization
//! for LSM Key-Value Stores", VLDB 2018.
//!
//! Cost: each message of the old tables is looked at once, and what stays is copied.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Memtable;
use super::arena::Entry;
use super::cursor::Walk;
use super::pool::ArenaPool;
use super::tree::Way;
use crate::headed::head_of;
use crate::message::{Kind, MessageRef};
use crate::operator::MergeOperator;
use crate::types::Seqno;

/// The messages of a frozen table, by key and from the newest of each.
struct Source<'a> {
    table: &'a Memtable,
    walk: Walk,
    next: Option<Entry<'a>>,
}

impl<'a> Source<'a> {
    fn new(table: &'a Memtable) -> Source<'a> {
        let mut source = Source { table, walk: Walk::all(table), next: None };
        source.advance();
        source
    }

    fn advance(&mut self) {
        self.next = self.walk.next(self.table).map(|loc| self.table.arena.entry(loc));
    }
}

impl Memtable {
    /// A table of what is not hidden in `tables`, newest first; `kept` is told each message that stays. REQUIRES that nobody writes to them any more,
    /// and that each is older than all of the one before.
    pub(crate) fn compacted(
        tables: &[&Memtable],
        pool: Arc<ArenaPool>,
        operator: Option<Arc<dyn MergeOperator>>,
        kept: &mut dyn FnMut(MessageRef<'_>),
    ) -> Memtable {
        let new = Memtable::new(pool, operator);
        let mut sources: Vec<Source<'_>> = tables.iter().map(|table| Source::new(table)).collect();
        {
            let mut state = new.state.write();
            let mut len = 0;
            for table in tables.iter().rev() {
                for (seqno, start, end) in table.state.read().range_deletes.iter() {
                    kept(MessageRef { kind: Kind::RangeDelete, key: start, value: end });
                    state.range_deletes.push(seqno, start, end);
                    len += 1;
                }
            }
            let mut hidden: Option<&[u8]> = None;
            // Of equal keys the first source has the newest.
            while let Some(least) = (0..sources.len())
                .filter(|&i| sources[i].next.is_some())
                .min_by_key(|&i| sources[i].next.as_ref().map(|entry| entry.key))
                && let Some(entry) = sources[least].next
            {
                sources[least].advance();
                if hidden == Some(entry.key) {
                    continue;
                }
                let covered = state.range_deletes.newest_over(entry.key, Seqno(u64::MAX)) > Some(entry.seqno);
                if covered || entry.kind != Kind::Merge {
                    hidden = Some(entry.key);
                }
                if covered {
                    continue;
                }
                kept(entry.message());
                let loc = state.writer.push_entry(&entry);
                state.tree.insert(&new.arena, loc, entry.key, entry.seqno, &Way::End);
                new.greatest.store(head_of(entry.key), Relaxed);
                len += 1;
            }
            new.len.store(len, Relaxed);
            new.bytes.store(state.bytes(), Relaxed);
        }
        let seqnos = || tables.iter().filter_map(|table| table.seqnos());
        new.last.store(seqnos().map(|(_, last)| last.0).max().unwrap_or_default(), Relaxed);
        new.first.store(seqnos().map(|(first, _)| first.0).min().unwrap_or_default(), Relaxed);
        new
    }
}
