//! Check and salvage through the public API, on real files.

use std::fs;
use std::path::Path;

use betree::{AddI64, Db, Error, KeyspaceOptions, MergeOperator, Options, TreeOptions};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

const DATA: &str = "data.betree";
const BLOCK: usize = 4096;

/// Small nodes, so that few records make a tree.
fn tiny() -> betree::Builder {
    let mut tree = TreeOptions::default();
    (tree.fanout, tree.leaf_bytes, tree.segment_bytes, tree.max_runs) = (4, 8192, 12288, 4);
    let mut options = Options::default();
    (options.memory, options.memtable_bytes, options.background_threads) = (1 << 20, Some(4096), 0);
    (options.sync_interval, options.log_file_bytes, options.tree) = (None, 65536, tree);
    Db::builder().options(options)
}

/// Fills a database whose tree has some levels, and leaves some of it in the log.
fn fill(db: &Db) -> betree::Result<()> {
    let (plain, sums) =
        (db.keyspace("plain")?, db.keyspace_with("sums", KeyspaceOptions::new().merge_operator(AddI64))?);
    for i in 0..3000u32 {
        plain.insert(format!("key{:05}", i * 7919 % 3000), format!("value {i}"))?;
        sums.merge(format!("sum{:03}", i % 200), 1i64.to_le_bytes())?;
        while db.run_background()? {}
    }
    plain.remove_range("key01000", "key01100")?;
    db.checkpoint()?;
    plain.remove("key00000")?;
    plain.insert("late", "in the log")?;
    sums.merge("sum000", 100i64.to_le_bytes())
}

#[test]
fn a_check_goes_with_a_file_that_grows_while_nodes_it_has_yet_to_visit_are_written() -> Result {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    fill(&db)?;
    // Nodes of this are in memory alone.
    let plain = db.keyspace("plain")?;
    for i in 0..3000u32 {
        plain.insert(format!("key{i:05}"), format!("value {i} again"))?;
        while db.run_background()? {}
    }
    let other = db.keyspace("other")?;
    plain.insert("key00000", "a new root")?;
    let mut grown = false;
    let report = db.check_with(&mut |_| {
        if !std::mem::replace(&mut grown, true) {
            (0..500u32).for_each(|i| other.insert(i.to_be_bytes(), [7; 4000]).unwrap());
            db.checkpoint().unwrap();
        }
    })?;
    assert!(grown && report.is_clean(), "{:?}", report.problems);
    assert_eq!(report.file_bytes, fs::metadata(dir.path().join(DATA))?.len());
    Ok(())
}

fn files(dir: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        all.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
    }
    all.sort();
    Ok(all)
}

/// A copy of the files of an open database: what a killed process leaves.
fn killed(db: &Path) -> std::io::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for (name, bytes) in files(db)? {
        fs::write(dir.path().join(name), bytes)?;
    }
    Ok(dir)
}

/// The blocks of the data file with this page type.
fn blocks(bytes: &[u8], page_type: u8) -> Vec<usize> {
    let of_type = bytes.chunks(BLOCK).enumerate().skip(16).filter(|(_, block)| block[4] == page_type);
    of_type.map(|(i, _)| i * BLOCK).collect()
}

fn records(db: &Db, name: &str) -> betree::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    db.keyspace(name)?
        .iter()
        .map(|record| record.map(|(key, value)| (key.to_vec(), value.to_vec())))
        .collect()
}

