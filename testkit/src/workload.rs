//! Seeded workloads: what a program might do to an ordered store, with the habits that find bugs.
//!
//! Tiny key spaces full of overwrites, long shared prefixes, the empty key and keys of 0xFF, values of nothing and of several
//! pages, range deletes over everything and over nothing, snapshots held while all of it changes. Invariant: the operations
//! depend on the seed and on the oracle's content only. No locks.

use crate::Rng;
use crate::oracle::{Change, Edit, Fold, Oracle};

/// How a life of the database ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Closed in order.
    Close,
    /// The handles are dropped.
    Drop,
}

/// One thing a program does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Commits one message with the database's durability.
    Single(Edit),
    /// Commits a batch; `true`: it must survive power loss when the call returns.
    Batch(Vec<Edit>, bool),
    /// Reads a key.
    Get(usize, Vec<u8>),
    /// Reads several keys.
    MultiGet(usize, Vec<Vec<u8>>),
    /// Reads a range from both ends.
    Range {
        /// Which keyspace.
        keyspace: usize,
        /// Lower bound.
        low: Vec<u8>,
        /// Upper bound; none: to the end.
        high: Option<Vec<u8>>,
        /// Bit i (modulo 64) says whether step i goes backward.
        backward: u64,
        /// Most steps made.
        limit: usize,
    },
    /// Takes a snapshot.
    Snapshot,
    /// Reads the snapshot with this number (modulo how many there are) wholly.
    ReadSnapshot(usize),
    /// Lets it go.
    DropSnapshot(usize),
    /// Makes everything durable.
    Persist,
    /// Checkpoints.
    Checkpoint,
    /// Moves everything to the leaves.
    Compact,
    /// Moves a range of a keyspace to the leaves.
    CompactRange(usize, Vec<u8>, Vec<u8>),
    /// Carries out some steps of background work.
    Background(usize),
    /// Checks every invariant.
    Check,
    /// Ends and opens again.
    Reopen(End),
}

/// How keys are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// So many short keys.
    Tiny(u64),
    /// A long shared prefix and a number.
    Prefixed(u64),
    /// Ascending numbers, as a log has.
    Ascending,
    /// Everything, odd lengths and border cases among it.
    Mixed(u64),
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Workload {
    rng: Rng,
    keys: Keys,
    next: u64,
    longest_value: u64,
    /// Whether operations that are not writes appear, and how often.
    reads: f64,
    /// Whether databases are reopened on the way.
    reopens: bool,
    /// Whether the last keyspace is dropped and created again on the way.
    drops: bool,
    /// Whether all records have one size.
    uniform: bool,
}

