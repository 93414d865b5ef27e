//! Golden databases: files as they were once written, one folder per format version, and what they held. Each build opens them, finds
//! nothing wrong with them, reads what they held, and goes on writing to them.
//!
//! After a change of the format: `GOLDEN_OUT=betree/tests/golden/vN cargo test -p betree --test it -- --ignored golden`, with the new N. The
//! files of versions that can still be read stay.
//!
//! A golden file is little-endian: the number of disk files (4 bytes); for each its name, its length (8), the number of its sectors that are not all
//! zero (4), and for each its offset (8) and up to 512 bytes; then the number of records (4), and for each keyspace, key and value. Names,
//! keyspaces, keys and values have their length (4) before them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use betree::{AddI64, Append, Builder, Db, Durability, KeyspaceOptions, TreeOptions};
use betree_testkit::{Rng, SimStorage};

type Content = BTreeMap<(String, Vec<u8>), Vec<u8>>;

const SECTOR: usize = 512;

struct Golden {
    disk: Arc<SimStorage>,
    content: Content,
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn pack(disk: &SimStorage, content: &Content) -> Vec<u8> {
    let mut out = Vec::new();
    let files = disk.files();
    out.extend((files.len() as u32).to_le_bytes());
    for name in files.keys() {
        let bytes = disk.contents(name).unwrap();
        let sectors = bytes.chunks(SECTOR).enumerate().filter(|(_, s)| s.iter().any(|b| *b != 0));
        put(&mut out, name.as_bytes());
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend((sectors.clone().count() as u32).to_le_bytes());
        for (n, sector) in sectors {
            out.extend(((n * SECTOR) as u64).to_le_bytes());
            out.extend(sector);
        }
    }
    out.extend((content.len() as u32).to_le_bytes());
    for ((keyspace, key), value) in content {
        [keyspace.as_bytes(), key, value].iter().for_each(|bytes| put(&mut out, bytes));
    }
    out
}

fn unpack(packed: &[u8]) -> Golden {
    struct Reader<'a>(&'a [u8]);
    impl<'a> Reader<'a> {
        fn take(&mut self, n: usize) -> &'a [u8] {
            let (taken, rest) = self.0.split_at(n);
            self.0 = rest;
            taken
        }
        fn u32(&mut self) -> usize {
            u32::from_le_bytes(self.take(4).try_into().unwrap()) as usize
        }
        fn u64(&mut self) -> usize {
            u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
        }
        fn bytes(&mut self) -> Vec<u8> {
            let n = self.u32();
            self.take(n).to_vec()
        }
        fn text(&mut self) -> String {
            String::from_utf8(self.bytes()).unwrap()
        }
    }
    let mut r = Reader(packed);
    let disk = SimStorage::new(1);
    for _ in 0..r.u32() {
        let (name, len, sectors) = (r.text(), r.u64(), r.u32());
        let mut bytes = vec![0; len];
        for _ in 0..sectors {
            let at = r.u64();
            let n = SECTOR.min(len - at);
            bytes[at..at + n].copy_from_slice(r.take(n));
        }
        disk.put(&name, &bytes);
    }
    let content = (0..r.u32()).map(|_| ((r.text(), r.bytes()), r.bytes())).collect();
    assert!(r.0.is_empty());
    Golden { disk, content }
}

/// As a program that knows nothing of how the database was written.
fn stranger() -> Builder {
    Db::builder().memory(4 << 20).background_threads(0)
}

