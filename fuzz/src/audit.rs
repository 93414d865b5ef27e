//! The bank auditor: money moves between accounts from many threads, and every look at the database must find all of it.
//!
//! Owns: the accounts, their writers, the auditors and the disturbers (checkpoints, compactions, a keyspace that comes and goes, power
//! cuts). Accounts lie in three groups of keyspaces. In `blind` transfers are batches of two Merges, which read nothing; in
//! `exact` they are reads and Puts under locks of the accounts (with Deletes and RangeDeletes when an account is closed); in `local` both
//! ends are in one keyspace, so that its own iterators and reads of many keys, which have no snapshot, must find the whole sum as well.
//!
//! Each writer numbers its transfers in a record of its own that is part of the batch. So a snapshot must hold at least what had returned
//! before it was taken, and a recovered disk at least what had been synced. Threads make no run repeat itself: the seed decides the
//! operations, not their interleaving.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use betree::{AddI64, Bytes, Db, Durability, Error, Iter, Keyspace, KeyspaceOptions, Snapshot, WriteBatch};
use betree_storage::primitives::{Mutex, MutexGuard};
use betree_storage::{Backend, DiskStorage, Storage};
use betree_testkit::{Rng, SimStorage};
use futures::executor::block_on;

use crate::{Shape, guarded};

/// Accounts per keyspace: enough for several levels of the smallest nodes.
const ACCOUNTS: u64 = 400;
/// What each has at first.
const OPENING: i64 = 1000;
/// Writers, each with a record that counts its transfers.
const WRITERS: usize = 4;
/// Names of the groups and how many keyspaces each has.
const GROUPS: [(&str, usize); 3] = [("blind", 3), ("exact", 3), ("local", 1)];
/// Snapshots that an auditor keeps, to look at them again after much has changed.
const HELD: usize = 6;

/// Where the database lies.
#[derive(Debug, Clone)]
pub enum Ground {
    /// In a directory, through io_uring where the kernel lets us.
    Directory(PathBuf),
    /// In a directory, through plain reads and writes.
    Portable(PathBuf),
    /// On a simulated disk whose power is cut at random moments.
    Simulated,
}

/// What a run went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Transfers committed.
    pub transfers: u64,
    /// Batches refused because they named a keyspace that was dropped meanwhile.
    pub refused: u64,
    /// Snapshots audited, and those audited again after a while.
    pub snapshots: u64,
    /// Reads of a keyspace without a snapshot that found its whole sum.
    pub live_audits: u64,
    /// Memtables and buffers flushed, leaves compacted, checkpoints, all together.
    pub tasks: u64,
    /// Bytes that flushes of memtables wrote.
    pub flushed_bytes: u64,
    /// Bytes that leaf compactions wrote.
    pub compacted_bytes: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Whole compactions asked for.
    pub compactions: u64,
    /// Keyspaces dropped.
    pub drops: u64,
    /// Power cuts recovered from.
    pub crashes: u64,
    /// Levels of the highest tree.
    pub height: u64,
}

impl Totals {
    /// The sums of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            transfers: self.transfers + other.transfers,
            refused: self.refused + other.refused,
            snapshots: self.snapshots + other.snapshots,
            live_audits: self.live_audits + other.live_audits,
            tasks: self.tasks + other.tasks,
            flushed_bytes: self.flushed_bytes + other.flushed_bytes,
            compacted_bytes: self.compacted_bytes + other.compacted_bytes,
            checkpoints: self.checkpoints + other.checkpoints,
            compactions: self.compactions + other.compactions,
            drops: self.drops + other.drops,
            crashes: self.crashes + other.crashes,
            height: self.height.max(other.height),
        }
    }
}

/// Runs the bank on `ground` for about `length`, with operations and options drawn from `seed`.
///
/// # Errors
/// The first thing that did not add up, with the seed and the ground.
pub fn run(seed: u64, ground: &Ground, length: Duration) -> Result<Totals, String> {
    guarded(|| go(seed, ground, length)).map_err(|text| format!("auditor seed {seed} on {ground:?}: {text}"))
}

