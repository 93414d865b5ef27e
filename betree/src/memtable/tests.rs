//! The memtable against a sorted map of all its messages.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::pool::ArenaPool;
use super::{Base, MemCursor, Memtable};
use crate::message::{Kind, MessageRef};
use crate::operands;
use crate::operator::{Append, MergeOperator};
use crate::types::Seqno;

struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Keys that are hard to tell apart: one of a few shapes per seed.
fn random_key(rng: &mut Rng, shape: u64, space: u64) -> Vec<u8> {
    let i = rng.below(space);
    match shape % 6 {
        0 => i.to_be_bytes().to_vec(),
        1 => format!("usr/share/doc/a-package-with-a-long-name/{}/file{i:07}", i % 3).into_bytes(),
        2 => vec![0xff; (i % 300) as usize],
        3 => {
            let mut key = vec![0; (i % 20) as usize];
            key.extend(std::iter::repeat_n((i % 6) as u8 * 51, (i / 20 % 12) as usize));
            key
        }
        4 => format!("{}{}", "x".repeat((i % 40) as usize), i).into_bytes(),
        _ if i.is_multiple_of(50) => Vec::new(),
        _ => format!("table{}/row/{i:05}", i % 2).into_bytes(),
    }
}

/// Of a hundred messages, how many are of these kinds; the others are Puts.
struct Kinds {
    merges: u64,
    deletes: u64,
    ranges: u64,
}

impl Kinds {
    fn random(rng: &mut Rng) -> Kinds {
        Kinds { merges: rng.below(60), deletes: rng.below(30), ranges: [0, 1, 8][rng.below(3) as usize] }
    }

    /// A key, what is done with it, and the value or the end of the range.
    fn message(
        &self,
        rng: &mut Rng,
        seqno: u64,
        random_key: impl Fn(&mut Rng) -> Vec<u8>,
    ) -> (Vec<u8>, Kind, Vec<u8>) {
        let key = random_key(rng);
        let (kind, value) = match rng.below(100) {
            p if p < self.ranges => (Kind::RangeDelete, random_key(rng)),
            p if p < self.ranges + self.deletes => (Kind::Delete, Vec::new()),
            p if p < self.ranges + self.deletes + self.merges => {
                (Kind::Merge, vec![seqno as u8; rng.below(3) as usize])
            }
            _ if rng.below(500) == 0 => (Kind::Put, vec![seqno as u8; 20_000]),
            _ => (Kind::Put, seqno.to_string().into_bytes()),
        };
        (key, kind, value)
    }
}

type Messages = BTreeMap<(Vec<u8>, Reverse<u64>), (Kind, Vec<u8>)>;

/// All messages by key and falling Seqno, and the range deletes.
#[derive(Default)]
struct Model {
    messages: Messages,
    ranges: Vec<(u64, Vec<u8>, Vec<u8>)>,
}

#[derive(PartialEq, Eq, Debug, Clone)]
struct View {
    /// Newest first.
    operands: Vec<Vec<u8>>,
    base: Option<Option<Vec<u8>>>,
    by_delete: bool,
}

impl Model {
    fn apply(&mut self, seqno: u64, kind: Kind, key: &[u8], value: &[u8]) {
        match kind {
            Kind::RangeDelete => self.ranges.push((seqno, key.to_vec(), value.to_vec())),
            _ => _ = self.messages.insert((key.to_vec(), Reverse(seqno)), (kind, value.to_vec())),
        }
    }

    fn view(&self, key: &[u8], at: u64) -> View {
        let covers =
            |r: &&(u64, Vec<u8>, Vec<u8>)| r.0 <= at && r.1.as_slice() <= key && key < r.2.as_slice();
        let covered = self.ranges.iter().filter(covers).map(|r| r.0).max();
        let mut view = View { operands: Vec::new(), base: covered.map(|_| None), by_delete: false };
        let versions = (key.to_vec(), Reverse(at))..=(key.to_vec(), Reverse(0));
        for ((_, Reverse(seqno)), (kind, value)) in self.messages.range(versions) {
            match kind {
                _ if covered > Some(*seqno) => break,
                Kind::Merge => view.operands.push(value.clone()),
                Kind::Put => {
                    view.base = Some(Some(value.clone()));
                    break;
                }
                _ => {
                    (view.base, view.by_delete) = (Some(None), true);
                    break;
                }
            }
        }
        view
    }

