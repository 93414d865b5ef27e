//! betree: one keyspace. A batch of one record goes through `Keyspace::insert`, as a user would
//! write it; larger ones through a `WriteBatch` whose memory is used again.

use anyhow::Result;
use betree::{Db, Durability, Keyspace, WriteBatch};
use futures::executor::block_on;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use crate::engine::{
    AnswerVisitor, Asker, CommitDurability, Engine, RowVisitor, Session, Setup, mib, promise, share,
};
use crate::record::{Batch, Key};

/// Share of the limit for the database's budget; the rest is for mapped log files, the program and the allocator.
const BUDGET_PERCENT: u64 = 90;

struct Betree {
    db: Db,
    records: Keyspace,
    budget: u64,
    remember: bool,
    durability: CommitDurability,
}

/// `remember`: popular rows survive from one phase to the next.
pub(crate) fn open(setup: &Setup<'_>, remember: bool) -> Result<Box<dyn Engine>> {
    let budget = setup.betree_memory.unwrap_or_else(|| share(setup.memory, BUDGET_PERCENT));
    let builder = Db::builder().memory(budget as usize).durability(durability_of(setup.durability));
    let db = builder.remember_rows(remember).open(setup.dir)?;
    let records = db.keyspace("records")?;
    Ok(Box::new(Betree { db, records, budget, remember, durability: setup.durability }))
}

fn durability_of(durability: CommitDurability) -> Durability {
    match durability {
        CommitDurability::Buffered => Durability::Buffered,
        CommitDurability::Sync => Durability::Sync,
    }
}

impl Engine for Betree {
    fn configuration(&self) -> String {
        format!(
            "budget {}, {}otherwise defaults; {}",
            mib(self.budget),
            if self.remember { "" } else { "no rows remembered, " },
            promise(
                self.durability,
                "Durability::Buffered: survives a killed process when the call returns, synced in the background every second"
            )
        )
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(BetreeSession { engine: self, batch: self.db.batch() }))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.persist()?)
    }

    fn settle(&self) -> Result<bool> {
        self.db.compact()?;
        Ok(true)
    }

    fn stats(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self.db.stats()).ok()
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Betree { db, records, .. } = *self;
        drop(records);
        Ok(db.close()?)
    }
}

struct BetreeSession<'a> {
    engine: &'a Betree,
    batch: WriteBatch,
}

impl Betree {
    /// Writes `batch`, larger ones through `memory`.
    fn insert(&self, batch: &Batch, memory: &mut WriteBatch) -> Result<()> {
        if batch.len() == 1 {
            for (key, value) in batch.iter() {
                self.records.insert(key, value)?;
            }
            return Ok(());
        }
        for (key, value) in batch.iter() {
            memory.insert(&self.records, key, value)?;
        }
        Ok(self.db.write_with(memory, durability_of(self.durability))?)
    }
}

impl Session for BetreeSession<'_> {
    fn insert(&mut self, batch: &Batch) -> Result<()> {
        self.engine.insert(batch, &mut self.batch)
    }

    fn delete(&mut self, keys: &[Key]) -> Result<()> {
        let records = &self.engine.records;
        if let [key] = keys {
            return Ok(records.remove(key)?);
        }
        for key in keys {
            self.batch.remove(records, key)?;
        }
        Ok(self.engine.db.write_with(&mut self.batch, durability_of(self.engine.durability))?)
    }

    fn delete_range(&mut self, start: &Key, end: &Key) -> Result<bool> {
        self.engine.records.remove_range(start, end)?;
        Ok(true)
    }

    fn get(&mut self, key: &Key, visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.engine.records.get(key)?;
        if let Some(value) = &value {
            visit(value);
        }
        Ok(value.is_some())
    }

    fn multi_get(&mut self, keys: &[Key], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<bool> {
        for (i, value) in self.engine.records.multi_get(keys)?.iter().enumerate() {
            visit(i, value.as_deref());
        }
        Ok(true)
    }

    fn gets_in_flight(&mut self, most: usize, next: Asker<'_>, visit: AnswerVisitor<'_>) -> Result<bool> {
        let (engine, memory) = (self.engine, &mut self.batch);
        let mut begin = || {
            let asked = next(&mut |batch| engine.insert(batch, memory))?;
            anyhow::Ok(
                asked.map(|(number, key)| engine.records.get_async(key).map(move |value| (number, value))),
            )
        };
        block_on(async {
            let mut reads = FuturesUnordered::new();
            while reads.len() < most
                && let Some(read) = begin()?
            {
                reads.push(read);
            }
            while let Some((number, value)) = reads.next().await {
                visit(number, value?.as_deref())?;
                reads.extend(begin()?);
            }
            Ok(true)
        })
    }

    fn scan(&mut self, start: &[u8], limit: u64, visit: RowVisitor<'_>) -> Result<u64> {
        let mut rows = 0;
        let mut iter = self.engine.records.range(start..);
        while rows < limit
            && let Some((key, value)) = iter.next_record()?
        {
            visit(key, value)?;
            rows += 1;
        }
        Ok(rows)
    }
}
