//! Small databases to be damaged, of several kinds: made by a seed, ended, taken off the disk as bytes.
//!
//! Invariant: `logged` are the oracle's batches that are records of the log, in order, and the last of them are exactly the
//! records that a replay finds; so a number of records is a number of batches.

use std::ops::RangeInclusive;
use std::sync::Arc;

use betree_testkit::{Change, Edit, Op, Oracle, Rng, SimStorage, Workload};

use super::{Files, layout, log};
use crate::{Place, Session, Shape};

/// What kind of database is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Everything is in the trees, nothing in the log above the checkpoint.
    Checkpointed,
    /// Part of it is in the log above the checkpoint.
    Logged,
    /// A checkpoint of the trees as they were, with some keyspaces' batches still in the log below it.
    Between,
    /// Trees of several levels.
    Deep,
    /// Closed in order: the log is sealed.
    Closed,
    /// Range deletes and merges, much of both.
    Ranges,
    /// Never flushed: all of it is in the log.
    Young,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Checkpointed,
        Self::Logged,
        Self::Between,
        Self::Deep,
        Self::Closed,
        Self::Ranges,
        Self::Young,
    ];

    fn ops(self) -> usize {
        match self {
            Self::Deep => 34,
            Self::Young => 12,
            Self::Ranges => 70,
            _ => 50,
        }
    }
}

/// A small database at rest.
#[derive(Debug)]
pub struct Victim {
    pub(super) seed: u64,
    pub(super) kind: Kind,
    /// The files as they are.
    pub(super) files: Files,
    /// The data file as it was at an earlier checkpoint.
    pub(super) earlier: Files,
    /// A database of the same kind and another seed.
    pub(super) other: Files,
    pub(super) start: log::Start,
    pub(super) map: layout::Map,
    /// Levels of the highest tree.
    pub height: u64,
    /// The same on a disk, to be copied.
    pub(super) disk: Arc<SimStorage>,
    shape: Shape,
    oracle: Oracle,
    logged: Vec<usize>,
    replayed: usize,
}

struct Made {
    disk: Arc<SimStorage>,
    session: Session,
    earlier: Files,
    height: u64,
    map: layout::Map,
}

/// The files, the data file without the space that is kept free behind the checkpoint's end, but for a little.
fn files_of(disk: &SimStorage) -> Files {
    let files = disk.files().into_keys().filter_map(|name| Some((name.clone(), disk.contents(&name)?)));
    let mut files: Files = files.collect();
    if let Some(data) = files.get_mut(layout::DATA) {
        let used = data.iter().rposition(|b| *b != 0).unwrap_or(0).next_multiple_of(layout::BLOCK);
        data.truncate(used + 4 * layout::BLOCK);
    }
    files
}

fn disk_of(files: &Files) -> Arc<SimStorage> {
    let disk = SimStorage::new(1);
    files.iter().for_each(|(name, bytes)| disk.put(name, bytes));
    disk
}

/// Whether a batch is a record of the log: keyspaces come and go by checkpoints, and what says nothing is not written.
fn is_logged(batch: &[Edit]) -> bool {
    effective(batch) > 0
}

fn effective(batch: &[Edit]) -> usize {
    let counts = |edit: &&Edit| match &edit.change {
        Change::Create | Change::Drop => false,
        Change::RangeDelete(start, end) => start < end,
        _ => true,
    };
    batch.iter().filter(counts).count()
}

fn make(kind: Kind, seed: u64) -> Result<Made, String> {
    let mut rng = Rng::new(seed);
    let mut shape = Shape::tiny(&mut rng);
    shape.options.log_file_bytes = 4096 * rng.between(1, 4);
    match kind {
        Kind::Deep => {
            shape.options.tree.fanout = 4;
            shape.options.tree.page_bytes = 4096;
            shape.options.tree.segment_bytes = 8192;
            shape.options.tree.leaf_bytes = 4096;
            shape.options.memtable_bytes = Some(4096);
        }
        Kind::Young => shape.options.memtable_bytes = Some(256 << 10),
        _ => {}
    }
    let disk = SimStorage::new(rng.next_u64());
    let mut workload = Workload::new(rng.next_u64()).reads(0.1).without_reopening();
    let mut session = Session::open(Place::Disk(disk.clone()), shape, None).map_err(|e| e.to_string())?;
    session.create_keyspaces().map_err(|e| e.to_string())?;
    let mut earlier = files_of(&disk);
    let ops = kind.ops();
    let apply = |session: &mut Session, op: &Op| session.apply(op).map_err(|e| e.to_string());
    for step in 0..ops {
        let op = if kind == Kind::Deep && step < ops - 10 {
            Op::Batch(deep_batch(&mut rng, step), false)
        } else if kind == Kind::Ranges && step % 2 == 0 {
            Op::Batch(ranges_and_merges(&mut rng), false)
        } else {
            workload.next(&session.oracle)
        };
        let moves = matches!(op, Op::Checkpoint | Op::Compact | Op::Persist | Op::Background(_));
        let leave_out = kind == Kind::Young && moves
            || matches!(&op, Op::Single(Edit { change: Change::Create | Change::Drop, .. }));
        if !leave_out {
            apply(&mut session, &op)?;
        }
        if kind != Kind::Young {
            apply(&mut session, &Op::Background(3))?;
        }
        if step == ops / 2 && kind != Kind::Young {
            apply(&mut session, &Op::Checkpoint)?;
            earlier = files_of(&disk);
        }
    }
    match kind {
        Kind::Checkpointed => apply(&mut session, &Op::Checkpoint)?,
        // Creating a keyspace takes a checkpoint of the trees without flushing memtables first.
        Kind::Between => {
            let last = crate::SPACES.len() - 1;
            for change in [Change::Drop, Change::Create] {
                apply(&mut session, &Op::Single(Edit { keyspace: last, change }))?;
            }
        }
        Kind::Deep => {
            apply(&mut session, &Op::Compact)?;
            apply(&mut session, &Op::Batch(deep_batch(&mut rng, ops), false))?;
        }
        _ => apply(&mut session, &Op::Persist)?,
    }
    let height = session.db().stats().tree_height;
    if kind == Kind::Closed {
        session.close().map_err(|e| e.to_string())?;
    }
    session.abandon();
    let disk = disk.kill();
    let map = layout::Map::of(&disk, &session.shape)?;
    let made = Made { disk, session, earlier, height, map };
    Ok(made)
}

