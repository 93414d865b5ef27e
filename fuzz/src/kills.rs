//! Kill loops: a process with several writing threads is killed, again and again, and must never lose what it acknowledged.
//!
//! The writer (`write_until_killed`) runs in a process of its own and never ends by itself. Each of its threads commits numbered batches
//! to key ranges of its own, and after each commit writes the number into the file of acknowledgements: a page cache that
//! survives the process, outside of the database. What a thread's part of the database contains after batch n is a function of n
//! (`Model`), so the parent needs no copy of what was written: it opens the database after each kill, finds every thread's last
//! batch, requires it to be the acknowledged one or the one after it (the batch in flight; one more for each life that nobody looked at),
//! and compares everything.
//!
//! Part of the kills hits a process that is still opening the database. Trees, memtables and log files are tiny, so that flushes,
//! compactions, checkpoints and changes of the log file are always under way. Options are drawn anew for each life, both backends
//! among them. Who runs a child says how its program is called, since tests and programs differ in that.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use betree::{AddI64, Builder, Db, Durability, KeyspaceOptions, TreeOptions};
use betree_testkit::Rng;

/// Writing threads of a child.
const WRITERS: usize = 3;
/// How many numbered records of a thread are kept: batch i removes the one of batch i - WINDOW.
const WINDOW: u64 = 200;

/// A kill loop.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program that calls [`write_until_killed`] when it is started with `child DIRECTORY SEED`.
    pub program: PathBuf,
    /// Where the database lies; removed by the caller.
    pub directory: PathBuf,
    /// Where the loop's choices come from. The moments of the kills do not repeat.
    pub seed: u64,
    /// Kills.
    pub kills: u64,
    /// Every so many verifications all invariants are checked as well.
    pub check_every: u64,
    /// Whether progress is printed.
    pub talk: bool,
}

/// What a loop saw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Processes killed.
    pub kills: u64,
    /// Of these, how many had acknowledged nothing yet: killed while opening.
    pub before_the_first_write: u64,
    /// Times the whole content was compared.
    pub verified: u64,
    /// Times all invariants were checked.
    pub checks: u64,
    /// Batches that were acknowledged, and so were there.
    pub batches: u64,
    /// Batches that were in flight and had taken effect.
    pub in_flight: u64,
}

fn builder(rng: &mut Rng) -> Builder {
    let mut tree = TreeOptions::default();
    (tree.fanout, tree.max_runs) = (4, 2);
    (tree.leaf_bytes, tree.segment_bytes) = (32 << 10, 16 << 10);
    let mut options = betree::Options::default();
    options.memory = 4 << 20;
    options.memtable_bytes = Some([8 << 10, 32 << 10][rng.index(2)]);
    options.log_file_bytes = [16 << 10, 128 << 10][rng.index(2)];
    options.background_threads = rng.between(1, 3) as usize;
    options.sync_interval = rng.chance(0.5).then_some(Duration::from_millis(5));
    options.portable_io = rng.chance(0.5);
    options.tree = tree;
    Db::builder().options(options)
}

/// One change of batch `i` of a thread.
enum Change {
    Put(String, Vec<u8>),
    Delete(String),
    RangeDelete(String, String),
}

/// What batch `i` of thread `thread` does, the count in the second keyspace aside. A function of its arguments alone.
fn batch(thread: usize, i: u64) -> Vec<Change> {
    let mut rng = Rng::new(i.wrapping_mul(31).wrapping_add(thread as u64));
    let mut value = |longest: u64| {
        let len = rng.below(longest) as usize;
        [&i.to_le_bytes()[..], &rng.bytes(len)].concat()
    };
    let mut changes = vec![
        Change::Put(format!("{thread}/last"), i.to_le_bytes().to_vec()),
        Change::Put(format!("{thread}/n{i:010}"), value(60)),
        Change::Put(
            format!("{thread}/r{:04}", i.wrapping_mul(2_654_435_761) % 700),
            value(if i.is_multiple_of(41) { 9000 } else { 150 }),
        ),
    ];
    if i > WINDOW {
        changes.push(Change::Delete(format!("{thread}/n{:010}", i - WINDOW)));
    }
    if i.is_multiple_of(53) {
        let from = i % 690;
        changes
            .push(Change::RangeDelete(format!("{thread}/r{from:04}"), format!("{thread}/r{:04}", from + 9)));
    }
    changes
}

