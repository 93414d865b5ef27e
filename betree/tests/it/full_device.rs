//! Real file systems that are full: a tmpfs and an ext4 image, with both I/O backends. Needs root, else the tests say that they are skipped.
//!
//! Writes end in a clean error, nothing acknowledged is lost, reads go on, deletes are taken from the reserves, room appears
//! and writing resumes by itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use betree::{Builder, Db, Durability, Error, Keyspace, Options, TreeOptions};
use betree_testkit::{FileSystem, Mount, Rng};

const SIZE: u64 = 32 << 20;
/// Attempts with pauses for the background: generous, since the machine may be busy. One usually suffices.
const ATTEMPTS: usize = 400;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn small(portable: bool) -> Builder {
    let mut tree = TreeOptions::default();
    (tree.leaf_bytes, tree.segment_bytes) = (512 << 10, 256 << 10);
    let mut options = Options::default();
    options.memory = 8 << 20;
    options.log_file_bytes = 1 << 20;
    options.portable_io = portable;
    options.tree = tree;
    Db::builder().options(options)
}

fn key(i: u64) -> Vec<u8> {
    format!("k{:012}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24).into_bytes()
}

/// Writes until the device is full; the number of records there.
fn fill(keyspace: &Keyspace, model: &mut Model, rng: &mut Rng) {
    let mut refused = 0;
    // Background work may still make room; a device of this size is full at last.
    for i in 0..1_000_000 {
        let value = rng.bytes(700);
        match keyspace.insert(key(i), &value) {
            Ok(()) => drop(model.insert(key(i), value)),
            Err(Error::NoSpace { file }) => {
                assert!(file == "log" || file == "data.betree", "{file}");
                refused += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(other) => panic!("a full device is not told as such: {other}"),
        }
        if refused == 50 {
            return;
        }
    }
    panic!("the device does not fill up");
}

/// Carries out `write`, which may be refused while background work makes room. How often it was.
fn insist(what: &str, db: &Db, mut write: impl FnMut() -> betree::Result<()>) -> usize {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        match write() {
            Ok(()) => return attempt,
            Err(error @ Error::NoSpace { .. }) => last = error.to_string(),
            Err(other) => panic!("{what}: {other}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}: refused {ATTEMPTS} times: {last}: {:#?}", db.stats());
}

fn same(keyspace: &Keyspace, model: &Model) {
    let mut expected = model.iter();
    for found in keyspace.iter() {
        let (k, v) = found.unwrap();
        assert_eq!(expected.next(), Some((&k.to_vec(), &v.to_vec())));
    }
    assert_eq!(expected.next(), None, "lost");
}

fn usage(path: &Path) -> String {
    let files = std::fs::read_dir(path).unwrap().map(|e| {
        let e = e.unwrap();
        format!("{} {}", e.file_name().display(), e.metadata().unwrap().len())
    });
    files.collect::<Vec<_>>().join(", ")
}

/// Fills, reads, deletes, and writes again.
fn full_and_back(mount: &Mount, portable: bool, seed: u64) {
    println!("seed {seed}, portable {portable}");
    let mut rng = Rng::new(seed);
    let path = mount.path().join("db");
    let mut model = Model::new();
    {
        let db = small(portable).open(&path).unwrap();
        let keyspace = db.keyspace("default").unwrap();
        fill(&keyspace, &mut model, &mut rng);
        assert!(model.len() > 6_000, "{} records on {}", model.len(), usage(&path));
        same(&keyspace, &model);
        // Ends without closing.
    }
    let db = small(portable).open(&path).unwrap();
    let keyspace = db.keyspace("default").unwrap();
    same(&keyspace, &model);
    let keys: Vec<Vec<u8>> = model.keys().cloned().collect();
    let mut refused = 0;
    for k in keys.iter().step_by(5) {
        refused += insist("a delete", &db, || keyspace.remove(k));
        model.remove(k);
    }
    let (low, high) = (keys[keys.len() / 20].clone(), keys[keys.len() - 1].clone());
    refused += insist("a range delete", &db, || keyspace.remove_range(&low, &high));
    model.retain(|k, _| *k < low || *k >= high);
    same(&keyspace, &model);
    let again = insist("writing again", &db, || keyspace.insert("again", vec![1; 700]));
    model.insert(b"again".to_vec(), vec![1; 700]);
    println!("{} deletes refused at first, writing again after {again} attempts; {}", refused, usage(&path));
    // Not only one write: a good part of the device is free.
    for i in 0..8_000u64 {
        let value = rng.bytes(700);
        insist("writing on", &db, || keyspace.insert(i.to_be_bytes(), &value));
        model.insert(i.to_be_bytes().to_vec(), value);
    }
    let mut batch = db.batch();
    batch.insert(&keyspace, "synced", "yes").unwrap();
    db.write_with(&mut batch, Durability::Sync).unwrap();
    model.insert(b"synced".to_vec(), b"yes".to_vec());
    same(&keyspace, &model);
    assert_eq!(db.check().unwrap().problems, Vec::<String>::new());
    drop(keyspace);
    db.close().unwrap();
    let db = small(portable).open(&path).unwrap();
    same(&db.keyspace("default").unwrap(), &model);
}

fn seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 >> 10
}

#[test]
fn a_full_tmpfs_takes_deletes_and_then_writes_again() {
    for portable in [false, true] {
        let Some(mount) = Mount::or_skip(FileSystem::Tmpfs, SIZE) else { return };
        full_and_back(&mount, portable, seed());
    }
}

#[test]
fn a_full_ext4_takes_deletes_and_then_writes_again() {
    for portable in [false, true] {
        let Some(mount) = Mount::or_skip(FileSystem::Ext4, SIZE) else { return };
        full_and_back(&mount, portable, seed());
    }
}

#[test]
fn a_device_that_others_have_filled_takes_deletes_and_what_they_free_can_be_written_again() {
    for kind in FileSystem::ALL {
        let Some(mount) = Mount::or_skip(kind, SIZE) else { return };
        let path = mount.path().join("db");
        let db = small(false).open(&path).unwrap();
        let keyspace = db.keyspace("default").unwrap();
        // On a busy machine compactions may be so far behind that a write is refused until they had their turn.
        for i in 0..12_000 {
            insist("filling", &db, || keyspace.insert(key(i), vec![i as u8; 500]));
        }
        mount.fill("foreign");
        let mut refused = 0;
        // At most what was set aside before the device was full.
        for i in 12_000..40_000 {
            match keyspace.insert(key(i), vec![i as u8; 500]) {
                Ok(()) => {}
                Err(Error::NoSpace { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(refused > 0, "{}", usage(&path));
        insist("a range delete", &db, || keyspace.clear());
        for i in 0..5_000u64 {
            insist("writing again", &db, || keyspace.insert(i.to_be_bytes(), vec![2; 500]));
        }
        assert_eq!(keyspace.iter().count(), 5_000);
        assert_eq!(db.check().unwrap().problems, Vec::<String>::new());
    }
}
