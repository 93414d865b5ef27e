//! The public API as a user meets it: contracts, limits, bad input.

use betree::{
    AddI64, Append, Builder, Db, Durability, Error, KeyspaceOptions, MAX_KEY_LEN, MAX_VALUE_LEN, TreeOptions,
};

type Done = Result<(), Box<dyn std::error::Error>>;

/// Options under which every mechanism of the tree shows with a few thousand records.
fn tiny() -> Builder {
    let mut tree = TreeOptions::default();
    tree.fanout = 4;
    tree.leaf_bytes = 16 << 10;
    tree.segment_bytes = 8 << 10;
    tree.max_runs = 2;
    Db::builder().memory(4 << 20).memtable_bytes(8 << 10).tree(tree)
}

fn key(i: u32) -> [u8; 8] {
    u64::from(i.wrapping_mul(0x9e37_79b1)).to_be_bytes()
}

#[test]
fn records_survive_closing_and_dropping_in_order() -> Done {
    let dir = tempfile::tempdir()?;
    for round in 0..3u32 {
        let db = tiny().open(dir.path())?;
        let keyspace = db.keyspace("default")?;
        for i in round * 2000..(round + 1) * 2000 {
            keyspace.insert(key(i), i.to_string())?;
        }
        if round % 2 == 0 {
            db.close()?;
        }
    }
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    let all: Vec<_> = keyspace.iter().collect::<Result<_, _>>()?;
    assert_eq!(all.len(), 6000);
    assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
    let back: Vec<_> = keyspace.iter().rev().collect::<Result<_, _>>()?;
    assert!(all.iter().eq(back.iter().rev()));
    for i in 0..6000 {
        assert_eq!(keyspace.get(key(i))?.as_deref(), Some(i.to_string().as_bytes()), "record {i}");
    }
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_key_or_value_over_the_limit_is_refused_by_name_and_nothing_is_written() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    let longest = vec![0xff; MAX_KEY_LEN];
    keyspace.insert(&longest, "at the limit")?;
    keyspace.insert("", "empty key")?;
    let long = vec![1; MAX_KEY_LEN + 1];
    assert!(matches!(keyspace.insert(&long, ""), Err(Error::KeyTooLong { len }) if len == MAX_KEY_LEN + 1));
    assert!(matches!(keyspace.remove_range("", &long), Err(Error::KeyTooLong { .. })));
    let huge = vec![0; MAX_VALUE_LEN + 1];
    let error = keyspace.insert("k", &huge).unwrap_err();
    assert!(
        matches!(error, Error::ValueTooLong { .. }) && error.to_string().contains("1073741824"),
        "{error}"
    );
    db.checkpoint()?;
    assert_eq!(keyspace.get(&longest)?.as_deref(), Some(&b"at the limit"[..]));
    assert_eq!(keyspace.first_key_value()?.map(|(k, _)| k.len()), Some(0));
    assert_eq!(keyspace.iter().count(), 2);
    keyspace.clear()?;
    assert_eq!(keyspace.iter().count(), 0);
    Ok(())
}

#[test]
fn values_of_many_megabytes_are_stored_flushed_and_read_back() -> Done {
    let dir = tempfile::tempdir()?;
    {
        let db = Db::builder().memory(64 << 20).open(dir.path())?;
        let keyspace = db.keyspace("default")?;
        for i in 0..6u8 {
            keyspace.insert([i], vec![i; 5 << 20])?;
            keyspace.insert([i, 1], "small")?;
        }
        db.compact()?;
        assert_eq!(db.check()?.problems, Vec::<String>::new());
    }
    let db = Db::builder().memory(64 << 20).open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for i in 0..6u8 {
        let value = keyspace.get([i])?.ok_or("missing")?;
        assert!(value.len() == 5 << 20 && value.iter().all(|&b| b == i));
        assert_eq!(keyspace.get([i, 1])?.as_deref(), Some(&b"small"[..]));
    }
    assert_eq!(keyspace.iter().rev().count(), 12);
    Ok(())
}

