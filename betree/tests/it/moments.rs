//! Iterators and snapshots keep their moment while background threads change everything under them: on a real disk, with flushes,
//! compactions, checkpoints, splits and keyspaces that are dropped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use betree::{Builder, Db, Iter, Keyspace, Options, Snapshot, TreeOptions};
use betree_testkit::Rng;

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

/// Printed by a failing test, and the way to repeat it: `MOMENTS_SEED`.
fn seed() -> u64 {
    let given = std::env::var("MOMENTS_SEED").ok().map(|text| text.parse().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = given.unwrap_or_else(|| Rng::new(now).next_u64() >> 16);
    println!("MOMENTS_SEED={seed}");
    seed
}

/// Small nodes, memtables and log files, two background threads.
fn tiny(portable: bool) -> Builder {
    let mut tree = TreeOptions::default();
    tree.fanout = 4;
    tree.leaf_bytes = 16 << 10;
    tree.segment_bytes = 8 << 10;
    tree.max_runs = 2;
    let mut options = Options::default();
    options.memory = 2 << 20;
    options.memtable_bytes = Some(8 << 10);
    options.log_file_bytes = 64 << 10;
    options.portable_io = portable;
    options.tree = tree;
    Db::builder().options(options)
}

fn key(n: u64) -> Vec<u8> {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).to_be_bytes().to_vec()
}

fn fill(keyspace: &Keyspace, records: u64, rng: &mut Rng) -> Content {
    let mut content = Content::new();
    for n in 0..records {
        let len = rng.index(120);
        let value = rng.bytes(len);
        keyspace.insert(key(n), &value).unwrap();
        content.insert(key(n), value);
    }
    content
}

/// Overwrites, deletes, range deletes, now and then everything, with a flush, a checkpoint or a compaction behind it.
fn churn(db: &Db, keyspace: &Keyspace, steps: u64, rng: &mut Rng) {
    for _ in 0..steps {
        let n = rng.below(6000);
        match rng.below(200) {
            0..140 => {
                let len = rng.index(200);
                keyspace.insert(key(n), rng.bytes(len)).unwrap();
            }
            140..190 => keyspace.remove(key(n)).unwrap(),
            190..196 => {
                let (a, b) = (key(n), key(rng.below(6000)));
                // Narrow ones mostly.
                let end = if rng.chance(0.1) { b } else { [&a[..7], &[0xff]].concat() };
                keyspace.remove_range(&a, &end).unwrap();
            }
            196 => keyspace.clear().unwrap(),
            197 | 198 => db.checkpoint().unwrap(),
            _ => db.compact().unwrap(),
        }
    }
}

/// An iterator that is taken further now and then, and what it must still yield.
struct Walker {
    iter: Iter,
    rest: Content,
    /// Share of steps from the back.
    back: f64,
}

impl Walker {
    /// Takes up to `steps` records.
    fn go(&mut self, steps: usize, rng: &mut Rng) {
        for _ in 0..steps {
            let back = rng.chance(self.back);
            let got = if back { self.iter.next_back() } else { self.iter.next() };
            let got = got.map(|record| record.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap());
            let expected = if back { self.rest.pop_last() } else { self.rest.pop_first() };
            assert!(got == expected, "from the {}: another record", if back { "back" } else { "front" });
        }
    }
}

