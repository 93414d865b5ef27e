//! Damage that once gave wrong answers: a log that ends, or is missing, below what a checkpoint knows to have been durable; a data file
//! that is older than its log.

use std::sync::Arc;

use betree::{Builder, Db, Durability, Error};
use betree_testkit::SimStorage;

fn builder() -> Builder {
    let mut options = betree::Options::default();
    options.memory = 1 << 20;
    options.background_threads = 0;
    options.sync_interval = None;
    options.durability = Durability::Buffered;
    options.log_file_bytes = 4096;
    Db::builder().options(options)
}

fn open(disk: &Arc<SimStorage>) -> betree::Result<Db> {
    builder().open_on(disk.as_storage())
}

/// A copy with one file changed; without the file if there is nothing to put in its place.
fn with(disk: &SimStorage, file: &str, bytes: Option<&[u8]>) -> Arc<SimStorage> {
    let copy = SimStorage::new(1);
    for name in disk.files().into_keys().filter(|name| name != file) {
        copy.put(&name, &disk.contents(&name).unwrap());
    }
    bytes.iter().for_each(|bytes| copy.put(file, bytes));
    copy
}

/// A database of two keyspaces whose checkpoint has all of one in its tree and the older batch of the other only in the log.
fn half_flushed() -> Arc<SimStorage> {
    let disk = SimStorage::new(1);
    let db = open(&disk).unwrap();
    let (early, late) = (db.keyspace("early").unwrap(), db.keyspace("late").unwrap());
    early.insert("key", "older").unwrap();
    for i in 0..20_000u32 {
        late.insert(i.to_be_bytes(), [7; 40]).unwrap();
        if i % 1000 == 0 {
            while db.run_background().unwrap() {}
        }
    }
    while db.run_background().unwrap() {}
    // Takes a checkpoint without flushing memtables.
    db.keyspace("a third").unwrap();
    drop((early, late, db));
    disk.kill()
}

#[test]
fn damage_to_the_log_below_the_end_that_a_checkpoint_knows_is_never_a_torn_tail() {
    let disk = half_flushed();
    let logs: Vec<_> = disk.files().into_keys().filter(|name| name.starts_with("log-0")).collect();
    let used = |name: &String| disk.contents(name).unwrap().iter().any(|b| *b != 0);
    let last = logs.iter().rfind(|name| used(name)).unwrap();
    let bytes = disk.contents(last).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap();
    for at in 64..=end {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        match open(&with(&disk, last, Some(&damaged))) {
            Ok(_) => panic!("{last} byte {at}: opened"),
            Err(error) => assert!(error.to_string().contains("log-"), "{error}"),
        }
    }
    // Cut down to nothing, or gone, its last file is as damaged.
    for bytes in [Some(&bytes[..64]), Some(&bytes[..0]), None] {
        let damaged = with(&disk, last, bytes);
        let error = open(&damaged).map(drop).unwrap_err();
        assert!(error.to_string().contains("log-"), "{error}");
        let report = builder().check_on(&*damaged.as_storage(), &mut |_| ()).unwrap();
        assert!(report.problems.iter().any(|problem| problem.contains("log-")), "{report:?}");
        let into = SimStorage::new(1);
        let report = builder().salvage_on(&*damaged.as_storage(), into.as_storage(), &mut |_| ()).unwrap();
        assert!(report.damage.iter().any(|damage| damage.structure == "log"), "{report:?}");
        assert!(report.keyspaces.iter().all(|keyspace| !keyspace.suspect.is_empty()), "{report:?}");
    }
}

#[test]
fn a_missing_log_is_an_error_though_nothing_was_ever_trimmed() {
    let disk = SimStorage::new(1);
    let db = open(&disk).unwrap();
    db.keyspace("records").unwrap().insert("key", "value").unwrap();
    db.persist().unwrap();
    drop(db);
    let disk = disk.crash();
    let log = disk.files().into_keys().find(|name| name.starts_with("log-0")).unwrap();
    assert_eq!(disk.files().keys().filter(|name| name.starts_with("log-0")).count(), 1);
    let error = open(&with(&disk, &log, None)).map(drop).unwrap_err();
    assert!(matches!(error, Error::Log(_)) && error.to_string().contains("log-"), "{error}");
}

#[test]
fn a_data_file_that_does_not_know_a_keyspace_of_its_log_is_corrupt() {
    let disk = SimStorage::new(1);
    let db = open(&disk).unwrap();
    db.keyspace("first").unwrap().insert("key", "value").unwrap();
    db.persist().unwrap();
    let old = disk.contents("data.betree").unwrap();
    db.keyspace("second").unwrap().insert("key", "value").unwrap();
    db.persist().unwrap();
    drop(db);
    let disk = disk.crash();
    assert!(open(&with(&disk, "", None)).is_ok());
    let error = open(&with(&disk, "data.betree", Some(&old))).map(drop).unwrap_err();
    assert!(error.to_string().contains("keyspace"), "{error}");
}