fn content(db: &Db) -> Content {
    let mut content = Content::new();
    for name in db.keyspaces() {
        for record in db.keyspace(&name).unwrap().iter() {
            let (key, value) = record.unwrap();
            content.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    content
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn databases_of_every_format_version_that_can_be_read_hold_what_they_held() {
    let mut seen = Vec::new();
    for version in std::fs::read_dir(folder()).unwrap() {
        for file in std::fs::read_dir(version.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let golden = unpack(&std::fs::read(&path).unwrap());
            assert!(golden.content.len() > 400, "{path:?}");
            let report = stranger().check_on(&*golden.disk.as_storage(), &mut |_| ()).unwrap();
            assert!(report.is_clean(), "{path:?}: {report:?}");
            let db = stranger().open_on(golden.disk.as_storage()).unwrap();
            assert!(content(&db) == golden.content, "{path:?}: other content");
            for ((keyspace, key), value) in &golden.content {
                let got = db.keyspace(keyspace).unwrap().get(key).unwrap();
                assert!(got.as_deref() == Some(&value[..]), "{path:?}: {keyspace} {key:?}");
            }
            // Life goes on, beginning with one more operand for everything.
            let sums = db.keyspace_with("sums", KeyspaceOptions::new().merge_operator(AddI64)).unwrap();
            let mut expected = golden.content;
            for ((_, key), value) in expected.iter_mut().filter(|((keyspace, _), _)| keyspace == "sums") {
                sums.merge(key, 1i64.to_le_bytes()).unwrap();
                let sum = i64::from_le_bytes(value[..].try_into().unwrap()) + 1;
                *value = sum.to_le_bytes().to_vec();
            }
            let plain = db.keyspace("plain").unwrap();
            plain.remove_range("k0100", "k0200").unwrap();
            expected.retain(|(keyspace, key), _| {
                keyspace != "plain" || !(&b"k0100"[..]..&b"k0200"[..]).contains(&&key[..])
            });
            db.compact().unwrap();
            assert!(db.check().unwrap().is_clean(), "{path:?}");
            drop((sums, plain));
            db.close().unwrap();
            let db = stranger().open_on(golden.disk.kill().as_storage()).unwrap();
            assert!(content(&db) == expected, "{path:?}: other content after more writes");
            seen.push(path.strip_prefix(folder()).unwrap().to_string_lossy().into_owned());
        }
    }
    seen.sort();
    assert_eq!(seen, ["v4/closed", "v4/killed", "v4/lost-power"]);
}

/// Every kind of message, in trees of some levels and in the log; large and small values, and such of one length; several keyspaces, and one that was dropped.
fn write(db: &Db) {
    let mut rng = Rng::new(20);
    let plain = db.keyspace("plain").unwrap();
    let sums = db.keyspace_with("sums", KeyspaceOptions::new().merge_operator(AddI64)).unwrap();
    let texts = db.keyspace_with("texts", KeyspaceOptions::new().merge_operator(Append)).unwrap();
    let fixed = db.keyspace("fixed").unwrap();
    let dropped = db.keyspace("dropped").unwrap();
    plain.insert("", "the empty key").unwrap();
    plain.insert([0xff; 300], "a long key").unwrap();
    plain.insert("large", vec![b'L'; 20_000]).unwrap();
    for step in 0..3000u32 {
        let n = rng.below(600);
        let len = rng.index(60);
        match rng.below(100) {
            0..60 => plain.insert(format!("k{n:04}"), rng.bytes(len)).unwrap(),
            60..70 => plain.remove(format!("k{n:04}")).unwrap(),
            70 => plain.remove_range(format!("k{n:04}"), format!("k{:04}", n + 9)).unwrap(),
            71..85 => sums.merge(format!("s{:03}", n / 4), (n as i64 - 300).to_le_bytes()).unwrap(),
            85..88 => fixed.insert(format!("f{n:04}"), rng.bytes(16)).unwrap(),
            88..92 => texts.merge(format!("t{:03}", n / 6), "and ").unwrap(),
            92..94 if step < 2000 => dropped.insert(format!("d{n:04}"), "gone").unwrap(),
            _ => {
                let mut batch = db.batch();
                batch.insert(&plain, format!("k{n:04}"), "of a batch").unwrap();
                batch.merge(&sums, "batches", 1i64.to_le_bytes()).unwrap();
                batch.remove(&texts, format!("t{:03}", n / 6)).unwrap();
                db.write(batch).unwrap();
            }
        }
        while step % 50 == 0 && db.run_background().unwrap() {}
        if step == 2000 {
            assert!(db.drop_keyspace("dropped").unwrap());
        }
        if step == 2500 {
            db.checkpoint().unwrap();
            db.persist().unwrap();
        }
    }
}

#[test]
#[ignore = "writes new files"]
fn write_golden_databases() {
    let out = PathBuf::from(std::env::var_os("GOLDEN_OUT").expect("GOLDEN_OUT names the folder to write"));
    let out = folder().join(out.file_name().unwrap());
    std::fs::create_dir_all(&out).unwrap();
    for name in ["closed", "killed", "lost-power"] {
        let disk = SimStorage::new(7);
        let mut tree = TreeOptions::default();
        tree.fanout = 4;
        tree.leaf_bytes = 8 << 10;
        tree.segment_bytes = 8 << 10;
        tree.max_runs = 2;
        let mut options = betree::Options::default();
        options.memory = 1 << 20;
        options.memtable_bytes = Some(8 << 10);
        options.background_threads = 0;
        options.sync_interval = None;
        options.durability = Durability::Buffered;
        options.log_file_bytes = 64 << 10;
        options.tree = tree;
        let db = Db::builder().options(options).open_on(disk.as_storage()).unwrap();
        write(&db);
        let disk = match name {
            "closed" => {
                db.close().unwrap();
                disk.kill()
            }
            "killed" => disk.kill(),
            _ => disk.crashed_copy(3),
        };
        // A copy, which recovery changes.
        let copy = unpack(&pack(&disk, &Content::new())).disk;
        let content = content(&stranger().open_on(copy.as_storage()).unwrap());
        let packed = pack(&disk, &content);
        println!("{name}: {} records, {} bytes", content.len(), packed.len());
        std::fs::write(out.join(name), packed).unwrap();
    }
}
