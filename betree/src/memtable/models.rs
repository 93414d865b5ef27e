//! Arena and memtable under a model checker: the real code, one interleaving after the other. Runs with the feature `shuttle` only.

use std::sync::Arc;

use betree_storage::primitives::atomic::{AtomicU64, Ordering};
use betree_storage::primitives::{explore, thread};
use bytes::Bytes;

use super::arena::Arena;
use super::pool::ArenaPool;
use super::{Base, Memtable};
use crate::message::{Kind, MessageRef};
use crate::types::Seqno;

const KEYS: u64 = 3;

/// `arena.published_is_written`: what a reader finds below the published length is an entry, whole, and stays as it is.
#[test]
fn what_the_arena_publishes_is_written_and_final_in_every_interleaving() {
    explore(2000, || {
        let (arena, mut writer) = Arena::new(Arc::new(ArenaPool::new(0)));
        // The chunk must be there for anybody to look at it.
        let first = writer.push(Seqno(1), MessageRef { kind: Kind::Put, key: b"first", value: b"value 1" });
        let mut readers = Vec::new();
        for _ in 0..2 {
            let arena = arena.clone();
            readers.push(thread::spawn(move || {
                let mut before: Vec<u8> = Vec::new();
                for _ in 0..4 {
                    let now = arena.published(first).to_vec();
                    assert!(now.starts_with(&before), "arena.published_is_written: bytes changed");
                    let mut rest = &now[..];
                    let mut seqno = 1;
                    while !rest.is_empty() {
                        let (entry, len) =
                            arena.first_of(rest).expect("arena.published_is_written: no entry");
                        assert_eq!(entry.seqno, Seqno(seqno));
                        assert_eq!(entry.value(), format!("value {seqno}").as_bytes());
                        seqno += 1;
                        rest = &rest[len..];
                    }
                    before = now;
                }
            }));
        }
        for seqno in 2..=6u64 {
            let value = format!("value {seqno}");
            writer.push(Seqno(seqno), MessageRef { kind: Kind::Put, key: b"key", value: value.as_bytes() });
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// One writer applies batches, readers look as of a Seqno whose batch was applied whole.
#[test]
fn readers_of_a_memtable_see_whole_batches_in_every_interleaving() {
    explore(1000, || {
        let table = Arc::new(Memtable::new(Arc::new(ArenaPool::new(1 << 16)), None));
        let visible = Arc::new(AtomicU64::new(0));
        let mut readers = Vec::new();
        for _ in 0..2 {
            let (table, visible) = (table.clone(), visible.clone());
            readers.push(thread::spawn(move || {
                for _ in 0..4 {
                    let at = visible.load(Ordering::Acquire);
                    let batch = Bytes::from((at / KEYS).to_string());
                    for i in 0..KEYS {
                        let got = table.get(&[i as u8], Seqno(at), &mut Vec::new());
                        assert_eq!(got, (at > 0).then(|| Base::Put(batch.clone())), "at {at}");
                    }
                    let mut cursor = table.cursor(Seqno(at));
                    cursor.seek(b"");
                    let mut seen = 0;
                    while let Some(entry) = cursor.entry() {
                        assert_eq!(entry.value, batch, "at {at}");
                        seen += 1;
                        cursor.advance();
                    }
                    assert_eq!(seen, if at > 0 { KEYS } else { 0 });
                }
            }));
        }
        for batch in 1..=3u64 {
            let value = batch.to_string();
            let messages: Vec<_> = (0..KEYS).map(|i| ((batch - 1) * KEYS + i + 1, [i as u8])).collect();
            table.apply(messages.iter().map(|(seqno, key)| {
                (Seqno(*seqno), MessageRef { kind: Kind::Put, key, value: value.as_bytes() })
            }));
            visible.store(batch * KEYS, Ordering::Release);
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