#[test]
fn the_offline_check_and_salvage_change_nothing_even_of_a_killed_database_in_a_read_only_directory() -> Result
{
    let original = tempfile::tempdir()?;
    let db = tiny().open(original.path())?;
    fill(&db)?;
    let dir = killed(original.path())?;
    let before = files(dir.path())?;
    let read_only = |on: bool| {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = if on { 0o555 } else { 0o755 };
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    read_only(true);
    let mut last = None;
    let report = tiny().check_at(dir.path(), &mut |progress| last = Some(progress));
    let into = tempfile::tempdir()?;
    let salvaged = tiny().salvage(dir.path(), into.path().join("new"), &mut |_| ());
    let without_lock = {
        read_only(false);
        fs::remove_file(dir.path().join("LOCK"))?;
        read_only(true);
        tiny().check_at(dir.path(), &mut |_| ())
    };
    read_only(false);
    let (report, salvaged) = (report?, salvaged?);
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(without_lock?.problems, Vec::<String>::new());
    assert!(report.log_records > 0 && report.keyspaces == 2 && report.nodes > 2, "{report:?}");
    assert!(last.is_some_and(|progress| progress.done == progress.total));
    let mut after = files(dir.path())?;
    after.push(("LOCK".into(), Vec::new()));
    after.sort();
    assert!(before == after, "a file was changed or made");
    assert!(salvaged.is_complete() && salvaged.damages == 0, "{salvaged:?}");
    let new = tiny().create_if_missing(false).open(into.path().join("new"))?;
    for name in ["plain", "sums"] {
        assert_eq!(records(&db, name)?, records(&new, name)?);
    }
    assert_eq!(new.check()?.problems, Vec::<String>::new());
    Ok(())
}

#[test]
fn damage_on_disk_is_found_though_the_cache_has_the_page() -> Result {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    fill(&db)?;
    db.compact()?;
    records(&db, "plain")?;
    assert_eq!(db.check()?.problems, Vec::<String>::new());
    let path = dir.path().join(DATA);
    let bytes = fs::read(&path)?;
    for page_type in [1, 2, 3] {
        let mut found = 0;
        for block in blocks(&bytes, page_type) {
            let mut damaged = bytes.clone();
            damaged[block + 700] ^= 4;
            fs::write(&path, &damaged)?;
            let problems = db.check()?.problems;
            found += u32::from(!problems.is_empty());
            if let [problem, ..] = &problems[..] {
                assert!(problem.contains("checksum_in_parent") && problem.contains(DATA), "{problem}");
            }
            fs::write(&path, &bytes)?;
            if found == 3 {
                break;
            }
        }
        assert!(found > 0, "no block of type {page_type} is checked");
    }
    let mut damaged = bytes.clone();
    for slot in 0..4 {
        damaged[slot * 4 * BLOCK + 70] ^= 1;
    }
    fs::write(&path, &damaged)?;
    assert!(db.check()?.problems.iter().any(|problem| problem.contains("superblock")));
    fs::write(&path, &bytes)?;
    Ok(db.close()?)
}

#[test]
fn one_damaged_node_does_not_hide_damage_elsewhere() -> Result {
    let dir = tempfile::tempdir()?;
    let db = tiny().open(dir.path())?;
    fill(&db)?;
    db.close()?;
    let path = dir.path().join(DATA);
    let bytes = fs::read(&path)?;
    // Every node that counts, by itself, then together with every data page.
    let mut counted = Vec::new();
    for block in blocks(&bytes, 3) {
        let mut damaged = bytes.clone();
        damaged[block + 20] ^= 1;
        fs::write(&path, &damaged)?;
        if !tiny().check_at(dir.path(), &mut |_| ())?.is_clean() {
            counted.push(block);
        }
        if counted.len() == 4 {
            break;
        }
    }
    assert_eq!(counted.len(), 4, "{counted:?}");
    let mut damaged = bytes;
    damaged[counted[0] + 20] ^= 1;
    for block in blocks(&damaged, 1) {
        damaged[block + 100] ^= 1;
    }
    fs::write(&path, &damaged)?;
    let report = tiny().check_at(dir.path(), &mut |_| ())?;
    assert!(report.problems.iter().any(|p| p.contains(" page ")), "{:?}", report.problems);
    assert!(report.problems.iter().any(|p| p.contains(&format!("offset {}", counted[0]))));
    assert!(matches!(tiny().open(dir.path()), Err(Error::Corrupt { .. })));
    Ok(())
}

/// An operator that nobody else knows.
#[derive(Debug)]
struct Secret;

impl MergeOperator for Secret {
    fn name(&self) -> &str {
        "test.secret"
    }

    fn full_merge(&self, _key: &[u8], base: Option<&[u8]>, operands: &[&[u8]]) -> Vec<u8> {
        operands.last().copied().or(base).unwrap_or_default().to_vec()
    }
}

#[test]
fn a_keyspace_whose_operator_is_unknown_is_left_out_and_the_others_are_salvaged() -> Result {
    let (dir, into) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let db = tiny().open(dir.path())?;
    db.keyspace_with("secret", KeyspaceOptions::new().merge_operator(Secret))?.merge("a", "b")?;
    db.keyspace("open")?.insert("a", "b")?;
    let open = tiny().salvage(dir.path(), into.path(), &mut |_| ());
    assert!(matches!(open, Err(Error::Locked { .. })), "{open:?}");
    assert!(matches!(tiny().check_at(dir.path(), &mut |_| ()), Err(Error::Locked { .. })));
    db.close()?;
    let report = tiny().salvage(dir.path(), into.path().join("a"), &mut |_| ())?;
    assert_eq!((report.left_out.len(), report.keyspaces.len()), (1, 1), "{report:?}");
    assert!(!report.is_complete() && report.left_out[0].1.contains("test.secret"));
    let known = tiny().merge_operator(Secret);
    let report = known.clone().salvage(dir.path(), into.path().join("b"), &mut |_| ())?;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(records(&known.open(into.path().join("b"))?, "secret")?, [(b"a".to_vec(), b"b".to_vec())]);
    let occupied = tiny().salvage(dir.path(), into.path().join("a"), &mut |_| ());
    assert!(matches!(occupied, Err(Error::NotEmpty { .. })), "{occupied:?}");
    let nowhere = into.path().join("nowhere");
    assert!(matches!(
        tiny().salvage(&nowhere, into.path().join("c"), &mut |_| ()),
        Err(Error::Missing { .. })
    ));
    assert!(!nowhere.exists() && !into.path().join("c").exists());
    Ok(())
}

#[test]
fn an_older_value_may_come_back_where_a_page_is_lost_and_the_report_says_where() -> Result {
    let (dir, into) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let db = tiny().open(dir.path())?;
    let plain = db.keyspace("plain")?;
    for i in 0..100 {
        plain.insert(format!("k{i:03}"), "old")?;
    }
    db.compact()?;
    let before = blocks(&fs::read(dir.path().join(DATA))?, 1);
    for i in 40..60 {
        plain.insert(format!("k{i:03}"), "new")?;
    }
    drop(plain);
    db.close()?;
    let path = dir.path().join(DATA);
    let mut bytes = fs::read(&path)?;
    for block in blocks(&bytes, 1).into_iter().filter(|block| !before.contains(block)) {
        bytes[block + 50] ^= 1;
    }
    fs::write(&path, bytes)?;
    let report = tiny().salvage(dir.path(), into.path(), &mut |_| ())?;
    let suspect = &report.keyspaces[0].suspect;
    assert!(suspect.iter().any(|range| range.contains(b"k050")), "{report:?}");
    assert!(!suspect.iter().any(|range| range.contains(b"k010")), "{report:?}");
    for (key, value) in records(&tiny().open(into.path())?, "plain")? {
        assert!(value == b"old" && report.keyspaces[0].records == 100, "{key:?}");
    }
    Ok(())
}