#[test]
fn empty_and_inverted_ranges_hold_nothing_and_remove_nothing() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for k in ["a", "b", "c"] {
        keyspace.insert(k, k)?;
    }
    keyspace.remove_range("c", "a")?;
    keyspace.remove_range("b", "b")?;
    assert_eq!(keyspace.range("c".."a").count(), 0);
    assert_eq!(keyspace.range("b".."b").count(), 0);
    assert_eq!(keyspace.range("b"..="b").count(), 1);
    assert_eq!(keyspace.range::<&str>(..).count(), 3);
    assert_eq!(keyspace.prefix("").count(), 3);
    keyspace.insert([0xff, 0xff], "")?;
    keyspace.insert([0xff, 0xff, 0], "")?;
    assert_eq!(keyspace.prefix([0xff]).count(), 2);
    Ok(())
}

#[test]
fn an_iterator_from_both_ends_meets_in_the_middle_and_keeps_its_moment() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for i in 0..1000u32 {
        keyspace.insert(i.to_be_bytes(), "old")?;
    }
    let mut iter = keyspace.range(100u32.to_be_bytes()..900u32.to_be_bytes());
    let first = iter.next().ok_or("empty")??;
    for i in 0..1000u32 {
        keyspace.insert(i.to_be_bytes(), "new")?;
    }
    keyspace.remove_range(0u32.to_be_bytes(), 500u32.to_be_bytes())?;
    db.compact()?;
    drop((keyspace, db));
    let mut seen = vec![first.0];
    let mut from_back = Vec::new();
    while let Some(item) = iter.next() {
        let (key, value) = item?;
        assert_eq!(&value[..], b"old");
        seen.push(key);
        if let Some(item) = iter.next_back() {
            from_back.push(item?.0);
        }
    }
    assert!(iter.next_back().is_none() && iter.next().is_none());
    seen.extend(from_back.into_iter().rev());
    let expected: Vec<_> = (100..900u32).map(|i| i.to_be_bytes().to_vec()).collect();
    assert_eq!(seen, expected);
    Ok(())
}

#[test]
fn a_snapshot_stays_as_it_was_across_keyspaces_flushes_and_drops() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let (a, b) = (db.keyspace("a")?, db.keyspace("b")?);
    for i in 0..3000 {
        let mut batch = db.batch();
        batch.insert(&a, key(i), "1")?;
        batch.insert(&b, key(i), "1")?;
        db.write(batch)?;
    }
    let snapshot = db.snapshot();
    for i in 0..3000 {
        a.insert(key(i), "2")?;
        b.remove(key(i))?;
    }
    db.compact()?;
    assert!(db.drop_keyspace("b")?);
    assert!(!db.drop_keyspace("b")?);
    assert!(matches!(b.insert("k", "v"), Err(Error::KeyspaceDropped { .. })));
    assert_eq!(snapshot.iter(&a)?.filter_map(Result::ok).filter(|(_, v)| v == "1").count(), 3000);
    assert_eq!(snapshot.iter(&b)?.count(), 3000);
    assert_eq!(snapshot.get(&a, key(7))?.as_deref(), Some(&b"1"[..]));
    let young = db.keyspace("young")?;
    assert!(matches!(snapshot.get(&young, "k"), Err(Error::InvalidKeyspace { .. })));
    let again = db.keyspace("b")?;
    assert_eq!(again.iter().count(), 0, "a keyspace made anew is empty");
    Ok(())
}

#[test]
fn ten_thousand_snapshots_cost_little_and_all_read() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    let mut snapshots = Vec::new();
    for i in 0..10_000u32 {
        keyspace.insert("counter", i.to_string())?;
        snapshots.push(db.snapshot());
    }
    for (i, snapshot) in snapshots.iter().enumerate().step_by(97) {
        assert_eq!(snapshot.get(&keyspace, "counter")?.as_deref(), Some(i.to_string().as_bytes()));
    }
    Ok(())
}