/// Records that spread over many leaves.
fn deep_batch(rng: &mut Rng, step: usize) -> Vec<Edit> {
    (0..12)
        .map(|_| {
            let key = format!("{:05}", rng.below(4000)).into_bytes();
            let mut value = rng.bytes(60);
            value.extend_from_slice(&(step as u64).to_le_bytes());
            Edit { keyspace: 0, change: Change::Put(key, value) }
        })
        .collect()
}

fn ranges_and_merges(rng: &mut Rng) -> Vec<Edit> {
    let key = |rng: &mut Rng| format!("{:03}", rng.below(60)).into_bytes();
    (0..rng.between(1, 6))
        .map(|_| {
            let (keyspace, change) = match rng.below(4) {
                0 => (rng.index(3), Change::RangeDelete(key(rng), key(rng))),
                1 => (1, Change::Merge(key(rng), rng.below(100).to_le_bytes().to_vec())),
                2 => (2, Change::Merge(key(rng), rng.bytes(9))),
                _ => (0, Change::Put(key(rng), rng.bytes(150))),
            };
            Edit { keyspace, change }
        })
        .collect()
}

impl Victim {
    /// The database of a kind and seed.
    ///
    /// # Errors
    /// Whatever goes wrong in making it.
    pub fn new(kind: Kind, seed: u64) -> Result<Self, String> {
        let made = make(kind, seed).map_err(|e| format!("seed {seed} {kind:?}: {e}"))?;
        let other =
            files_of(&make(kind, seed ^ 0x5eed).map_err(|e| format!("seed {seed} {kind:?}: {e}"))?.disk);
        let files = files_of(&made.disk);
        let start = layout::start_of(&files).ok_or("the superblock has no catalog")?;
        let (verdict, records) = log::replay(&files, start);
        let oracle = made.session.oracle.clone();
        let logged: Vec<usize> = (0..oracle.len()).filter(|&i| is_logged(oracle.batch(i))).collect();
        let victim = Self {
            seed,
            kind,
            disk: disk_of(&files),
            files,
            earlier: made.earlier,
            other,
            start,
            map: made.map,
            height: made.height,
            shape: made.session.shape.clone(),
            oracle,
            logged,
            replayed: records.len(),
        };
        // The second reader and the oracle agree on what is in the log, or nothing here means anything.
        let agree = || {
            if verdict != log::Verdict::Records(records.len()) || records.len() > victim.logged.len() {
                return false;
            }
            let last = &victim.logged[victim.logged.len() - records.len()..];
            records.iter().zip(last).all(|(record, &batch)| {
                layout::varint(&mut &record[..]) == Some(effective(victim.oracle.batch(batch)) as u64)
            })
        };
        if !agree() {
            return Err(format!(
                "seed {seed} {kind:?}: {verdict:?}, {} batches were logged",
                victim.logged.len()
            ));
        }
        Ok(victim)
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// How many batches are there when so many records of the log are.
    pub(super) fn batches_with(&self, records: usize) -> RangeInclusive<usize> {
        let below = self.logged.len() - self.replayed;
        let lost = self.logged.get(below + records).copied().unwrap_or(self.oracle.len());
        let kept = (below + records).checked_sub(1).map_or(0, |last| self.logged[last] + 1);
        // Between two records are batches that say nothing, or keyspaces' comings and goings: those are in the checkpoint.
        kept.min(lost)..=lost
    }

    /// The batches that are there when the newest superblock is lost and the one before counts: the log has all but keyspaces that
    /// came or went last.
    pub(super) fn batches_of_the_epoch_before(&self) -> RangeInclusive<usize> {
        self.logged.last().map_or(0, |last| last + 1)..=self.oracle.len()
    }

    /// Records that a replay of the undamaged log finds.
    #[must_use]
    pub fn replayed(&self) -> usize {
        self.replayed
    }
}

impl Victim {
    /// What it is, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let bytes: usize = self.files.values().map(Vec::len).sum();
        format!(
            "{:?} database, {} files of {bytes} bytes, height {}, {} of {} batches in the log",
            self.kind,
            self.files.len(),
            self.height,
            self.replayed,
            self.oracle.len()
        )
    }
}