/// What a thread's part of the database contains.
#[derive(Debug, Clone, Default)]
struct Model {
    last: u64,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    fn advance(&mut self, thread: usize, to: u64) {
        for i in self.last + 1..=to {
            for change in batch(thread, i) {
                match change {
                    Change::Put(key, value) => drop(self.records.insert(key.into(), value)),
                    Change::Delete(key) => drop(self.records.remove(key.as_bytes())),
                    Change::RangeDelete(start, end) => {
                        let covered = self.records.range(start.into_bytes()..end.into_bytes());
                        let covered: Vec<_> = covered.map(|(key, _)| key.clone()).collect();
                        covered.iter().for_each(|key| drop(self.records.remove(key)));
                    }
                }
            }
        }
        self.last = to;
    }
}

fn acknowledgements(directory: &Path) -> std::io::Result<File> {
    let path = directory.join("acknowledged");
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn acknowledged(file: &File) -> Result<[u64; WRITERS], String> {
    let mut all = [0; WRITERS];
    for (thread, number) in all.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        // A file that is still shorter says zero.
        match file.read_at(&mut bytes, thread as u64 * 8) {
            Ok(8 | 0) => *number = u64::from_le_bytes(bytes),
            other => return Err(format!("the file of acknowledgements: {other:?}")),
        }
    }
    Ok(all)
}