#[test]
fn merges_fold_across_memtables_runs_leaves_and_reopening() -> Done {
    let dir = tempfile::tempdir()?;
    let sum = |v: Option<betree::Bytes>| v.map(|v| i64::from_le_bytes(v[..].try_into().unwrap_or_default()));
    {
        let db = tiny().open(dir.path())?;
        let counters = db.keyspace_with("counters", KeyspaceOptions::new().merge_operator(AddI64))?;
        for i in 0..20_000u32 {
            counters.merge(key(i % 500), 1i64.to_le_bytes())?;
        }
        counters.remove(key(3))?;
        counters.merge(key(3), 5i64.to_le_bytes())?;
        counters.remove_range(key(4), [&key(4)[..], &[0]].concat())?;
        counters.merge(key(4), 9i64.to_le_bytes())?;
    }
    let db = tiny().open(dir.path())?;
    let counters = db.keyspace("counters")?;
    for i in (0..500).filter(|i| ![3, 4].contains(i)) {
        assert_eq!(sum(counters.get(key(i))?), Some(40), "counter {i}");
    }
    assert_eq!((sum(counters.get(key(3))?), sum(counters.get(key(4))?)), (Some(5), Some(9)));
    db.compact()?;
    assert_eq!(counters.iter().count(), 500);
    assert_eq!(sum(counters.get(key(3))?), Some(5));
    let error = db.keyspace_with("counters", KeyspaceOptions::new().merge_operator(Append)).unwrap_err();
    assert!(error.to_string().contains("betree.add_i64"), "{error}");
    let plain = db.keyspace("plain")?;
    assert!(matches!(plain.merge("k", "v"), Err(Error::MergeOperator { .. })));
    assert!(matches!(db.batch().merge(&plain, "k", "v"), Err(Error::MergeOperator { .. })));
    Ok(())
}

#[test]
fn removed_ranges_stay_removed_and_give_their_space_back() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for i in 0..20_000u32 {
        keyspace.insert(i.to_be_bytes(), [7; 100])?;
    }
    db.compact()?;
    let full = db.stats().data_live_bytes;
    keyspace.remove_range(1000u32.to_be_bytes(), 19_000u32.to_be_bytes())?;
    keyspace.insert(5000u32.to_be_bytes(), "back")?;
    let keys = |iter: betree::Iter| iter.map(|r| r.map(|(k, _)| k)).collect::<Result<Vec<_>, _>>();
    let expected: Vec<_> =
        (0..1000u32).chain([5000]).chain(19_000..20_000).map(|i| i.to_be_bytes().to_vec()).collect();
    assert_eq!(keys(keyspace.iter())?, expected);
    db.compact()?;
    assert_eq!(keys(keyspace.iter())?, expected);
    let mut reversed = keys(keyspace.iter())?;
    reversed.reverse();
    assert_eq!(keyspace.iter().rev().map(|r| r.map(|(k, _)| k)).collect::<Result<Vec<_>, _>>()?, reversed);
    let left = db.stats().data_live_bytes;
    assert!(left * 5 < full, "{left} bytes live of {full} after removing nine tenths");
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    Ok(())
}

