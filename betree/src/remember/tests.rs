//! Tests of remembered rows: what was popular is answered without the device after a restart, and whatever happened to the key meanwhile,
//! the answer is the tree's.

use std::sync::Arc;

use betree_testkit::SimStorage;

use super::*;
use crate::{Append, Builder, Db, Keyspace, KeyspaceOptions};

const RECORDS: u64 = 60_000;
const POPULAR: u64 = 1000;

fn key(n: u64) -> [u8; 8] {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

fn builder() -> Builder {
    Db::builder().memory(4 << 20).memtable_bytes(256 << 10).background_threads(0)
}

fn open(disk: &Arc<SimStorage>) -> Result<(Db, Keyspace)> {
    let db = builder().open_on(disk.as_storage())?;
    let keyspace = db.keyspace_with("records", KeyspaceOptions::new().merge_operator(Append))?;
    Ok((db, keyspace))
}

fn rest(db: &Db) -> Result<()> {
    while db.run_background()? {}
    Ok(())
}

/// Reads the popular records, in rounds, since rows get more memory as they fill what they have.
fn read_popular(db: &Db, keyspace: &Keyspace) -> Result<()> {
    for _ in 0..6 {
        for n in 0..POPULAR {
            keyspace.get(key(n))?;
        }
        rest(db)?;
    }
    Ok(())
}

/// A database that does not fit in memory, closed after some of it was read again and again.
fn closed() -> Result<Arc<SimStorage>> {
    let disk = SimStorage::new(1);
    let (db, keyspace) = open(&disk)?;
    for n in 0..RECORDS {
        keyspace.insert(key(n), [n as u8; 100])?;
        if n % 500 == 0 {
            rest(&db)?;
        }
    }
    db.compact()?;
    read_popular(&db, &keyspace)?;
    drop(keyspace);
    db.close()?;
    Ok(disk)
}

fn blocks(db: &Db) -> Remembered {
    db.shared().checkpoint.lock().rows.clone()
}

/// Reads that had to ask the device, of one get of each popular record.
fn missed(db: &Db, keyspace: &Keyspace) -> Result<u64> {
    let before = db.stats().cache_misses;
    for n in 0..POPULAR {
        assert_eq!(keyspace.get(key(n))?.as_deref(), Some(&[n as u8; 100][..]));
    }
    Ok(db.stats().cache_misses - before)
}

/// Lets keys be read, after which remembered rows are.
fn recall(db: &Db, keyspace: &Keyspace) -> Result<u64> {
    keyspace.get(key(RECORDS))?;
    rest(db)?;
    Ok(db.stats().rows_recalled)
}

#[test]
fn what_was_read_again_and_again_needs_no_device_after_a_restart() -> Result<()> {
    let disk = closed()?;
    let (db, keyspace) = open(&disk)?;
    rest(&db)?;
    assert_eq!(db.stats().rows_recalled, 0, "nobody reads");
    let recalled = recall(&db, &keyspace)?;
    assert!(recalled >= POPULAR, "{recalled}");
    assert_eq!(missed(&db, &keyspace)?, 0);
    assert!(db.check()?.is_clean());
    drop((db, keyspace));
    let report = builder().check_on(&*disk.kill().as_storage(), &mut |_| ())?;
    assert!(report.is_clean(), "{report:?}");
    Ok(())
}

#[test]
fn they_are_remembered_over_restarts_without_reads_and_over_crashes() -> Result<()> {
    let mut disk = closed()?;
    for round in 0..4u64 {
        let (db, keyspace) = open(&disk)?;
        for n in 0..3000 {
            keyspace.insert(key(RECORDS + round * 3000 + n), [0; 100])?;
        }
        db.checkpoint()?;
        rest(&db)?;
        drop(keyspace);
        if round % 2 == 0 {
            db.close()?
        } else {
            drop(db)
        }
        disk = disk.crashed_copy(round);
    }
    let (db, keyspace) = open(&disk)?;
    assert!(recall(&db, &keyspace)? >= POPULAR);
    // Newer runs are asked, whose filters must be read first.
    missed(&db, &keyspace)?;
    let missed = missed(&db, &keyspace)?;
    assert!(missed < POPULAR / 20, "{missed}");
    Ok(())
}

/// Whether the changes are in memtables, in runs above, or were compacted, deletes and all, before the rows come back.
#[test]
fn a_row_that_was_overtaken_before_it_came_back_is_not_believed() -> Result<()> {
    let expected = |n: u64| match n % 4 {
        0 => None,
        1 => Some([&[n as u8; 100][..], b"more"].concat()),
        2 => Some(vec![9; 30]),
        _ => Some(vec![n as u8; 100]),
    };
    for stage in 0..4 {
        let disk = closed()?;
        let (db, keyspace) = open(&disk)?;
        for n in 0..POPULAR {
            match n % 4 {
                0 => keyspace.remove(key(n))?,
                1 => keyspace.merge(key(n), "more")?,
                2 => keyspace.insert(key(n), [9; 30])?,
                _ => {}
            }
        }
        match stage {
            0 => db.persist()?,
            1 => db.checkpoint()?,
            _ => db.compact()?,
        }
        let kept = !blocks(&db).is_empty();
        assert!(kept, "stage {stage}");
        let (db, keyspace) = if stage == 3 {
            (db, keyspace)
        } else {
            drop((db, keyspace));
            open(&disk.crashed_copy(stage))?
        };
        assert!(recall(&db, &keyspace)? >= POPULAR);
        for n in 0..POPULAR {
            assert_eq!(keyspace.get(key(n))?.as_deref(), expected(n).as_deref(), "stage {stage}, record {n}");
        }
    }
    Ok(())
}

#[test]
fn what_a_crash_took_back_is_in_no_row() -> Result<()> {
    let disk = closed()?;
    let (db, keyspace) = open(&disk)?;
    recall(&db, &keyspace)?;
    read_popular(&db, &keyspace)?;
    let flushed = db.shared().checkpoint.lock().flushed.clone();
    // In the tree, and in rows, later than the checkpoint.
    for n in 0..POPULAR {
        keyspace.insert(key(n), [1; 100])?;
    }
    keyspace.state.freeze();
    let memtable = keyspace.state.view().heads[1].clone();
    let mut io = TaskIo::new(&db.shared().pager)?;
    crate::flush::flush_memtable(db.shared(), &keyspace.state, &memtable, &mut io)?;
    let written = db.shared().write_rows(1 << 20, &flushed, &mut io)?;
    io.finish_writes()?;
    let mut rows = 0;
    for block in written.iter() {
        let page = io.read_whole(&block.extent)?;
        assert_eq!(fault(&page, &flushed), None);
        rows += decode(&page).map_or(0, |rows| rows.len());
    }
    let later =
        db.shared().checkpoint.lock().flushed.values().map(|f| f.0 - 1).map(Seqno).collect::<Vec<_>>();
    let earlier = flushed.keys().copied().zip(later).collect();
    let all = db.shared().write_rows(1 << 20, &earlier, &mut io)?;
    io.finish_writes()?;
    assert!(rows < POPULAR as usize / 10 && all.is_empty(), "{rows}");
    Ok(())
}

#[test]
fn a_damaged_block_is_reported_and_hides_nothing() -> Result<()> {
    let disk = closed()?;
    let db = builder().open_on(disk.as_storage())?;
    let offset = blocks(&db)[0].extent.offset() as usize;
    drop(db);
    let disk = disk.kill();
    let mut file = disk.contents(betree_pager::FILE_NAME).unwrap_or_default();
    file[offset + 1000] ^= 1;
    disk.put(betree_pager::FILE_NAME, &file);
    let report = builder().check_on(&*disk.as_storage(), &mut |_| ())?;
    assert!(report.problems.iter().any(|what| what.contains("rows")), "{report:?}");
    let (db, keyspace) = open(&disk)?;
    assert_eq!(recall(&db, &keyspace)?, 0);
    assert!(missed(&db, &keyspace)? > 0);
    assert!(!db.check()?.is_clean());
    // What is damaged goes when the next rows are remembered.
    read_popular(&db, &keyspace)?;
    drop(keyspace);
    db.close()?;
    let report = builder().check_on(&*disk.as_storage(), &mut |_| ())?;
    assert!(report.is_clean(), "{report:?}");
    Ok(())
}

#[test]
fn rows_go_with_the_option_with_their_keyspace_with_the_data_and_on_a_full_device() -> Result<()> {
    let disk = closed()?;
    let db = builder().remember_rows(false).open_on(disk.crashed_copy(1).as_storage())?;
    db.checkpoint()?;
    assert!(blocks(&db).is_empty());
    drop(db);

    let (db, keyspace) = open(&disk.crashed_copy(2))?;
    db.keyspace("other")?;
    assert!(!blocks(&db).is_empty());
    drop(keyspace);
    assert!(db.drop_keyspace("records")?);
    assert!(blocks(&db).is_empty());
    drop(db);

    let (db, _keyspace) = open(&disk.crashed_copy(4))?;
    db.shared().scheduler.squeeze();
    db.shared().checkpoint_now(false)?;
    assert!(blocks(&db).is_empty());
    drop((db, _keyspace));

    let (db, keyspace) = open(&disk.crashed_copy(3))?;
    keyspace.remove_range("", [0xff; 9])?;
    db.compact()?;
    db.checkpoint()?;
    assert!(blocks(&db).is_empty(), "{:?}", db.stats());
    // Though they were never read.
    assert_eq!((db.stats().rows_remembered_bytes, db.shared().recall.bytes()), (0, 0));
    assert!(db.check()?.is_clean());
    assert!(db.stats().data_live_bytes < 64 << 10, "{:?}", db.stats());
    Ok(())
}

#[test]
fn reads_that_found_no_row_leave_what_is_remembered_alone() -> Result<()> {
    let disk = closed()?;
    let (db, keyspace) = open(&disk)?;
    let before: Vec<_> = blocks(&db).iter().map(|block| block.extent.offset()).collect();
    for n in POPULAR..RECORDS {
        keyspace.get(key(n))?;
        if n % 1000 == 0 {
            rest(&db)?;
        }
    }
    drop(keyspace);
    db.close()?;
    let (db, _keyspace) = open(&disk)?;
    let after: Vec<_> = blocks(&db).iter().map(|block| block.extent.offset()).collect();
    assert_eq!(before, after);
    Ok(())
}

#[test]
fn blocks_decode_to_the_rows_that_were_laid_out_and_others_are_refused() {
    let value = vec![7; 3000];
    let rows: Vec<(u32, u64, Vec<u8>)> =
        (0..1000u64).map(|n| ((n % 3) as u32, n << 40, n.to_be_bytes()[..n as usize % 8].to_vec())).collect();
    let mut blocks = Blocks::new();
    for (keyspace, at, key) in &rows {
        blocks.push(&Row { keyspace: KeyspaceId(*keyspace), at: Seqno(*at), credit: 2, key, value: &value });
    }
    blocks.close();
    assert_eq!(blocks.full.len(), 3);
    assert!(blocks.full.iter().all(|block| block.len() <= BLOCK_BYTES && block.len() % BLOCK == 0));
    let decoded: Vec<_> = blocks.full.iter().flat_map(|block| decode(block).unwrap()).collect();
    assert_eq!(decoded.len(), rows.len());
    for (row, (keyspace, at, key)) in decoded.iter().zip(&rows) {
        let laid_out = Row { keyspace: KeyspaceId(*keyspace), at: Seqno(*at), credit: 2, key, value: &value };
        assert_eq!(*row, laid_out);
    }
    let all: HashMap<_, _> = (0..3).map(|id| (KeyspaceId(id), Seqno(1000 << 40))).collect();
    assert_eq!(fault(&blocks.full[0], &all), None);
    let early: HashMap<_, _> = (0..3).map(|id| (KeyspaceId(id), Seqno(9 << 40))).collect();
    assert!(fault(&blocks.full[0], &early).is_some_and(|what| what.starts_with("rows.in_their_trees")));
    let few: HashMap<_, _> = (0..2).map(|id| (KeyspaceId(id), Seqno(1000 << 40))).collect();
    assert!(fault(&blocks.full[0], &few).is_some());
    for (at, byte) in [(4, 3), (5, 1), (7, 1), (11, 0x7f), (12, 1), (15, 1)] {
        let mut block = blocks.full[0].clone();
        block[at] = byte;
        assert_eq!(decode(&block), None, "byte {at}");
        assert!(fault(&block, &all).is_some());
    }
    let mut cut = blocks.full[0].clone();
    cut[8] = cut[8].wrapping_sub(1);
    assert_eq!(decode(&cut), None);
    assert_eq!(decode(&cut[..10]), None);
}
