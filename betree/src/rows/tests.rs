//! Tests of the row cache against a plain map: what is found is right, memory is bounded, popular rows stay.

use std::collections::HashMap;

use betree_testkit::Rng;

use super::*;
use crate::hash::hash;
use crate::{Append, Db, KeyspaceOptions, Result, Stats};

fn row(keyspace: u32, key: &[u8]) -> RowKey<'_> {
    RowKey::new(KeyspaceId(keyspace), key, hash(key))
}

fn check(rows: &Rows) {
    rows.shards.iter().for_each(|shard| shard.lock().check());
}

#[test]
fn a_row_is_what_was_inserted_last_for_its_keyspace_and_key_or_not_there() {
    let rows = Rows::new(8 << 20);
    let mut rng = Rng::new(5);
    rows.set_limit(1 << 20);
    let mut truth: HashMap<(u32, Vec<u8>), (u64, Vec<u8>)> = HashMap::new();
    let mut found = 0;
    for step in 0..200_000u64 {
        // The last that fits into the short header, and the first that does not.
        let keyspace = 62 + rng.below(2) as u32;
        // Squaring skews the choice.
        let n = rng.below(4000) * rng.below(4000) / 1000;
        let key = [&n.to_be_bytes()[..], &vec![7; n as usize % 5]].concat();
        let named = row(keyspace, &key);
        if rng.chance(0.5) {
            if let Some((at, value)) = rows.get(named) {
                found += 1;
                let (true_at, true_value) = &truth[&(keyspace, key)];
                assert!((at.0, &value[..]) == (*true_at, &true_value[..]), "step {step}: as of {at}");
            }
        } else {
            // Older than what is there now and then: it must be ignored then, or be all there is.
            let at = if rng.chance(0.1) { step.saturating_sub(50_000) } else { step };
            let longest = if rng.chance(0.01) { 5000 } else { 120 };
            let len = rng.index(longest);
            let value = rng.bytes(len);
            let there = rows.get(named).map(|(at, _)| at.0);
            rows.insert(named, Seqno(at), &value);
            // The largest are left out, and what was there stays: it is what it was as of then.
            if there.is_none_or(|there| there < at) && len < 4000 {
                truth.insert((keyspace, key), (at, value));
            }
        }
        match rng.below(2000) {
            0 => rows.set_limit(rng.index(2 << 20)),
            1 => rows.set_limit(1 << 20),
            _ => {}
        }
        if step % 1000 == 0 {
            check(&rows);
        }
    }
    assert!(found > 5000, "{found}");
    rows.set_limit(0);
    assert_eq!((rows.stats().bytes, rows.stats().rows), (0, 0));
}

#[test]
fn rows_that_are_read_often_outlive_any_number_that_are_read_once() {
    let rows = Rows::new(1 << 20);
    rows.set_limit(1 << 20);
    let value = [1; 100];
    let hot: Vec<Vec<u8>> = (0..2000u64).map(|n| n.to_le_bytes().to_vec()).collect();
    let mut at = 0;
    for round in 0..200u64 {
        let mut missed = 0;
        for key in &hot {
            if rows.get(row(1, key)).is_none() {
                missed += 1;
                rows.insert(row(1, key), Seqno(at), &value);
            }
        }
        assert!(round < 3 || missed < 20, "round {round}: {missed}");
        for n in 0..2000u64 {
            at += 1;
            let key = (1 << 40 | (round * 2000 + n)).to_le_bytes();
            rows.insert(row(1, &key), Seqno(at), &value);
        }
    }
    check(&rows);
    // Table and headers take less than a quarter of what keys and values of this size do.
    let stats = rows.stats();
    assert!(stats.bytes < stats.rows * 108 * 5 / 4 + (64 << 10), "{stats:?}");
}

#[test]
fn what_is_flushed_becomes_a_row_while_there_is_room_and_makes_none_leave() {
    let rows = Rows::new(1 << 20);
    rows.flushed(row(1, b"key"), Seqno(9), b"value");
    assert!(rows.is_empty());
    rows.set_limit(1 << 20);
    let mut at = 0;
    let mut flush = |n: u64| {
        at += 1;
        rows.flushed(row(1, &n.to_le_bytes()), Seqno(at), &[1; 100]);
    };
    (0..100_000).for_each(&mut flush);
    check(&rows);
    let stats = rows.stats();
    assert!(stats.rows > 5000 && stats.bytes > 7 << 17, "{stats:?}");
    // The first are there, and what is flushed now takes the place of none.
    let there = (0..100_000u64).take_while(|n| rows.get(row(1, &n.to_le_bytes())).is_some()).count();
    assert_eq!(there, stats.rows);
    (100_000..200_000).for_each(&mut flush);
    assert_eq!(rows.stats().rows, stats.rows);
    // What is read takes their place.
    let read = 1 << 40 | 1u64;
    rows.insert(row(1, &read.to_le_bytes()), Seqno(1), &[2; 100]);
    assert!(rows.get(row(1, &read.to_le_bytes())).is_some());
    check(&rows);
}