    /// What a cursor shows: key, kind, and the value (for a Merge: its operands appended).
    fn entries(&self, at: u64) -> Vec<(Vec<u8>, Kind, Vec<u8>)> {
        let mut keys: Vec<&Vec<u8>> = self.messages.keys().map(|(key, _)| key).collect();
        keys.dedup();
        let entry = |key: &Vec<u8>| {
            let view = self.view(key, at);
            let operands: Vec<u8> = view.operands.iter().rev().flatten().copied().collect();
            match (view.base, view.operands.is_empty()) {
                (None, true) => None,
                (None, false) => Some((key.clone(), Kind::Merge, operands)),
                (Some(None), true) => view.by_delete.then(|| (key.clone(), Kind::Delete, Vec::new())),
                (Some(base), _) => {
                    Some((key.clone(), Kind::Put, [base.unwrap_or_default(), operands].concat()))
                }
            }
        };
        keys.into_iter().filter_map(entry).collect()
    }
}

fn shown(cursor: &MemCursor) -> Option<(Vec<u8>, Kind, Vec<u8>)> {
    let entry = cursor.entry()?;
    let value = match entry.kind {
        Kind::Merge => operands::decode(entry.value).unwrap().concat(),
        _ => entry.value.to_vec(),
    };
    Some((entry.key.to_vec(), entry.kind, value))
}

fn check_cursor(cursor: &mut MemCursor, entries: &[(Vec<u8>, Kind, Vec<u8>)], probe: &[u8], steps: usize) {
    let from = entries.partition_point(|e| e.0.as_slice() < probe);
    cursor.seek(probe);
    for i in from..(from + steps).min(entries.len() + 1) {
        assert_eq!(shown(cursor).as_ref(), entries.get(i));
        cursor.advance();
    }
    cursor.seek_before(Some(probe));
    for i in 0..steps.min(from + 1) {
        assert_eq!(shown(cursor).as_ref(), entries[..from].iter().rev().nth(i));
        cursor.retreat();
    }
}

#[test]
fn any_table_answers_like_the_model() {
    for seed in 1..=120u64 {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let shape = rng.below(6);
        let space = [5, 60, 1_000, 1_000_000][rng.below(4) as usize];
        let count = [40, 400, 4_000][rng.below(3) as usize];
        let kinds = Kinds::random(&mut rng);
        let table = Arc::new(Memtable::new(Arc::new(ArenaPool::new(1 << 16)), Some(Arc::new(Append))));
        let mut model = Model::default();
        let mut seqno = rng.below(1_000);
        let first = seqno + 1;
        let mut applied = 0;
        while applied < count {
            let mut batch = Vec::new();
            for _ in 0..1 + rng.below(if seed.is_multiple_of(3) { 300 } else { 3 }) {
                seqno += 1;
                let (key, kind, value) = kinds.message(&mut rng, seqno, |rng| random_key(rng, shape, space));
                model.apply(seqno, kind, &key, &value);
                batch.push((Seqno(seqno), kind, key, value));
            }
            let refs = batch.iter().map(|m| (m.0, MessageRef { kind: m.1, key: &m.2, value: &m.3 }));
            match batch.len() {
                1 => refs.for_each(|(seqno, m)| table.apply_one(seqno, m)),
                _ => table.apply(refs),
            }
            applied += batch.len();
        }
        assert_eq!(table.len(), applied);
        assert_eq!(table.seqnos(), Some((Seqno(first), Seqno(seqno))));
        assert_eq!(table.state.read().tree.check(&table.arena), model.messages.len());
        for at in [seqno, u64::MAX, first - 1, first, first + rng.below(applied as u64), rng.below(seqno)] {
            check_reads(&table, &model, at, || random_key(&mut rng, shape, space));
        }
    }
}

