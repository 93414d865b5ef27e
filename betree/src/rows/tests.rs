//! Tests of the row cache against a plain map: what is found is right, memory is bounded, popular rows stay.

use std::collections::HashMap;

use betree_testkit::Rng;

use super::*;
use crate::hash::hash;

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