#[test]
fn a_row_is_brought_up_to_date_where_it_is_and_nothing_older_takes_its_place() {
    let rows = Rows::new(1 << 20);
    rows.set_limit(128 << 10);
    rows.insert(row(1, b"key"), Seqno(5), b"first");
    let found = |key| rows.get(key).map(|(at, value)| (at.0, value.to_vec()));
    for (at, value) in [(7, &b"other"[..]), (8, b"of another length"), (9, b"")] {
        rows.flushed(row(1, b"key"), Seqno(at), value);
        assert_eq!(found(row(1, b"key")), Some((at, value.to_vec())));
        rows.flushed(row(1, b"key"), Seqno(at - 1), b"older");
        rows.flushed(row(2, b"key"), Seqno(at + 1), b"of another keyspace");
        assert_eq!(found(row(1, b"key")), Some((at, value.to_vec())));
        check(&rows);
    }
    assert_eq!(rows.stats().rows, 1);
}

/// Keys that are read and then overwritten are answered without a page, before the flush of the memtable and after it; what a flush deletes or
/// adds an operand to is not taken for a value.
#[test]
fn rows_of_keys_that_a_flush_writes_are_brought_up_to_date() -> Result<()> {
    let disk = betree_testkit::SimStorage::new(1);
    let builder = Db::builder().memory(8 << 20).memtable_bytes(1 << 20).background_threads(0);
    let db = builder.open_on(disk.as_storage())?;
    let keyspace = db.keyspace_with("records", KeyspaceOptions::new().merge_operator(Append))?;
    let key = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    for n in 0..150_000u64 {
        keyspace.insert(key(n), [7; 100])?;
        if n % 1000 == 0 {
            while db.run_background()? {}
        }
    }
    db.compact()?;
    let popular = 0..2000u64;
    // In rounds, since rows get more memory as they fill what they have.
    for _ in 0..4 {
        for n in popular.clone() {
            assert_eq!(keyspace.get(key(n))?.as_deref(), Some(&[7; 100][..]));
        }
        db.shared().share_memory();
    }
    for n in popular.clone() {
        match n % 4 {
            0 => keyspace.remove(key(n))?,
            1 => keyspace.merge(key(n), [1; 8])?,
            2 => keyspace.insert(key(n), [8; 100])?,
            _ => keyspace.insert(key(n), [8; 50])?,
        }
    }
    keyspace.state.freeze();
    while keyspace.state.view().heads.len() > 1 {
        assert!(db.run_background()?, "the flush of the memtable");
    }
    let before = db.stats();
    for n in popular.clone().filter(|n| n % 4 > 1) {
        let value = [8; 100];
        let expected = if n % 4 == 2 { &value[..] } else { &value[..50] };
        assert_eq!(keyspace.get(key(n))?.as_deref(), Some(expected));
    }
    let after = db.stats();
    let pages = |s: &Stats| s.cache_hits + s.cache_misses;
    assert_eq!(after.row_hits - before.row_hits, 1000);
    assert_eq!(pages(&after) - pages(&before), 0, "pages were asked for");
    for n in popular.filter(|n| n % 4 < 2) {
        let expected = (n % 4 == 1).then_some([&[7; 100][..], &[1; 8]].concat());
        assert_eq!(keyspace.get(key(n))?.as_deref(), expected.as_deref());
    }
    Ok(())
}

#[test]
fn what_was_read_again_is_shown_first_and_what_is_recalled_makes_none_leave() {
    let rows = Rows::new(1 << 20);
    rows.set_limit(1 << 20);
    let keys: Vec<_> = (0..5000u64).map(u64::to_le_bytes).collect();
    for (at, key) in (0..).zip(&keys) {
        rows.insert(row(1, key), Seqno(at), &[1; 100]);
    }
    for key in &keys[1000..1500] {
        assert!(rows.get(row(1, key)).is_some());
    }
    let shown = |most: usize| {
        let mut shown = Vec::new();
        rows.visit(0, most, &mut |row| shown.push(row.at.0));
        shown
    };
    let all = shown(usize::MAX);
    assert_eq!(all.len(), 5000);
    assert!(all[..500].iter().all(|at| (1000..1500).contains(at)), "those that were read");
    let some = shown(600 * 120);
    assert_eq!((some.len(), &some[..]), (600, &all[..600]));
    assert!(some[500..].iter().all(|&at| at >= 4000), "the newest of the others: {some:?}");

    let recall = |n: u64, at: u64| {
        let (keyspace, at, key) = (KeyspaceId(1), Seqno(at), &n.to_le_bytes());
        rows.recall(&[Row { keyspace, at, credit: 2, key, value: &[2; 100] }]) == 1
    };
    assert!(!recall(7, 9999), "it is there");
    let taken = (5000..100_000u64).filter(|&n| recall(n, 1)).count();
    check(&rows);
    assert!((1000..5000).contains(&taken), "{taken}");
    assert_eq!(rows.stats().rows, 5000 + taken);
    assert!(keys.iter().all(|key| rows.get(row(1, key)).is_some()));
    let (keyspace, at) = (KeyspaceId(1), Seqno(1));
    assert_eq!(rows.recall(&[Row { keyspace, at, credit: 2, key: b"large", value: &[0; 5000] }]), 0);
}