/// Compares spans, gets and cursors as of `at`.
fn check_reads(table: &Arc<Memtable>, model: &Model, at: u64, mut random_key: impl FnMut() -> Vec<u8>) {
    let spans = table.spans(Seqno(at));
    let entries = model.entries(at);
    let mut cursor = table.cursor(Seqno(at));
    assert_eq!(cursor.entry(), None);
    for i in 0..40u32 {
        let key = random_key();
        let key = if i.is_multiple_of(4) { [key, vec![0]].concat() } else { key };
        let view = model.view(&key, at);
        let mut found = Vec::new();
        let base = table.get(&key, Seqno(at), &mut found);
        assert_eq!(found, view.operands, "operands of {key:?} at {at}");
        let expected = view.base.clone().map(|b| b.map_or(Base::Deleted, |b| Base::Put(Bytes::from(b))));
        assert_eq!(base, expected, "{key:?} at {at}");
        let visible = |r: &&(u64, Vec<u8>, Vec<u8>)| r.0 <= at && r.1 <= key && key < r.2;
        assert_eq!(spans.contains(&key), model.ranges.iter().any(|r| visible(&r)));
        check_cursor(&mut cursor, &entries, &key, 30);
    }
    check_cursor(&mut cursor, &entries, b"", entries.len() + 2);
    cursor.seek_before(None);
    for entry in entries.iter().rev() {
        assert_eq!(shown(&cursor).as_ref(), Some(entry));
        cursor.retreat();
    }
    assert_eq!(cursor.entry(), None);
    cursor.retreat();
    assert_eq!(cursor.entry(), None);
}

#[test]
fn a_compacted_table_answers_like_all_that_it_was_made_of() {
    for seed in 1..=60u64 {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let shape = rng.below(6);
        let space = [5, 60, 1_000][rng.below(3) as usize];
        let kinds = Kinds::random(&mut rng);
        let pool = Arc::new(ArenaPool::new(1 << 16));
        let operator: Option<Arc<dyn MergeOperator>> = Some(Arc::new(Append));
        let mut model = Model::default();
        let mut rest: Option<Memtable> = None;
        let mut seqno = 0;
        for _ in 0..1 + rng.below(4) {
            let newer = Memtable::new(pool.clone(), operator.clone());
            for _ in 0..rng.below(2_000) {
                seqno += 1;
                let (key, kind, value) = kinds.message(&mut rng, seqno, |rng| random_key(rng, shape, space));
                newer.apply_one(Seqno(seqno), MessageRef { kind, key: &key, value: &value });
                model.apply(seqno, kind, &key, &value);
            }
            let before = rest.as_ref().map_or(0, Memtable::bytes) + newer.bytes();
            let tables: Vec<&Memtable> = [&newer].into_iter().chain(&rest).collect();
            let mut kept = 0;
            let new = Memtable::compacted(&tables, pool.clone(), operator.clone(), &mut |_| kept += 1);
            assert!(new.len() == kept && new.bytes() <= before);
            assert!(new.seqnos().is_none_or(|seqnos| seqnos == (Seqno(1), Seqno(seqno))));
            rest = Some(new);
        }
        let table = Arc::new(rest.unwrap());
        // What nobody can see is gone: the messages of a key end with its newest Put or Delete, or with a range delete.
        let mut ended: Option<&[u8]> = None;
        let mut needed = 0;
        for ((key, Reverse(seqno)), (kind, _)) in &model.messages {
            let covers = |r: &(u64, Vec<u8>, Vec<u8>)| r.0 > *seqno && r.1 <= *key && *key < r.2;
            if ended != Some(key) && !model.ranges.iter().any(covers) {
                needed += 1;
                ended = (*kind != Kind::Merge).then_some(key);
            }
        }
        assert_eq!(table.state.read().tree.check(&table.arena), needed);
        for at in [seqno, u64::MAX] {
            check_reads(&table, &model, at, || random_key(&mut rng, shape, space));
        }
    }
}