fn account(number: u64) -> [u8; 8] {
    // Spread, so that neighbours in time are none in key order.
    (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16 << 16 | number).to_be_bytes()
}

fn counter(writer: usize) -> [u8; 1] {
    [writer as u8]
}

fn said(error: Error) -> String {
    error.to_string()
}

fn amount(value: &[u8]) -> Result<i64, String> {
    let first = value.first_chunk().ok_or_else(|| format!("a balance of {} bytes", value.len()))?;
    Ok(i64::from_le_bytes(*first))
}

/// An open database with its accounts.
struct Bank {
    db: Db,
    groups: Vec<Vec<Keyspace>>,
}

impl Bank {
    fn open(storage: Arc<dyn Storage>, shape: &Shape) -> Result<Bank, String> {
        let db = shape.builder().open_on(storage).map_err(said)?;
        let mut groups = Vec::new();
        for (name, count) in GROUPS {
            let options = || match name {
                "exact" => KeyspaceOptions::new(),
                _ => KeyspaceOptions::new().merge_operator(AddI64),
            };
            let open = |i| db.keyspace_with(&format!("{name}-{i}"), options()).map_err(said);
            groups.push((0..count).map(open).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Bank { db, groups })
    }

    fn fill(&self) -> Result<(), String> {
        let mut batch = self.db.batch();
        for keyspace in self.groups.iter().flatten() {
            for number in 0..ACCOUNTS {
                batch.insert(keyspace, account(number), OPENING.to_le_bytes()).map_err(said)?;
            }
        }
        self.db.write_with(&mut batch, Durability::Sync).map_err(said)
    }

    /// Audits everything in `snapshot`; returns the counters of the writers.
    fn audit(&self, snapshot: &Snapshot, rng: &mut Rng) -> Result<(Vec<u64>, u64), String> {
        let mut digest = 0u64;
        let mut counters = vec![0; WRITERS];
        for ((name, _), group) in GROUPS.iter().zip(&self.groups) {
            let mut sum = 0;
            for keyspace in group {
                let read = |iter: betree::Result<Iter>| iter.map_err(said);
                let content = collect(read(snapshot.iter(keyspace))?, rng)?;
                let split = account(rng.below(ACCOUNTS));
                let mut pieces = collect(read(snapshot.range(keyspace, ..&split[..]))?, rng)?;
                pieces.extend(collect(read(snapshot.range(keyspace, &split[..]..))?, rng)?);
                same(&content, &pieces, "two ranges and the whole of a snapshot")?;
                let keys: Vec<_> = (0..ACCOUNTS).map(account).collect();
                let values = snapshot.multi_get(keyspace, &keys).map_err(said)?;
                let many: BTreeMap<_, _> =
                    keys.iter().zip(values).filter_map(|(k, v)| Some((k.to_vec(), v?.to_vec()))).collect();
                let accounts = content.iter().filter(|(key, _)| key.len() == 8);
                same(
                    &accounts.map(|(k, v)| (k.clone(), v.clone())).collect(),
                    &many,
                    "iterator and multi_get",
                )?;
                let some = account(rng.below(ACCOUNTS));
                let one = snapshot.get(keyspace, some).map_err(said)?;
                if one.as_deref() != content.get(&some[..]).map(|value| &value[..]) {
                    return Err(format!("{name}: get and iterator differ at {some:?}"));
                }
                sum += balance(&content)?;
                for (writer, counter) in counters.iter_mut().enumerate() {
                    if let Some(value) = content.get(&self::counter(writer)[..]) {
                        *counter += amount(value)? as u64;
                    }
                }
                for (key, value) in &content {
                    for byte in key.iter().chain(value) {
                        digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
                    }
                }
            }
            let whole = group.len() as i64 * ACCOUNTS as i64 * OPENING;
            if sum != whole {
                return Err(format!("{name}: a snapshot holds {sum} of {whole}"));
            }
        }
        Ok((counters, digest))
    }

    /// The group whose transfers stay in one keyspace, read without a snapshot.
    fn audit_live(&self, rng: &mut Rng) -> Result<(), String> {
        let keyspace = &self.groups[2][0];
        let keys = || (0..ACCOUNTS).map(account).collect::<Vec<_>>();
        let total = |values: Vec<Option<Bytes>>| values.iter().flatten().map(|value| amount(value)).sum();
        let (how, sum): (_, Result<i64, String>) = match rng.below(4) {
            0 => ("an iterator", balance(&collect(keyspace.iter(), rng)?)),
            1 => {
                let (low, high) = (account(0), [0xff; 9]);
                ("a range", balance(&collect(keyspace.range(&low[..]..&high[..]), rng)?))
            }
            2 => ("a read of many keys", total(keyspace.multi_get(&keys()).map_err(said)?)),
            _ => {
                // Others are given up on the way.
                let _given_up =
                    (keyspace.get_async(account(rng.below(ACCOUNTS))), keyspace.prefetch(&keys()[..9]));
                let read = keyspace.multi_get_async(&keys());
                ("an asynchronous read of many keys", total(block_on(read).map_err(said)?))
            }
        };
        let (sum, whole) = (sum?, ACCOUNTS as i64 * OPENING);
        if sum == whole { Ok(()) } else { Err(format!("local: {how} holds {sum} of {whole}")) }
    }
}

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

/// Everything an iterator has, taken from either end as luck will have it.
fn collect(mut iter: Iter, rng: &mut Rng) -> Result<Content, String> {
    let back = [0.0, 1.0, 0.5][rng.index(3)];
    let (mut low, mut high) = (Vec::new(), Vec::new());
    loop {
        let from_back = rng.chance(back);
        let Some(record) = (if from_back { iter.next_back() } else { iter.next() }) else { break };
        let (key, value) = record.map_err(said)?;
        let side = if from_back { &mut high } else { &mut low };
        side.push((key.to_vec(), value.to_vec()));
    }
    low.extend(high.into_iter().rev());
    if !low.windows(2).all(|pair| pair[0].0 < pair[1].0) {
        return Err("an iterator is not in key order".into());
    }
    Ok(low.into_iter().collect())
}

fn balance(content: &Content) -> Result<i64, String> {
    content.iter().filter(|(key, _)| key.len() == 8).map(|(_, value)| amount(value)).sum()
}

fn same(a: &Content, b: &Content, what: &str) -> Result<(), String> {
    if a == b { Ok(()) } else { Err(format!("{what} differ: {} and {} records", a.len(), b.len())) }
}

/// What the threads of a run share.
struct Run<'a> {
    bank: &'a Bank,
    shape: &'a Shape,
    stop: AtomicBool,
    /// What went wrong first.
    failure: Mutex<Option<String>>,
    /// Per writer: transfers whose call returned, and those of them that were synced.
    returned: [AtomicU64; WRITERS],
    synced: [AtomicU64; WRITERS],
    refused: AtomicU64,
    snapshots: AtomicU64,
    live_audits: AtomicU64,
    compactions: AtomicU64,
    drops: AtomicU64,
    crashes: AtomicU64,
    /// The keyspace that comes and goes, if it is there.
    brief: Mutex<Option<Keyspace>>,
    /// One per exact account of all its keyspaces together, taken in ascending order.
    locks: Vec<Mutex<()>>,
}