fn number(bytes: Option<betree::Bytes>) -> u64 {
    bytes.and_then(|b| b[..].try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The life of a child: opens the database below `directory` and writes until the process is killed.
///
/// # Errors
/// Those of the database: no error is expected.
pub fn write_until_killed(directory: &Path, seed: u64) -> Result<(), String> {
    let file = acknowledgements(directory).map_err(|e| e.to_string())?;
    let db = builder(&mut Rng::new(seed)).open(directory.join("db")).map_err(|e| e.to_string())?;
    let write = |thread: usize| -> betree::Result<()> {
        let records = db.keyspace("records")?;
        let counts = db.keyspace_with("counts", KeyspaceOptions::new().merge_operator(AddI64))?;
        let mut encoded = db.batch();
        for i in number(records.get(format!("{thread}/last"))?) + 1.. {
            for change in batch(thread, i) {
                match change {
                    Change::Put(key, value) => encoded.insert(&records, key, value)?,
                    Change::Delete(key) => encoded.remove(&records, key)?,
                    Change::RangeDelete(start, end) => encoded.remove_range(&records, start, end)?,
                }
            }
            encoded.merge(&counts, format!("{thread}"), 1i64.to_le_bytes())?;
            let sync = (i + thread as u64).is_multiple_of(40);
            db.write_with(&mut encoded, if sync { Durability::Sync } else { Durability::Buffered })?;
            if file.write_at(&i.to_le_bytes(), thread as u64 * 8).is_err() {
                return Ok(());
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WRITERS).map(|thread| scope.spawn(move || write(thread))).collect();
        threads.into_iter().try_for_each(|t| match t.join() {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("a writer panicked".to_string()),
        })
    })
}

/// Runs the loop.
///
/// # Errors
/// A lost, torn or invented write, a broken invariant, a child that failed; with the seed and the number of the kill.
pub fn run(plan: &Plan) -> Result<Totals, String> {
    let mut totals = Totals::default();
    let mut models = vec![Model::default(); WRITERS];
    let mut rng = Rng::new(plan.seed);
    let started = Instant::now();
    while totals.kills < plan.kills {
        round(plan, &mut rng, &mut models, &mut totals)
            .map_err(|e| format!("seed {}, after kill {}: {e}", plan.seed, totals.kills))?;
        if plan.talk && totals.kills % 100 < 2 {
            println!("{:>5} s  {totals:?}", started.elapsed().as_secs());
        }
    }
    Ok(totals)
}

/// One or more kills, then one verification.
fn round(plan: &Plan, rng: &mut Rng, models: &mut [Model], totals: &mut Totals) -> Result<(), String> {
    let file = acknowledgements(&plan.directory).map_err(|e| e.to_string())?;
    // Each life may leave one batch in flight per thread, and the next continues behind it.
    let mut lives = 0;
    loop {
        lives += 1;
        let before = acknowledged(&file)?;
        kill_one(plan, rng, &file)?;
        totals.kills += 1;
        if acknowledged(&file)? == before {
            totals.before_the_first_write += 1;
        }
        // Now and then the next one is killed on what this one left, without anybody having looked at it.
        if rng.chance(0.7) || totals.kills >= plan.kills {
            break;
        }
    }
    let acknowledged = acknowledged(&file)?;
    let db = builder(rng).open(plan.directory.join("db")).map_err(|e| format!("does not open: {e}"))?;
    let broken = |e: betree::Error| format!("does not read: {e}");
    let records = db.keyspace("records").map_err(broken)?;
    let counts = db.keyspace_with("counts", KeyspaceOptions::new().merge_operator(AddI64)).map_err(broken)?;
    let mut expected = BTreeMap::new();
    for (thread, model) in models.iter_mut().enumerate() {
        let last = number(records.get(format!("{thread}/last")).map_err(broken)?);
        // What was seen there must stay there as well, although nobody acknowledged it.
        let least = acknowledged[thread].max(model.last);
        let allowed = least..=least + lives;
        if !allowed.contains(&last) {
            return Err(format!("thread {thread}: batch {last} is the last there, allowed {allowed:?}"));
        }
        totals.batches += last - model.last;
        totals.in_flight += last - least;
        model.advance(thread, last);
        let count = number(counts.get(format!("{thread}")).map_err(broken)?);
        if count != last {
            return Err(format!("thread {thread}: {count} counted, but batch {last} is the last"));
        }
        expected.extend(model.records.iter());
    }
    let mut expected = expected.into_iter();
    for found in records.iter() {
        let (key, value) = found.map_err(broken)?;
        match expected.next() {
            Some((k, v)) if k[..] == key[..] && v[..] == value[..] => {}
            other => {
                let other = other.map(|(k, _)| k.escape_ascii().to_string());
                return Err(format!(
                    "{} was found instead of {other:?}, or has another value",
                    key.escape_ascii()
                ));
            }
        }
    }
    if let Some((key, _)) = expected.next() {
        return Err(format!("{} is lost", key.escape_ascii()));
    }
    totals.verified += 1;
    if totals.verified.is_multiple_of(plan.check_every) {
        let report = db.check().map_err(broken)?;
        if !report.is_clean() {
            return Err(format!("check: {}", report.problems.join("; ")));
        }
        totals.checks += 1;
    }
    if rng.chance(0.3) {
        drop((records, counts));
        db.close().map_err(|e| format!("does not close: {e}"))?;
    }
    Ok(())
}

/// Starts a child and kills it: during its recovery, or after it has acknowledged something, at a random moment.
fn kill_one(plan: &Plan, rng: &mut Rng, file: &File) -> Result<(), String> {
    let before = acknowledged(file)?;
    let mut child = Command::new(&plan.program)
        .arg("child")
        .arg(&plan.directory)
        .arg(rng.next_u64().to_string())
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| format!("{}: {e}", plan.program.display()))?;
    if rng.chance(0.35) {
        std::thread::sleep(Duration::from_micros(rng.below(12_000)));
    } else {
        let deadline = Instant::now() + Duration::from_secs(60);
        while acknowledged(file)? == before {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                return Err(format!("the writer ended by itself: {status}"));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                return Err("the writer acknowledges nothing".into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(rng.below(30_000)));
    }
    child.kill().map_err(|e| e.to_string())?;
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.code().is_some() {
        return Err(format!("the writer ended by itself: {status}"));
    }
    Ok(())
}
