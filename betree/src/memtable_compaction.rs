//! In-memory compaction: what was overtaken leaves a memtable before it is flushed, so that keys that are written again and again neither take memory
//! from the caches nor cost a flush each time.
//!
//! An active memtable that has grown to an eighth of the size at which memtables are frozen, a third of it overtaken, is frozen and becomes, with
//! the one that rests from before, one memtable without what is overtaken ([`View::due`](crate::view::View::due)). That one rests until it has half the size, or
//! something else has the memtables flushed: a full active one, a checkpoint, the length of the log, a full device. Messages that nobody overtakes are not
//! looked at again, and cost their writers nothing.
//!
//! Why nobody misses what is gone: as with a flush, the view that lacks it is published after everything in the frozen memtables was visible, so each
//! reader of it sees the message that hides it; readers from before, snapshots too, keep their view with the old memtables. What a range delete
//! covers goes as well, and the range delete stays for what is below. The new memtable keeps the part of the log from the oldest message on (`log.covers_checkpoint`).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::room::length;
use crate::shared::Shared;
use crate::state::State;
use crate::stats::Counters;
use crate::view::Head;

/// What was compacted rests while it has less than this part of the size at which memtables are frozen.
const RESTING_PART: usize = 2;

impl Shared {
    /// Makes one of the frozen memtables `olds`, newest first.
    pub(crate) fn compact_memtables(&self, state: &Arc<State>, olds: &[Arc<Head>]) {
        let bytes: usize = olds.iter().map(|head| head.table.bytes()).sum();
        let overtaken: usize = olds.iter().map(|head| head.table.overtaken()).sum();
        self.memory.set_compacting(bytes.saturating_sub(overtaken));
        let mut cost = 0;
        let new = state.compacted(olds, &mut |message| {
            let bytes = message.key.len() + message.value.len();
            cost += state.flush_cost.of(length(message), bytes as u64, 1);
        });
        if let Some(&first) = olds.iter().filter_map(|head| head.first_lsn.get()).min() {
            let _ = new.first_lsn.set(first);
        }
        new.unlogged.store(olds.iter().any(|head| head.unlogged.load(Relaxed)), Relaxed);
        let left = new.table.bytes();
        let rests = left < self.memory.memtable_limit() / RESTING_PART && !self.scheduler.squeezing();
        let new = Arc::new(new);
        self.pass_charge(olds, &new, cost);
        state.install_compacted(olds, new.clone(), rests);
        self.memory.set_compacting(0);
        if state.is_dropped() {
            // What the drop found in the view may have been the old ones.
            self.discharge(&new);
        }
        Counters::add(&self.counters.memtable_compactions, 1);
        Counters::add(&self.counters.overtaken_bytes, bytes.saturating_sub(left) as u64);
        self.storage.reached("memtables-compacted");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use betree_testkit::SimStorage;

    use crate::view::Frozen;
    use crate::{Append, Builder, Db, Keyspace, KeyspaceOptions, Result};

    fn builder() -> Builder {
        Db::builder().memory(8 << 20).memtable_bytes(64 << 10).background_threads(0)
    }

    fn open(disk: &Arc<SimStorage>) -> Result<(Db, Keyspace)> {
        let db = builder().open_on(disk.as_storage())?;
        let keyspace = db.keyspace_with("records", KeyspaceOptions::new().merge_operator(Append))?;
        Ok((db, keyspace))
    }

    /// Writes fifty keys over and over, as often as `rounds` says, and lets background work go on.
    fn overwrite(db: &Db, keyspace: &Keyspace, rounds: u32) -> Result<()> {
        for round in 0..rounds {
            for n in 0..50u8 {
                keyspace.insert([n], [round as u8; 100])?;
                while db.run_background()? {}
            }
        }
        Ok(())
    }

    fn assert_rounds(keyspace: &Keyspace, last: u8) -> Result<()> {
        for n in 0..50u8 {
            assert_eq!(keyspace.get([n])?.as_deref(), Some(&[last; 100][..]));
        }
        assert_eq!(keyspace.iter().count(), 50);
        Ok(())
    }

    #[test]
    fn keys_that_are_written_again_and_again_are_flushed_once() -> Result<()> {
        let disk = SimStorage::new(1);
        let (db, keyspace) = open(&disk)?;
        overwrite(&db, &keyspace, 200)?;
        let stats = db.stats();
        assert!(stats.memtable_compactions > 50 && stats.memtable_overtaken_bytes > 1 << 20, "{stats:?}");
        assert_eq!(stats.memtable_flush_bytes, 0);
        assert!(stats.memtable_bytes < 32 << 10, "{}", stats.memtable_bytes);
        assert_rounds(&keyspace, 199)?;
        assert!(db.check()?.is_clean());

        // Nothing is in the tree yet, and all of it in the log.
        db.persist()?;
        for seed in 0..5 {
            let (db, keyspace) = open(&disk.crashed_copy(seed))?;
            assert_rounds(&keyspace, 199)?;
            assert!(db.check()?.is_clean());
        }

        let head = keyspace.state.view().heads[1].clone();
        let promised = || head.charge.promised();
        assert_eq!(keyspace.state.view().frozen, Frozen::Rest);
        assert!(promised() < 40 << 10, "{} promised for fifty messages", promised());
        let before = promised();
        db.checkpoint()?;
        assert_eq!((keyspace.state.view().heads.len(), promised()), (1, 0));
        let flushed = db.stats().memtable_flush_bytes;
        assert!(flushed > 0 && flushed <= 2 * before, "{flushed} bytes for {before}");
        assert_rounds(&keyspace, 199)
    }

    #[test]
    fn snapshots_and_iterators_keep_what_they_saw() -> Result<()> {
        let disk = SimStorage::new(1);
        let (db, keyspace) = open(&disk)?;
        overwrite(&db, &keyspace, 100)?;
        let (snapshot, iter) = (db.snapshot(), keyspace.iter());
        overwrite(&db, &keyspace, 120)?;
        for n in 0..50u8 {
            assert_eq!(snapshot.get(&keyspace, [n])?.as_deref(), Some(&[99; 100][..]));
        }
        let seen: Result<Vec<_>> = iter.collect();
        assert!(seen?.iter().map(|(_, value)| &value[..]).eq([[99; 100]; 50]));
        assert_rounds(&keyspace, 119)
    }

    #[test]
    fn operands_stay_until_a_value_hides_them() -> Result<()> {
        let disk = SimStorage::new(1);
        let (db, keyspace) = open(&disk)?;
        keyspace.insert("list", "0")?;
        db.checkpoint()?;
        let mut expected = b"0".to_vec();
        for round in 0..100u8 {
            keyspace.merge("list", [round])?;
            expected.push(round);
            if round == 50 {
                keyspace.remove("gone")?;
            }
            keyspace.merge("gone", [round])?;
            overwrite(&db, &keyspace, 3)?;
        }
        assert!(db.stats().memtable_compactions > 20);
        assert_eq!(keyspace.get("list")?.as_deref(), Some(&expected[..]));
        let gone: Vec<u8> = (50..100).collect();
        assert_eq!(keyspace.get("gone")?.as_deref(), Some(&gone[..]));
        db.compact()?;
        assert_eq!(keyspace.get("list")?.as_deref(), Some(&expected[..]));
        assert_eq!(keyspace.get("gone")?.as_deref(), Some(&gone[..]));
        Ok(())
    }

    /// However small the memtable stays, recovery does not read the log of a day.
    #[test]
    fn what_rests_does_not_keep_the_log_for_ever() -> Result<()> {
        let disk = SimStorage::new(1);
        let mut builder = builder();
        builder.options.log_file_bytes = 64 << 10;
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        let mut most = 0;
        for _ in 0..20 {
            overwrite(&db, &keyspace, 40)?;
            most = most.max(db.stats().log_bytes_live);
        }
        let stats = db.stats();
        assert!(stats.log_bytes_appended > 4 << 20 && most < 1 << 20, "{most} bytes of log");
        assert!(stats.memtable_flush_bytes > 0);
        assert_rounds(&keyspace, 39)
    }

    #[test]
    fn new_keys_are_not_compacted_in_memory() -> Result<()> {
        let disk = SimStorage::new(1);
        let (db, keyspace) = open(&disk)?;
        for n in 0..5000u64 {
            keyspace.insert(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), [7; 100])?;
            while db.run_background()? {}
        }
        let stats = db.stats();
        assert_eq!((stats.memtable_compactions, stats.memtable_overtaken_bytes), (0, 0));
        assert!(stats.memtable_flush_bytes > 400 << 10);
        Ok(())
    }
}