impl Run<'_> {
    /// Repeats `step` until the run is over; a failure or a panic ends it for everybody.
    fn repeat(&self, mut step: impl FnMut() -> Result<(), String>) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(text) = guarded(&mut step) {
                self.failure.lock().get_or_insert(text);
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }

    fn transfer(&self, writer: usize, count: &mut u64, rng: &mut Rng) -> Result<(), String> {
        let mut batch = self.bank.db.batch();
        let sum = rng.between(1, 50) as i64;
        let (from, to) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS));
        let mut held = Vec::new();
        match rng.below(3) {
            1 => self.exact(from, to, sum, rng, &mut batch, &mut held)?,
            group => {
                let group = &self.bank.groups[group as usize];
                let (a, b) = (&group[rng.index(group.len())], &group[rng.index(group.len())]);
                batch.merge(a, account(from), (-sum).to_le_bytes()).map_err(said)?;
                batch.merge(b, account(to), sum.to_le_bytes()).map_err(said)?;
            }
        }
        let counts = &self.bank.groups[0][writer % GROUPS[0].1];
        batch.insert(counts, counter(writer), (*count as i64 + 1).to_le_bytes()).map_err(said)?;
        if rng.chance(0.05)
            && let Some(brief) = self.brief.lock().clone()
        {
            batch.insert(&brief, account(from), rng.bytes(100)).map_err(said)?;
        }
        let durability = if rng.chance(0.1) { Durability::Sync } else { Durability::Buffered };
        match self.bank.db.write_with(&mut batch, durability) {
            Ok(()) => {}
            Err(Error::KeyspaceDropped { .. }) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => return Err(said(error)),
        }
        *count += 1;
        self.returned[writer].store(*count, Ordering::SeqCst);
        if durability == Durability::Sync {
            self.synced[writer].store(*count, Ordering::SeqCst);
        }
        Ok(())
    }

    /// A transfer that reads: both accounts are locked until the caller has written the batch and drops `held`.
    fn exact<'a>(
        &'a self,
        from: u64,
        to: u64,
        sum: i64,
        rng: &mut Rng,
        batch: &mut WriteBatch,
        held: &mut Vec<MutexGuard<'a, ()>>,
    ) -> Result<(), String> {
        let group = &self.bank.groups[1];
        let (a, b) = (rng.index(group.len()), rng.index(group.len()));
        let place = |space: usize, number: u64| space * ACCOUNTS as usize + number as usize;
        let (first, second) = (place(a, from), place(b, to));
        if first == second {
            return Ok(());
        }
        for place in [first.min(second), first.max(second)] {
            held.push(self.locks[place].lock());
        }
        let read = |space: usize, number| -> Result<i64, String> {
            let value = group[space].get(account(number)).map_err(said)?;
            value.map_or(Ok(0), |value| amount(&value))
        };
        let (old, other) = (read(a, from)?, read(b, to)?);
        // Longer values than the balance needs: the trees grow by them.
        let padded = |balance: i64, rng: &mut Rng| {
            let mut value = balance.to_le_bytes().to_vec();
            let len = rng.index(150);
            value.extend_from_slice(&rng.bytes(len));
            value
        };
        let moved = match rng.below(10) {
            0 => {
                batch.remove(&group[a], account(from)).map_err(said)?;
                old
            }
            1 => {
                let mut end = account(from).to_vec();
                end.push(0);
                batch.remove_range(&group[a], account(from), end).map_err(said)?;
                old
            }
            _ => {
                batch.insert(&group[a], account(from), padded(old - sum, rng)).map_err(said)?;
                sum
            }
        };
        batch.insert(&group[b], account(to), padded(other + moved, rng)).map_err(said)
    }

    /// Takes a snapshot and audits it, and one of those held since before.
    fn audit(&self, held: &mut Vec<(Snapshot, u64)>, last: &mut [u64], rng: &mut Rng) -> Result<(), String> {
        let before = self.returned.each_ref().map(|count| count.load(Ordering::SeqCst));
        let snapshot = self.bank.db.snapshot();
        let (counters, digest) = self.bank.audit(&snapshot, rng)?;
        for (writer, count) in counters.iter().enumerate() {
            if *count < before[writer].max(last[writer]) {
                return Err(format!(
                    "a snapshot has transfer {count} of writer {writer}: {} had returned, an earlier snapshot had {}",
                    before[writer], last[writer]
                ));
            }
            last[writer] = *count;
        }
        held.push((snapshot, digest));
        let at = rng.index(held.len());
        let (snapshot, digest) = &held[at];
        if self.bank.audit(snapshot, rng)?.1 != *digest {
            return Err("a held snapshot has changed".into());
        }
        self.snapshots.fetch_add(2, Ordering::Relaxed);
        if held.len() > HELD {
            held.swap_remove(at);
        }
        for _ in 0..4 {
            self.bank.audit_live(rng)?;
            self.live_audits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes, fills and drops a keyspace that has nothing to do with the others.
    fn come_and_go(&self, rng: &mut Rng) -> Result<(), String> {
        let keyspace = self.bank.db.keyspace("brief").map_err(said)?;
        *self.brief.lock() = Some(keyspace.clone());
        for _ in 0..rng.between(10, 200) {
            keyspace.insert(rng.bytes(6), rng.bytes(100)).map_err(said)?;
        }
        let iter = keyspace.iter();
        if rng.chance(0.5) {
            // The other half are dropped while batches name them.
            *self.brief.lock() = None;
        }
        if !self.bank.db.drop_keyspace("brief").map_err(said)? {
            return Err("a keyspace that was there could not be dropped".into());
        }
        if collect(iter, rng)?.len() < 10 {
            return Err("an iterator of a dropped keyspace lost its records".into());
        }
        self.drops.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What a power cut at this moment leaves must open and hold all the money and everything synced.
    fn cut_power(&self, disk: &SimStorage, rng: &mut Rng) -> Result<(), String> {
        let synced = self.synced.each_ref().map(|count| count.load(Ordering::SeqCst));
        let seed = rng.next_u64();
        let copy = disk.crashed_copy(seed);
        self.recovered(copy.as_storage(), &synced, rng)
            .map_err(|text| format!("after a power cut (luck {seed}): {text}"))?;
        self.crashes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn recovered(
        &self,
        storage: Arc<dyn Storage>,
        least: &[u64; WRITERS],
        rng: &mut Rng,
    ) -> Result<(), String> {
        let bank = Bank::open(storage, self.shape)?;
        let (counters, _) = bank.audit(&bank.db.snapshot(), rng)?;
        for (writer, count) in counters.iter().enumerate() {
            if *count < least[writer] {
                return Err(format!(
                    "transfer {count} of writer {writer} is there, {} was promised",
                    least[writer]
                ));
            }
        }
        let report = bank.db.check().map_err(said)?;
        if report.is_clean() { Ok(()) } else { Err(report.problems.join("; ")) }
    }
}

fn pause(rng: &mut Rng, most_ms: u64) {
    std::thread::sleep(Duration::from_micros(rng.below(most_ms * 1000)));
}

fn go(seed: u64, ground: &Ground, length: Duration) -> Result<Totals, String> {
    let mut rng = Rng::new(seed);
    let mut shape = Shape::tiny(&mut rng).threads(2);
    shape.options.sync_interval = Some(Duration::from_millis(rng.between(1, 50)));
    let disk = matches!(ground, Ground::Simulated).then(|| SimStorage::new(seed));
    let storage = || match (ground, &disk) {
        (Ground::Directory(path), _) => DiskStorage::open(path, Backend::Auto).map_err(|e| e.to_string()),
        (Ground::Portable(path), _) => DiskStorage::open(path, Backend::Portable).map_err(|e| e.to_string()),
        (Ground::Simulated, Some(disk)) => Ok(disk.as_storage()),
        (Ground::Simulated, None) => Err("no disk".into()),
    };
    let bank = Bank::open(storage()?, &shape)?;
    bank.fill()?;
    let run = Run {
        bank: &bank,
        shape: &shape,
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        returned: Default::default(),
        synced: Default::default(),
        refused: AtomicU64::new(0),
        snapshots: AtomicU64::new(0),
        live_audits: AtomicU64::new(0),
        compactions: AtomicU64::new(0),
        drops: AtomicU64::new(0),
        crashes: AtomicU64::new(0),
        brief: Mutex::new(None),
        locks: (0..GROUPS[1].1 * ACCOUNTS as usize).map(|_| Mutex::new(())).collect(),
    };
    let end = Instant::now() + length;
    std::thread::scope(|scope| {
        let run = &run;
        for writer in 0..WRITERS {
            let mut rng = rng.fork();
            scope.spawn(move || {
                let mut count = 0;
                run.repeat(|| run.transfer(writer, &mut count, &mut rng));
            });
        }
        for _ in 0..2 {
            let mut rng = rng.fork();
            scope.spawn(move || {
                let (mut held, mut last) = (Vec::new(), [0; WRITERS]);
                run.repeat(|| run.audit(&mut held, &mut last, &mut rng));
            });
        }
        let (mut r1, mut r2, mut r3, mut r4) = (rng.fork(), rng.fork(), rng.fork(), rng.fork());
        scope.spawn(move || {
            run.repeat(|| {
                pause(&mut r1, 40);
                run.bank.db.checkpoint().map_err(said)
            });
        });
        scope.spawn(move || {
            run.repeat(|| {
                pause(&mut r2, 300);
                if r2.chance(0.5) {
                    run.bank.db.compact().map_err(said)?;
                } else {
                    let ends = (account(r2.below(ACCOUNTS)), account(r2.below(ACCOUNTS)));
                    run.bank.groups[2][0].compact_range(ends.0..ends.1).map_err(said)?;
                }
                run.compactions.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
        });
        scope.spawn(move || {
            run.repeat(|| {
                pause(&mut r3, 20);
                run.come_and_go(&mut r3)
            });
        });
        if let Some(disk) = disk.clone() {
            scope.spawn(move || {
                run.repeat(|| {
                    pause(&mut r4, 20);
                    run.cut_power(&disk, &mut r4)
                });
            });
        }
        while Instant::now() < end && !run.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        run.stop.store(true, Ordering::Relaxed);
    });
    if let Some(text) = run.failure.lock().take() {
        return Err(text);
    }
    let stats = bank.db.stats();
    let totals = Totals {
        transfers: run.returned.iter().map(|count| count.load(Ordering::SeqCst)).sum(),
        refused: run.refused.load(Ordering::Relaxed),
        snapshots: run.snapshots.load(Ordering::Relaxed),
        live_audits: run.live_audits.load(Ordering::Relaxed),
        tasks: stats.background_tasks,
        flushed_bytes: stats.memtable_flush_bytes,
        compacted_bytes: stats.compact_bytes_written,
        checkpoints: stats.checkpoint_count,
        compactions: run.compactions.load(Ordering::Relaxed),
        drops: run.drops.load(Ordering::Relaxed),
        crashes: run.crashes.load(Ordering::Relaxed),
        height: stats.tree_height,
    };
    let report = bank.db.check().map_err(said)?;
    if !report.is_clean() {
        return Err(report.problems.join("; "));
    }
    let returned = run.returned.each_ref().map(|count| count.load(Ordering::SeqCst));
    *run.brief.lock() = None;
    let Run { .. } = run;
    // Dropped without closing, half of the time: the log then has the rest.
    let Bank { db, groups } = bank;
    drop(groups);
    if rng.chance(0.5) {
        db.close().map_err(said)?;
    } else {
        drop(db);
    }
    let again = Bank::open(storage()?, &shape)?;
    let (counters, _) = again.audit(&again.db.snapshot(), &mut rng)?;
    if counters[..] != returned[..] {
        return Err(format!("opened again, transfers {counters:?} are there, {returned:?} had returned"));
    }
    Ok(totals)
}