/// What iterators skip must be what was removed, and nothing else: in both directions, over leaves, with records put back, whether the
/// removals are in a memtable, in runs above or carried out.
#[test]
fn iterators_skip_removed_ranges_and_nothing_else() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    let mut model = std::collections::BTreeMap::new();
    for i in 0..20_000u32 {
        let key = (i.wrapping_mul(7919) % 20_000).to_be_bytes();
        keyspace.insert(key, [i as u8; 60])?;
        model.insert(key, [i as u8; 60]);
    }
    let mut slice_by_slice = |every: u32, from: u32| -> Done {
        for start in (0..20_000).step_by(every as usize) {
            let (low, high) = ((start + from).to_be_bytes(), (start + every).to_be_bytes());
            keyspace.remove_range(low, high)?;
            model.retain(|key, _| *key < low || *key >= high);
            // One comes back in the middle of some.
            if start % (3 * every) == 0 {
                let key = (start + (from + every) / 2).to_be_bytes();
                keyspace.insert(key, [9; 60])?;
                model.insert(key, [9; 60]);
            }
        }
        let low = 3_333u32.to_be_bytes();
        for round in 0..3 {
            let expected: Vec<_> = model.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            let forward: Vec<_> = keyspace.iter().collect::<Result<_, _>>()?;
            assert!(forward.iter().map(|(k, v)| (&k[..], &v[..])).eq(expected.iter().copied()), "{round}");
            let backward: Vec<_> = keyspace.iter().rev().collect::<Result<_, _>>()?;
            assert!(backward.iter().map(|(k, v)| (&k[..], &v[..])).eq(expected.iter().rev().copied()));
            let part: Vec<_> = keyspace.range(low..).take(300).collect::<Result<_, _>>()?;
            let expected = expected.iter().filter(|(key, _)| **key >= low[..]).take(300);
            assert!(part.iter().map(|(k, v)| (&k[..], &v[..])).eq(expected.copied()));
            match round {
                0 => db.checkpoint()?,
                _ => db.compact()?,
            }
        }
        Ok(())
    };
    slice_by_slice(2000, 200)?;
    slice_by_slice(40, 25)?;
    Ok(())
}

