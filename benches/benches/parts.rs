//! Criterion benches of the parts: inserts one at a time and by the hundred, hot reads, scans.
//!
//! `cargo bench -p betree-bench` measures; `cargo bench -p betree-bench -- --test` runs each once. Small enough to stay in memory: what
//! happens beyond it is the comparison's subject.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use betree::{Db, Durability, Keyspace};
use betree_bench::record::{Batch, FIRST_VERSION, Key, Random, Records};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

const PRESENT: u64 = 200_000;
const VALUE_BYTES: usize = 100;
const MEMORY: usize = 256 << 20;

/// A database in a directory that goes with it.
struct Fixture {
    db: Db,
    keyspace: Keyspace,
    records: Records,
    _dir: TempDir,
}

impl Fixture {
    fn new(present: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let db =
            Db::builder().memory(MEMORY).durability(Durability::Buffered).open(dir.path()).expect("open");
        let keyspace = db.keyspace("records").expect("keyspace");
        let fixture = Fixture { db, keyspace, records: Records::new(1, VALUE_BYTES), _dir: dir };
        let mut batch = Batch::new(VALUE_BYTES);
        for start in (0..present).step_by(1000) {
            fixture.fill(&mut batch, start, 1000.min(present - start));
            fixture.write(&batch);
        }
        fixture
    }

    fn fill(&self, batch: &mut Batch, start: u64, len: u64) {
        batch.clear();
        for number in start..start + len {
            batch.push(&self.records, number, FIRST_VERSION);
        }
    }

    fn write(&self, batch: &Batch) {
        let mut write = self.db.batch();
        for (key, value) in batch.iter() {
            write.insert(&self.keyspace, key, value).expect("insert");
        }
        self.db.write_with(&mut write, Durability::Buffered).expect("write");
    }

    fn keys(&self, random: &mut Random, len: usize) -> Vec<Key> {
        (0..len).map(|_| self.records.key(random.below(PRESENT))).collect()
    }
}

fn insert(c: &mut Criterion) {
    let fixture = Fixture::new(0);
    let next = AtomicU64::new(0);
    let mut group = c.benchmark_group("insert");
    for len in [1u64, 100] {
        group.throughput(Throughput::Elements(len));
        group.bench_function(format!("batch {len}"), |b| {
            b.iter_batched_ref(
                || {
                    let mut batch = Batch::new(VALUE_BYTES);
                    fixture.fill(&mut batch, next.fetch_add(len, Ordering::Relaxed), len);
                    batch
                },
                |batch| match batch.len() {
                    1 => batch
                        .iter()
                        .for_each(|(key, value)| fixture.keyspace.insert(key, value).expect("insert")),
                    _ => fixture.write(batch),
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn get(c: &mut Criterion) {
    let fixture = Fixture::new(PRESENT);
    let mut random = Random::new(2);
    let mut group = c.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    group.bench_function("hot", |b| {
        b.iter(|| {
            let number = random.below(PRESENT);
            black_box(fixture.keyspace.get(fixture.records.key(number)).expect("get")).expect("present")
        });
    });
    group.bench_function("miss", |b| {
        b.iter(|| {
            let number = PRESENT + random.below(1 << 40);
            assert!(fixture.keyspace.get(fixture.records.key(number)).expect("get").is_none());
        });
    });
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 at once", |b| {
        b.iter_batched_ref(
            || fixture.keys(&mut random, 64),
            |keys| fixture.keyspace.multi_get(keys).expect("multi_get"),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn scan(c: &mut Criterion) {
    let fixture = Fixture::new(PRESENT);
    let mut random = Random::new(3);
    let mut group = c.benchmark_group("scan");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 rows", |b| {
        b.iter(|| {
            let start = fixture.records.key(random.below(PRESENT));
            fixture.keyspace.range(start..).take(100).map(|row| row.expect("row").1.len()).sum::<usize>()
        });
    });
    group.throughput(Throughput::Elements(PRESENT));
    group.sample_size(10);
    group.bench_function("everything", |b| {
        b.iter(|| fixture.keyspace.iter().map(|row| row.expect("row").1.len()).sum::<usize>());
    });
    group.finish();
}

criterion_group!(parts, insert, get, scan);
criterion_main!(parts);