fn part(content: &Content, low: &[u8], high: &[u8]) -> Content {
    content
        .iter()
        .filter(|(k, _)| &k[..] >= low && &k[..] < high)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn iterators_under_churn(portable: bool) {
    let mut rng = Rng::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let db = tiny(portable).open(dir.path()).unwrap();
    for round in 0..3 {
        let keyspace = db.keyspace(&format!("round {round}")).unwrap();
        let content = fill(&keyspace, 4000, &mut rng);
        let snapshot = db.snapshot();
        let (low, high) = (key(rng.below(4000)), key(rng.below(4000)));
        let (low, high) = if low < high { (low, high) } else { (high, low) };
        let mut walkers = Vec::new();
        for back in [0.0, 1.0, 0.5] {
            let bounded = part(&content, &low, &high);
            let whole = || content.clone();
            walkers.push(Walker { iter: keyspace.iter(), rest: whole(), back });
            walkers.push(Walker { iter: keyspace.range(&low[..]..&high[..]), rest: bounded.clone(), back });
            walkers.push(Walker { iter: snapshot.iter(&keyspace).unwrap(), rest: whole(), back });
            walkers.push(Walker {
                iter: snapshot.range(&keyspace, &low[..]..&high[..]).unwrap(),
                rest: bounded,
                back,
            });
        }
        drop(snapshot);
        for walker in &mut walkers {
            // Half of them begin only when everything is different.
            if rng.chance(0.5) {
                walker.go(700, &mut rng);
            }
        }
        let stop = AtomicBool::new(false);
        let mut own = rng.fork();
        std::thread::scope(|scope| {
            let churning: Vec<_> = (0..2)
                .map(|_| {
                    let (mut rng, db, keyspace) = (rng.fork(), &db, &keyspace);
                    scope.spawn(move || churn(db, keyspace, 3000, &mut rng))
                })
                .collect();
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && walkers.iter().any(|walker| !walker.rest.is_empty()) {
                    let at = own.index(walkers.len());
                    walkers[at].go(40, &mut own);
                }
            });
            for thread in churning {
                thread.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        if round == 2 {
            // Its iterators live on.
            assert!(db.drop_keyspace(keyspace.name()).unwrap());
            db.checkpoint().unwrap();
        }
        for walker in &mut walkers {
            walker.go(walker.rest.len() + 3, &mut rng);
        }
    }
    assert_eq!(db.check().unwrap().problems, Vec::<String>::new());
}

#[test]
fn iterators_yield_their_moment_from_both_ends_while_the_tree_is_churned() {
    iterators_under_churn(false);
}

#[test]
fn iterators_yield_their_moment_from_both_ends_while_the_tree_is_churned_with_portable_io() {
    iterators_under_churn(true);
}

fn read(snapshot: &Snapshot, keyspace: &Keyspace, backwards: bool) -> Content {
    let iter = snapshot.iter(keyspace).unwrap();
    let copied = |record: betree::Result<(_, _)>| {
        let (k, v): (bytes::Bytes, bytes::Bytes) = record.unwrap();
        (k.to_vec(), v.to_vec())
    };
    if backwards { iter.rev().map(copied).collect() } else { iter.map(copied).collect() }
}

#[test]
fn a_thousand_snapshots_keep_their_moments_and_give_the_space_back_in_any_order() {
    const RECORDS: u64 = 150;
    let mut rng = Rng::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let db = tiny(false).open(dir.path()).unwrap();
    let keyspace = db.keyspace("k").unwrap();
    let mut content = fill(&keyspace, RECORDS, &mut rng);
    db.compact().unwrap();
    let mut held: Vec<(Snapshot, Content)> = Vec::new();
    for round in 0..1000u64 {
        for _ in 0..10 {
            let n = rng.below(RECORDS);
            if rng.chance(0.1) {
                keyspace.remove(key(n)).unwrap();
                content.remove(&key(n));
            } else {
                let value = rng.bytes(100);
                keyspace.insert(key(n), &value).unwrap();
                content.insert(key(n), value);
            }
        }
        held.push((db.snapshot(), content.clone()));
        if round % 100 == 99 {
            db.compact().unwrap();
        }
    }
    let pinned = db.stats().data_live_bytes;
    rng.shuffle(&mut held);
    while let Some((snapshot, expected)) = held.pop() {
        let backwards = rng.chance(0.5);
        assert!(read(&snapshot, &keyspace, backwards) == expected, "a snapshot has changed");
        let keys: Vec<_> = (0..RECORDS).map(key).collect();
        let values = snapshot.multi_get(&keyspace, &keys).unwrap();
        assert!(keys.iter().zip(values).all(|(k, v)| v.as_deref() == expected.get(k).map(|v| &v[..])));
        drop(snapshot);
        // Writing goes on while they are released.
        let value = rng.bytes(100);
        let n = rng.below(RECORDS);
        keyspace.insert(key(n), &value).unwrap();
        content.insert(key(n), value);
    }
    db.compact().unwrap();
    // The extents of the checkpoint before the last are given back by the last.
    db.checkpoint().unwrap();
    let left = db.stats().data_live_bytes;
    let size: u64 = content.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum();
    println!("{pinned} bytes were held by snapshots, {left} are left for {size}");
    assert!(pinned > 10 * size, "the snapshots held nothing: {pinned} bytes");
    assert!(left < 4 * size + (64 << 10), "{left} bytes are left for {size}");
    assert_eq!(read(&db.snapshot(), &keyspace, false), content);
    assert_eq!(db.check().unwrap().problems, Vec::<String>::new());
}

#[test]
fn a_snapshot_outlives_the_keyspace_and_its_successor_of_the_same_name() {
    let mut rng = Rng::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let db = tiny(false).open(dir.path()).unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        let keyspace = db.keyspace("brief").unwrap();
        let content = fill(&keyspace, 1000, &mut rng);
        held.push((db.snapshot(), keyspace.clone(), content));
        churn(&db, &keyspace, 500, &mut rng);
        assert!(db.drop_keyspace("brief").unwrap());
    }
    rng.shuffle(&mut held);
    for (snapshot, keyspace, content) in held.drain(..) {
        assert!(read(&snapshot, &keyspace, rng.chance(0.5)) == content, "a snapshot has changed");
    }
    db.checkpoint().unwrap();
    let left = db.stats().data_live_bytes;
    assert!(left < 64 << 10, "{left} bytes are left of nothing");
    assert_eq!(db.check().unwrap().problems, Vec::<String>::new());
}