impl Workload {
    /// The workload of a seed: writes, reads, and everything in between.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let keys = match rng.below(5) {
            0 => Keys::Tiny(rng.between(4, 40)),
            1 => Keys::Prefixed(rng.between(20, 400)),
            2 => Keys::Ascending,
            _ => Keys::Mixed(rng.between(20, 400)),
        };
        let longest_value = [40, 200, 1000][rng.index(3)];
        Self { rng, keys, next: 0, longest_value, reads: 0.4, reopens: true, drops: true, uniform: false }
    }

    /// With this share of operations that are not writes.
    #[must_use]
    pub fn reads(mut self, share: f64) -> Self {
        self.reads = share;
        self
    }

    /// Without reopening.
    #[must_use]
    pub fn without_reopening(mut self) -> Self {
        self.reopens = false;
        self
    }

    /// Without dropping keyspaces.
    #[must_use]
    pub fn without_dropping(mut self) -> Self {
        self.drops = false;
        self
    }

    /// With writes of one size only, one at a time: a record in the log then ends where one that it replaces ended, and what
    /// lies behind it would fit.
    #[must_use]
    pub fn uniform(mut self, uniform: bool) -> Self {
        self.uniform = uniform;
        self
    }

    /// How keys are drawn.
    #[must_use]
    pub fn keys(&self) -> Keys {
        self.keys
    }

    fn key(&mut self) -> Vec<u8> {
        let rng = &mut self.rng;
        match self.keys {
            Keys::Tiny(n) => match rng.below(n) {
                0 => Vec::new(),
                1 => vec![0xff; 3],
                2 => vec![0],
                i => format!("{i}").into_bytes(),
            },
            Keys::Prefixed(n) => {
                format!("a/long/prefix/that/all/keys/share/{:06}", rng.below(n) * 7).into_bytes()
            }
            Keys::Ascending => {
                if rng.chance(0.8) {
                    self.next += 1;
                    self.next.to_be_bytes().to_vec()
                } else {
                    rng.below(self.next + 2).to_be_bytes().to_vec()
                }
            }
            Keys::Mixed(n) => match rng.below(20) {
                0 => Vec::new(),
                1 => vec![0xff; rng.between(1, 4) as usize],
                2 => vec![0; rng.between(1, 4) as usize],
                3 => {
                    let len = rng.between(100, 400) as usize;
                    let mut key = vec![b'l'; len];
                    key.push(rng.below(4) as u8);
                    key
                }
                4..8 => {
                    let mut key = format!("p{}/", rng.below(5)).into_bytes();
                    key.extend(std::iter::repeat_n(0xff, rng.below(3) as usize));
                    key.push(rng.below(256) as u8);
                    key
                }
                _ => format!("{:05}", rng.below(n).wrapping_mul(7919) % 99_991).into_bytes(),
            },
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let rng = &mut self.rng;
        let len = match rng.below(40) {
            0..3 => 0,
            3 => rng.between(3_000, 14_000),
            _ => rng.below(self.longest_value) + 1,
        };
        // Half of it repeats, so that a byte out of place shows as well as a value of the wrong key.
        let mut value = rng.bytes((len as usize).min(16));
        value.resize(len as usize, b'v');
        value
    }

    fn operand(&mut self, fold: Fold) -> Vec<u8> {
        match fold {
            Fold::AddI64 => match self.rng.below(10) {
                0 => vec![1, 2, 3],
                _ => self.rng.between(0, 1000).to_le_bytes().to_vec(),
            },
            _ => {
                let len = self.rng.below(12) as usize;
                self.rng.bytes(len)
            }
        }
    }

    fn range(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (a, b) = (self.key(), self.key());
        match self.rng.below(12) {
            0 => (a, b),
            1 => (Vec::new(), vec![0xff; 8]),
            2 => (a.clone(), a),
            3 => {
                let end = [&a[..], &[0]].concat();
                (a, end)
            }
            _ => {
                if a <= b {
                    (a, b)
                } else {
                    (b, a)
                }
            }
        }
    }

    fn edit(&mut self, oracle: &Oracle) -> Edit {
        let present: Vec<usize> =
            (0..oracle.folds().len()).filter(|&i| oracle.content().keyspaces[i].is_some()).collect();
        let keyspace = present[self.rng.index(present.len())];
        let fold = oracle.folds()[keyspace];
        let change = match self.rng.below(20) {
            0..3 => Change::Delete(self.key()),
            3 => {
                let (start, end) = self.range();
                Change::RangeDelete(start, end)
            }
            4..12 if fold != Fold::None => {
                let key = self.key();
                let long = oracle.records(keyspace).get(&key).is_some_and(|v| v.len() > 3000);
                if long { Change::Delete(key) } else { Change::Merge(key, self.operand(fold)) }
            }
            _ => {
                let key = self.key();
                let value = if fold == Fold::AddI64 { self.operand(fold) } else { self.value() };
                Change::Put(key, value)
            }
        };
        Edit { keyspace, change }
    }

    fn write(&mut self, oracle: &Oracle) -> Op {
        // The last keyspace comes and goes.
        let last = oracle.folds().len() - 1;
        if self.drops && last > 0 && self.rng.chance(0.01) {
            let change =
                if oracle.content().keyspaces[last].is_some() { Change::Drop } else { Change::Create };
            return Op::Single(Edit { keyspace: last, change });
        }
        if self.uniform {
            let key = self.rng.below(64).to_be_bytes().to_vec();
            let change = Change::Put(key, self.rng.bytes(24));
            let edit = Edit { keyspace: self.rng.index(last.max(1)), change };
            return if self.rng.chance(0.1) { Op::Batch(vec![edit], true) } else { Op::Single(edit) };
        }
        if self.rng.chance(0.6) {
            return Op::Single(self.edit(oracle));
        }
        let count = if self.rng.chance(0.05) { self.rng.between(20, 60) } else { self.rng.between(0, 8) };
        let mut batch: Vec<Edit> = Vec::new();
        for _ in 0..count {
            let mut edit = self.edit(oracle);
            // Within a batch the oracle's content is old: never a second large merge on what grew meanwhile.
            if self.rng.chance(0.1)
                && let Some(before) = batch.last()
                && before.keyspace == edit.keyspace
                && let (Change::Put(key, _) | Change::Delete(key), Change::Put(_, value)) =
                    (&before.change, &edit.change)
            {
                edit.change = Change::Put(key.clone(), value.clone());
            }
            batch.push(edit);
        }
        Op::Batch(batch, self.rng.chance(0.15))
    }

    /// The next operation, for a store with this content.
    pub fn next(&mut self, oracle: &Oracle) -> Op {
        if !self.rng.chance(self.reads) {
            return self.write(oracle);
        }
        let present: Vec<usize> =
            (0..oracle.folds().len()).filter(|&i| oracle.content().keyspaces[i].is_some()).collect();
        let keyspace = present[self.rng.index(present.len())];
        match self.rng.below(100) {
            0..25 => Op::Get(keyspace, self.key()),
            25..32 => {
                let count = self.rng.below(12);
                Op::MultiGet(keyspace, (0..count).map(|_| self.key()).collect())
            }
            32..57 => {
                let (low, high) = self.range();
                let low = if self.rng.chance(0.2) { Vec::new() } else { low };
                let high = (!self.rng.chance(0.25)).then_some(high);
                let backward = [0, u64::MAX, self.rng.next_u64()][self.rng.index(3)];
                let limit = if self.rng.chance(0.3) { self.rng.below(10) as usize } else { usize::MAX };
                Op::Range { keyspace, low, high, backward, limit }
            }
            57..61 => Op::Snapshot,
            61..67 => Op::ReadSnapshot(self.rng.index(16)),
            67..70 => Op::DropSnapshot(self.rng.index(16)),
            70..74 => Op::Persist,
            74..77 => Op::Checkpoint,
            77 if self.rng.chance(0.5) => Op::Compact,
            77 => {
                let (low, high) = self.range();
                Op::CompactRange(keyspace, low, high)
            }
            78..92 => Op::Background(self.rng.between(1, 6) as usize),
            92..96 => Op::Check,
            96 if self.reopens => Op::Reopen(End::Close),
            97 if self.reopens => Op::Reopen(End::Drop),
            _ => Op::Background(1),
        }
    }
}