#[test]
fn a_scan_of_everything_right_after_opening_is_whole_both_ways_and_ends_at_damage() -> Done {
    const RECORDS: u32 = 30_000;
    let dir = tempfile::tempdir()?;
    let open = || -> betree::Result<_> {
        let db = tiny().memtable_bytes(64 << 10).background_threads(0).open(dir.path())?;
        let keyspace = db.keyspace("default")?;
        Ok((db, keyspace))
    };
    let mut expected: Vec<([u8; 8], [u8; 100])> = (0..RECORDS).map(|i| (key(i), [i as u8; 100])).collect();
    {
        let (db, keyspace) = open()?;
        for (key, value) in &expected {
            keyspace.insert(key, value)?;
        }
        db.close()?;
    }
    expected.sort();
    // No page index is in memory when the leaves come in sight.
    let mut forward = open()?.1.iter();
    for (key, value) in &expected {
        assert_eq!(forward.next_record()?, Some((&key[..], &value[..])));
    }
    assert_eq!(forward.next_record()?, None);
    drop(forward);
    let mut backward = open()?.1.iter();
    for (key, value) in expected.iter().rev() {
        assert_eq!(backward.next_record_back()?, Some((&key[..], &value[..])));
    }
    assert_eq!(backward.next_record_back()?, None);
    drop(backward);

    // The trunk is in memory before the file is damaged.
    let (_db, keyspace) = open()?;
    let path = dir.path().join("data.betree");
    let mut bytes = std::fs::read(&path)?;
    let third = bytes.len() / 3;
    bytes[third..2 * third].iter_mut().step_by(1000).for_each(|byte| *byte ^= 0x55);
    std::fs::write(&path, bytes)?;
    let mut rows = expected.iter();
    let mut iter = keyspace.iter();
    let error = loop {
        match iter.next_record() {
            Ok(record) => {
                let next = rows.next().map(|(key, value)| (&key[..], &value[..]));
                assert!(record.is_some() && record == next, "{record:?}, not {next:?}");
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert_eq!(iter.next_record()?, None);
    Ok(())
}

#[test]
fn a_few_reads_bring_all_page_indexes_and_filters_to_hand() -> Done {
    let dir = tempfile::tempdir()?;
    let builder = || tiny().memory(32 << 20).background_threads(0);
    {
        let db = builder().open(dir.path())?;
        let keyspace = db.keyspace("default")?;
        for i in 0..10_000u32 {
            keyspace.insert(key(i), [i as u8; 100])?;
        }
        db.compact()?;
        db.close()?;
    }
    let db = builder().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    while db.run_background()? {}
    for i in 0..17 {
        assert_eq!(keyspace.get(key(i))?.as_deref(), Some(&[i as u8; 100][..]));
    }
    let few = db.stats().index_bytes;
    while db.run_background()? {}
    let all = db.stats().index_bytes;
    assert!(all > 5 * few, "{few} bytes after 17 reads, {all} after background work");
    for i in 0..10_000u32 {
        assert_eq!(keyspace.get(key(i))?.as_deref(), Some(&[i as u8; 100][..]));
    }
    assert_eq!(db.stats().index_bytes, all);
    Ok(())
}

#[test]
fn a_second_opener_is_told_so_and_can_open_after_the_last_handle_is_gone() -> Done {
    let dir = tempfile::tempdir()?;
    let db = Db::open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    assert!(matches!(Db::open(dir.path()), Err(Error::Locked { .. })));
    drop(db);
    assert!(matches!(Db::open(dir.path()), Err(Error::Locked { .. })), "a keyspace keeps the database open");
    drop(keyspace);
    Db::open(dir.path())?;
    Ok(())
}

#[test]
fn a_closed_database_answers_so_from_every_handle() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    keyspace.insert("k", "v")?;
    db.clone().close()?;
    assert!(matches!(keyspace.insert("k", "w"), Err(Error::Closed)));
    assert!(matches!(keyspace.get("k"), Err(Error::Closed)));
    assert!(matches!(db.checkpoint(), Err(Error::Closed)));
    db.close()?;
    Ok(())
}

#[test]
fn options_out_of_their_limits_are_refused_by_name() -> Done {
    let dir = tempfile::tempdir()?;
    let name = |builder: Builder| match builder.open(dir.path()) {
        Err(Error::InvalidOption { option, .. }) => option,
        other => panic!("opened: {other:?}"),
    };
    assert_eq!(name(Db::builder().memory(1000)), "memory");
    assert_eq!(name(Db::builder().memory(1 << 20).memtable_bytes(1 << 20)), "memtable_bytes");
    let mut tree = TreeOptions::default();
    tree.page_bytes = 5000;
    assert_eq!(name(Db::builder().tree(tree)), "page_bytes");
    let missing = Db::builder().create_if_missing(false).open(dir.path().join("none"));
    assert!(matches!(missing, Err(Error::Missing { .. })));
    assert!(!dir.path().join("none").exists());
    Ok(())
}

#[test]
fn a_batch_is_refused_by_another_database_and_usable_again_after_writing() -> Done {
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (a, b) = (tiny().open(one.path())?, tiny().open(two.path())?);
    let (ka, kb) = (a.keyspace("k")?, b.keyspace("k")?);
    let mut batch = a.batch();
    batch.insert(&ka, "x", "1")?;
    batch.insert(&kb, "y", "1")?;
    assert!(matches!(a.write_with(&mut batch, Durability::Sync), Err(Error::ForeignKeyspace { .. })));
    assert_eq!(ka.get("x")?, None);
    batch.clear();
    for i in 0..100u32 {
        batch.insert(&ka, i.to_be_bytes(), "v")?;
        if i % 10 == 9 {
            a.write_with(&mut batch, Durability::Sync)?;
            assert!(batch.is_empty());
        }
    }
    assert_eq!(ka.iter().count(), 100);
    Ok(())
}

#[test]
fn writers_and_readers_of_many_threads_see_whole_batches() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let (a, b) = (db.keyspace("a")?, db.keyspace("b")?);
    std::thread::scope(|scope| {
        for t in 0..3u32 {
            let (db, a, b) = (&db, &a, &b);
            scope.spawn(move || {
                for i in 0..2000u32 {
                    let mut batch = db.batch();
                    let k = [t.to_be_bytes(), (i % 300).to_be_bytes()].concat();
                    batch.insert(a, &k, i.to_be_bytes()).unwrap();
                    batch.insert(b, &k, i.to_be_bytes()).unwrap();
                    db.write(batch).unwrap();
                }
            });
        }
        for _ in 0..2 {
            let (db, a, b) = (&db, &a, &b);
            scope.spawn(move || {
                for _ in 0..40 {
                    let snapshot = db.snapshot();
                    let left = snapshot.iter(a).unwrap().map(Result::unwrap);
                    let right = snapshot.iter(b).unwrap().map(Result::unwrap);
                    assert!(left.eq(right), "a snapshot shows half a batch");
                }
            });
        }
    });
    assert_eq!(a.iter().count(), 900);
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    Ok(())
}

#[test]
fn multi_get_answers_in_the_order_of_the_keys_present_absent_and_repeated() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for i in 0..5000 {
        keyspace.insert(key(i), i.to_string())?;
    }
    db.compact()?;
    let keys: Vec<_> = (0..400).map(|i| key(i * 37 % 7000)).collect();
    let values = keyspace.multi_get(&keys)?;
    for (k, v) in keys.iter().zip(&values) {
        assert_eq!(v, &keyspace.get(k)?);
    }
    assert!(values.iter().any(Option::is_none) && values.iter().any(Option::is_some));
    Ok(())
}

