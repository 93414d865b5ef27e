//! Compaction on request: of everything and of ranges, alone and beside writers.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use betree::{Db, Error, TreeOptions};

type Done = Result<(), Box<dyn std::error::Error>>;

fn key(i: u32) -> [u8; 8] {
    u64::from(i.wrapping_mul(0x9e37_79b1)).to_be_bytes()
}

#[test]
fn a_range_is_compacted_and_the_rest_left_alone() -> Done {
    let dir = tempfile::tempdir()?;
    let mut tree = TreeOptions::default();
    tree.fanout = 4;
    tree.leaf_bytes = 64 << 10;
    tree.segment_bytes = 16 << 10;
    // Nothing is compacted unasked.
    tree.leaf_delta_percent = 1000;
    tree.leaf_garbage_percent = 1000;
    let builder = Db::builder().memory(4 << 20).memtable_bytes(64 << 10).tree(tree);
    let db = builder.background_threads(0).open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    let record = |i: u32| u64::from(i).to_be_bytes();
    for round in 0..4u32 {
        for i in 0..20_000u32 {
            let i = i.wrapping_mul(7919) % 20_000;
            keyspace.insert(record(i), format!("{round}:{i:0>60}"))?;
        }
    }
    db.checkpoint()?;
    while db.run_background()? {}
    let before = db.stats();
    let live = || db.stats().data_live_bytes;
    let moved = || {
        let stats = db.stats();
        stats.compact_bytes_written + stats.flush_bytes_written
    };
    let whole = live();
    let start = moved();
    keyspace.compact_range(record(5000)..record(5000))?;
    keyspace.compact_range(record(9000)..record(100))?;
    assert_eq!(moved(), start, "there is nothing in an empty range");
    keyspace.compact_range(record(5000)..record(10_000))?;
    let quarter = moved() - start;
    assert!(quarter > 100_000, "{quarter} bytes written for a quarter of {before:?}");
    assert!(live() < whole, "{} of {whole}", live());
    // Once more: nothing is left to do there.
    let start = moved();
    keyspace.compact_range(record(5000)..=record(9999))?;
    assert_eq!(moved(), start);
    db.compact()?;
    let rest = moved() - start;
    assert!(rest > quarter * 3 / 2, "{rest} bytes written for the rest, {quarter} for a quarter");
    let start = moved();
    keyspace.compact_range::<&[u8]>(..)?;
    assert_eq!(moved(), start);
    for (i, found) in keyspace.iter().enumerate() {
        let (key, value) = found?;
        assert_eq!((&key[..], &value[..]), (&record(i as u32)[..], format!("3:{i:0>60}").as_bytes()));
    }
    assert_eq!(keyspace.iter().count(), 20_000);
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    db.close()?;
    assert!(matches!(keyspace.compact_range::<&[u8]>(..), Err(Error::Closed)));
    Ok(())
}

#[test]
fn compacting_ends_though_others_go_on_writing() -> Done {
    let dir = tempfile::tempdir()?;
    let mut tree = TreeOptions::default();
    tree.fanout = 4;
    tree.leaf_bytes = 16 << 10;
    tree.segment_bytes = 8 << 10;
    tree.max_runs = 2;
    let db = Db::builder().memory(4 << 20).memtable_bytes(8 << 10).tree(tree).open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for i in 0..5000 {
        keyspace.insert(key(i), [1; 100])?;
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<(), Error> {
        let writer = scope.spawn(|| -> Result<u32, Error> {
            let mut i = 5000;
            while !ended.load(Relaxed) {
                keyspace.insert(key(i % 20_000), [2; 100])?;
                i += 1;
            }
            Ok(i)
        });
        let compacted = (0..3).try_for_each(|_| {
            keyspace.compact_range(key(17)..)?;
            db.compact()
        });
        ended.store(true, Relaxed);
        let written = writer.join().expect("the writer's thread")?;
        assert!(written > 5000);
        compacted
    })?;
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_first_page_that_is_longer_than_a_first_read_is_merged() -> Done {
    let dir = tempfile::tempdir()?;
    let mut tree = TreeOptions::default();
    tree.fanout = 4;
    tree.leaf_bytes = 64 << 10;
    tree.segment_bytes = 16 << 10;
    let builder = Db::builder().memory(8 << 20).memtable_bytes(512 << 10).tree(tree).background_threads(0);
    let db = builder.open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    // In a page of its own, the first of its segment, in every run and in the base.
    let large = |round: u8| vec![round; 300_000];
    for round in 0..6u8 {
        keyspace.insert([0], large(round))?;
        for i in 0..300 {
            keyspace.insert(key(i), [round; 100])?;
        }
        db.checkpoint()?;
        while db.run_background()? {}
    }
    db.compact()?;
    assert_eq!(keyspace.get([0])?.as_deref(), Some(&large(5)[..]));
    for record in keyspace.range(key(0)..) {
        assert_eq!(record?.1[..], [5; 100]);
    }
    assert_eq!(keyspace.iter().count(), 301);
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    Ok(())
}