#[test]
fn ascending_descending_and_repeated_keys_keep_the_tree_in_order() {
    for shape in 0..4u64 {
        let table = Arc::new(Memtable::new(Arc::new(ArenaPool::new(1 << 20)), Some(Arc::new(Append))));
        let count = 60_000u64;
        for i in 1..=count {
            let n = match shape {
                0 => i,
                1 => count - i,
                2 => i % 3,
                _ => i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            let key = format!("a/rather/long/common/prefix/{n:020}");
            table.apply_one(
                Seqno(i),
                MessageRef { kind: Kind::Put, key: key.as_bytes(), value: &i.to_le_bytes() },
            );
        }
        let state = table.state.read();
        assert_eq!(state.tree.check(&table.arena), count as usize);
        if shape == 0 {
            assert!(state.tree.bytes() < count as usize * 16, "ascending keys fill their leaves");
        }
        drop(state);
        if shape == 2 {
            // Any old version of a key with many is found.
            for at in [3u64, 4, 5, 100, 30_000, 59_999] {
                let key = format!("a/rather/long/common/prefix/{:020}", at % 3);
                let found = table.get(key.as_bytes(), Seqno(at), &mut Vec::new());
                assert_eq!(found, Some(Base::Put(Bytes::copy_from_slice(&at.to_le_bytes()))));
            }
        }
    }
}

#[test]
fn an_empty_table_shows_nothing() {
    let table = Arc::new(Memtable::new(Arc::new(ArenaPool::new(1 << 20)), None));
    assert!(table.is_empty() && table.seqnos().is_none() && table.spans(Seqno(u64::MAX)).is_empty());
    assert_eq!(table.get(b"", Seqno(u64::MAX), &mut Vec::new()), None);
    let mut cursor = table.cursor(Seqno(u64::MAX));
    cursor.seek(b"");
    assert_eq!(cursor.entry(), None);
    cursor.advance();
    cursor.seek_before(None);
    assert_eq!(cursor.entry(), None);
}

#[test]
fn many_operands_of_one_key_become_one() {
    let table = Arc::new(Memtable::new(Arc::new(ArenaPool::new(1 << 20)), Some(Arc::new(Append))));
    for i in 1..=20_000u64 {
        table.apply_one(Seqno(i), MessageRef { kind: Kind::Merge, key: b"k", value: &[i as u8] });
    }
    let mut cursor = table.cursor(Seqno(15_000));
    let expected: Vec<u8> = (1..=15_000u64).map(|i| i as u8).collect();
    for backward in [false, true] {
        if backward {
            cursor.seek_before(None);
        } else {
            cursor.seek(b"");
        }
        let entry = cursor.entry().unwrap();
        assert_eq!(operands::decode(entry.value).unwrap(), [&expected[..]]);
        assert_eq!(operands::fold(&Append, b"k", None, entry.value).unwrap(), expected);
    }
    assert_eq!(Append.name(), "betree.append");
}

#[test]
#[should_panic(expected = "does not ascend")]
fn a_seqno_that_does_not_ascend_is_an_assert() {
    let table = Memtable::new(Arc::new(ArenaPool::new(1 << 20)), None);
    table.apply_one(Seqno(5), MessageRef { kind: Kind::Put, key: b"a", value: b"" });
    table.apply_one(Seqno(5), MessageRef { kind: Kind::Put, key: b"b", value: b"" });
}

#[test]
fn readers_see_whole_batches_while_a_writer_applies_more() {
    const KEYS: u64 = 40;
    const BATCHES: u64 = 3_000;
    let table = Arc::new(Memtable::new(Arc::new(ArenaPool::new(1 << 20)), Some(Arc::new(Append))));
    let visible = AtomicU64::new(0);
    let key = |i: u64| format!("account/{:03}", i * 7 % KEYS).into_bytes();
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let (table, visible) = (&table, &visible);
            scope.spawn(move || {
                loop {
                    let at = visible.load(Ordering::Acquire);
                    let batch = (at / KEYS).to_string().into_bytes();
                    if at > 0 {
                        let mut cursor = table.cursor(Seqno(at));
                        let mut seen = 0;
                        if reader == 0 {
                            cursor.seek(b"");
                        } else {
                            cursor.seek_before(None);
                        }
                        while let Some(entry) = cursor.entry() {
                            assert_eq!(entry.value, batch, "at {at}");
                            seen += 1;
                            if reader == 0 { cursor.advance() } else { cursor.retreat() }
                        }
                        assert_eq!(seen, KEYS);
                        for i in 0..KEYS {
                            let base = table.get(&key(i), Seqno(at), &mut Vec::new());
                            assert_eq!(base, Some(Base::Put(Bytes::from(batch.clone()))));
                        }
                    }
                    if at == KEYS * BATCHES {
                        return;
                    }
                }
            });
        }
        for batch in 1..=BATCHES {
            let value = batch.to_string().into_bytes();
            let keys: Vec<Vec<u8>> = (0..KEYS).map(key).collect();
            let messages = keys.iter().zip((batch - 1) * KEYS + 1..);
            table.apply(
                messages
                    .map(|(key, seqno)| (Seqno(seqno), MessageRef { kind: Kind::Put, key, value: &value })),
            );
            visible.store(batch * KEYS, Ordering::Release);
        }
    });
    assert_eq!(table.state.read().tree.check(&table.arena), (KEYS * BATCHES) as usize);
}