#[test]
fn a_page_is_read_once_for_all_keys_of_a_multi_get() -> Done {
    let dir = tempfile::tempdir()?;
    let db = tiny().background_threads(0).open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for i in 0..5000u64 {
        keyspace.insert(i.to_be_bytes(), i.to_string())?;
        while i % 100 == 0 && db.run_background()? {}
    }
    db.compact()?;
    drop(keyspace);
    db.close()?;
    let db = tiny().background_threads(0).open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    let values = |from: u64| -> Result<u64, betree::Error> {
        let before = db.stats().cache_misses;
        let keys: Vec<_> = (from..from + 50).map(u64::to_be_bytes).collect();
        let values = keyspace.multi_get(&keys)?;
        assert!((from..).zip(&values).all(|(i, v)| v.as_deref() == Some(i.to_string().as_bytes())));
        Ok(db.stats().cache_misses - before)
    };
    // One or two pages in one or two segments with a page index each.
    let first = values(2000)?;
    assert!((1..=4).contains(&first), "{first} reads for 50 neighbours");
    assert_eq!(values(2000)?, 0);
    Ok(())
}

#[test]
fn a_sequential_load_moves_segments_by_reference() -> Done {
    let dir = tempfile::tempdir()?;
    let db = Db::builder().memory(16 << 20).memtable_bytes(1 << 20).open(dir.path())?;
    let keyspace = db.keyspace("default")?;
    for i in 0..100_000u64 {
        keyspace.insert(i.to_be_bytes(), [1; 100])?;
    }
    db.compact()?;
    let stats = db.stats();
    let merged = stats.compact_bytes_written + stats.flush_bytes_written;
    assert!(merged * 2 < stats.memtable_flush_bytes, "{merged} bytes merged in a sequential load: {stats:?}");
    assert_eq!(keyspace.iter().count(), 100_000);
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    Ok(())
}

#[test]
fn data_that_fits_the_caches_is_read_in_larger_pieces_than_pages() -> betree::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let open = || Db::builder().memory(64 << 20).memtable_bytes(1 << 20).open(dir.path());
    let key = |i: u64| (i * 1571 % 4000).to_be_bytes();
    let db = open()?;
    let records = db.keyspace("r")?;
    for i in 0..4000 {
        records.insert(key(i), [i as u8; 1000])?;
    }
    db.compact()?;
    drop(records);
    db.close()?;
    let db = open()?;
    let records = db.keyspace("r")?;
    for i in 0..4000 {
        assert_eq!(records.get(key(i))?.as_deref(), Some(&[i as u8; 1000][..]));
    }
    // A page holds three or four of these records.
    let misses = db.stats().cache_misses;
    assert!(misses < 4000 / 16, "{misses} pages were asked for that were not there");
    Ok(())
}
