//! The whole engine under a model checker: writers, readers and background threads on the simulated disk, one interleaving after the
//! other. Runs with the feature `shuttle` only.
//!
//! There is no time in a check: whoever sleeps until it is woken and is not, sleeps for ever, and the checker reports a deadlock. So
//! each of these also shows that no wake-up is lost between committers, workers and waiters.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use betree_storage::primitives::atomic::{AtomicU64, Ordering};
use betree_storage::primitives::{Condvar, Mutex, explore, thread};
use betree_testkit::SimStorage;
use bytes::Bytes;

use crate::memtable::ArenaPool;
use crate::message::{Kind, MessageRef};
use crate::node::Node;
use crate::state::State;
use crate::types::{KeyspaceId, Seqno};
use crate::view::Frozen;
use crate::{Builder, Db, Durability, Error, Keyspace, TreeOptions};

/// Every few records freeze a memtable.
fn builder(threads: usize) -> Builder {
    let mut tree = TreeOptions::default();
    tree.fanout = 4;
    tree.leaf_bytes = 4096;
    tree.segment_bytes = 8192;
    tree.max_runs = 1;
    let builder = Db::builder().memory(1 << 20).memtable_bytes(1024).sync_interval(None);
    builder.background_threads(threads).tree(tree)
}

fn value(n: u64) -> Vec<u8> {
    let mut value = vec![n as u8; 400];
    value[..8].copy_from_slice(&n.to_le_bytes());
    value
}

fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| {
        assert!(value[8..].iter().all(|byte| *byte == value[0]), "a value is torn");
        u64::from_le_bytes(value[..8].try_into().unwrap())
    })
}

/// The same number under both keys of the batch.
fn write_pair(db: &Db, a: &Keyspace, b: &Keyspace, n: u64, durability: Durability) {
    let mut batch = db.batch();
    batch.insert(a, "a", value(n)).unwrap();
    batch.insert(b, "b", value(n)).unwrap();
    db.write_with(&mut batch, durability).unwrap();
}

/// Reads without a snapshot: `moment` pairs a view with a Seqno while memtables are frozen, compacted and installed.
fn reads(threads: usize, memtable_bytes: usize, iterations: usize) {
    explore(iterations, move || {
        let db =
            builder(threads).memtable_bytes(memtable_bytes).open_on(SimStorage::new(1).as_storage()).unwrap();
        let keyspace = db.keyspace("k").unwrap();
        let done = Arc::new(AtomicU64::new(0));
        let mut readers = Vec::new();
        for reader in 0..2 {
            let (keyspace, done) = (keyspace.clone(), done.clone());
            readers.push(thread::spawn(move || {
                let mut last = 0;
                for _ in 0..4 {
                    let least = done.load(Ordering::SeqCst).max(last);
                    let (a, b) = if reader == 0 {
                        let values = keyspace.multi_get(&["a", "b"]).unwrap();
                        (number(values[0].as_deref()), number(values[1].as_deref()))
                    } else {
                        let all: Vec<_> = keyspace.iter().map(|record| record.unwrap().1).collect();
                        (number(all.first().map(|v| &v[..])), number(all.get(1).map(|v| &v[..])))
                    };
                    assert_eq!(a, b, "half of a batch");
                    assert!(a >= least, "{a} after {least}");
                    last = a;
                    let one = number(keyspace.get("a").unwrap().as_deref());
                    assert!(one >= last, "{one} after {last}");
                }
            }));
        }
        for n in 1..=6 {
            write_pair(&db, &keyspace, &keyspace, n, Durability::Buffered);
            done.store(n, Ordering::SeqCst);
        }
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(db.check().unwrap().problems, Vec::<String>::new());
    });
}

#[test]
fn reads_of_one_keyspace_see_whole_batches_in_every_interleaving() {
    reads(0, 1024, 400);
}

#[test]
fn reads_of_one_keyspace_see_whole_batches_while_background_threads_change_the_tree() {
    reads(1, 1024, 60);
}

#[test]
fn reads_of_one_keyspace_see_whole_batches_while_memtables_are_compacted_in_memory() {
    reads(1, 6000, 100);
}

/// Snapshots of two keyspaces under batches that name both, and what they say later.
fn snapshots(threads: usize, iterations: usize) {
    explore(iterations, move || {
        let db = builder(threads).open_on(SimStorage::new(2).as_storage()).unwrap();
        let (a, b) = (db.keyspace("one").unwrap(), db.keyspace("two").unwrap());
        let done = Arc::new(AtomicU64::new(0));
        let (db2, a2, b2, done2) = (db.clone(), a.clone(), b.clone(), done.clone());
        let reader = thread::spawn(move || {
            let mut held = Vec::new();
            for _ in 0..8 {
                let least = done2.load(Ordering::SeqCst);
                let snapshot = db2.snapshot();
                let n = number(snapshot.get(&a2, "a").unwrap().as_deref());
                assert_eq!(n, number(snapshot.get(&b2, "b").unwrap().as_deref()), "half of a batch");
                assert!(n >= least, "{n} after {least}");
                held.push((snapshot, n));
            }
            held
        });
        for n in 1..=6 {
            write_pair(&db, &a, &b, n, Durability::Buffered);
            done.store(n, Ordering::SeqCst);
        }
        for (snapshot, n) in reader.join().unwrap() {
            for (keyspace, key) in [(&a, "a"), (&b, "b")] {
                let all: Vec<_> = snapshot.iter(keyspace).unwrap().map(|record| record.unwrap()).collect();
                assert_eq!(all.len(), usize::from(n > 0), "{key}");
                assert_eq!(number(all.first().map(|(_, v)| &v[..])), n, "a snapshot has changed");
            }
        }
    });
}

#[test]
fn snapshots_are_of_one_moment_in_all_keyspaces_in_every_interleaving() {
    snapshots(0, 600);
}

#[test]
fn snapshots_are_of_one_moment_in_all_keyspaces_while_background_threads_change_the_trees() {
    snapshots(1, 60);
}

fn empty_state() -> Arc<State> {
    let arenas = Arc::new(ArenaPool::new(1024));
    let (options, root) = (TreeOptions::default(), Node::empty_root());
    Arc::new(State::new(KeyspaceId(1), "k", None, options, arenas, root, Seqno(0)))
}

fn write(state: &State, n: u64) {
    let message = MessageRef { kind: Kind::Put, key: b"k", value: b"v" };
    state.peek().heads[0].table.apply_one(Seqno(n), message);
}

/// `view.nothing_between`, in the view alone: a memtable is frozen and written to while another one is installed and the tree changes.
#[test]
fn a_view_loses_nothing_to_changes_at_the_same_time_in_any_interleaving() {
    explore(2000, || {
        let state = empty_state();
        write(&state, 1);
        state.freeze();
        let oldest = state.view().heads[1].clone();
        let (installing, changing) = (state.clone(), state.clone());
        let installer = thread::spawn(move || installing.install(&oldest, Seqno(1), Arc::clone));
        let changer = thread::spawn(move || changing.change(|root| Some(root.clone())));
        state.freeze();
        write(&state, 2);
        installer.join().unwrap();
        assert!(changer.join().unwrap());
        let view = state.view();
        assert_eq!((view.heads.len(), view.flushed), (2, Seqno(1)), "a change of the view was lost");
        assert_eq!(view.heads[0].table.seqnos(), Some((Seqno(2), Seqno(2))), "a write was lost");
    });
}

/// The same while frozen memtables are compacted in memory and somebody has them flushed.
#[test]
fn a_view_loses_nothing_to_an_in_memory_compaction_in_any_interleaving() {
    explore(2000, || {
        let state = empty_state();
        write(&state, 1);
        write(&state, 2);
        state.freeze_for(Frozen::Compact);
        let olds = state.view().heads[1..].to_vec();
        let (compacting, asking) = (state.clone(), state.clone());
        let compactor = thread::spawn(move || {
            let new = Arc::new(compacting.compacted(&olds, &mut |_| ()));
            compacting.install_compacted(&olds, new, true);
        });
        let asker = thread::spawn(move || asking.flush_frozen());
        write(&state, 3);
        state.freeze();
        write(&state, 4);
        compactor.join().unwrap();
        asker.join().unwrap();
        let view = state.view();
        let seqnos: Vec<_> = view.heads.iter().filter_map(|head| head.table.seqnos()).collect();
        let both = (Seqno(1), Seqno(2));
        assert_eq!(
            seqnos,
            [(Seqno(4), Seqno(4)), (Seqno(3), Seqno(3)), both],
            "a change of the view was lost"
        );
        assert_eq!((view.frozen, view.heads[2].table.len()), (Frozen::Flush, 1));
    });
}

/// Writers at the hard limit, waiters for flushes and compactions, two workers, the end: everybody is woken in time.
#[test]
fn nobody_waits_for_ever_in_any_interleaving() {
    explore(60, || {
        let db = builder(2).open_on(SimStorage::new(3).as_storage()).unwrap();
        let keyspace = db.keyspace("k").unwrap();
        let mut threads = Vec::new();
        for writer in 0..2u64 {
            let keyspace = keyspace.clone();
            threads.push(thread::spawn(move || {
                for n in 0..8u64 {
                    keyspace.insert([writer as u8, n as u8], value(n)).unwrap();
                }
            }));
        }
        let other = db.clone();
        threads.push(thread::spawn(move || other.checkpoint().unwrap()));
        let other = db.clone();
        threads.push(thread::spawn(move || other.compact().unwrap()));
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(keyspace.iter().count(), 16);
        db.compact().unwrap();
        assert_eq!(keyspace.iter().count(), 16);
        db.close().unwrap();
    });
}

/// Memory is shared out, which asks the scheduler, while a worker looks for leaves to settle, which asks when something was written last.
#[test]
fn a_database_at_rest_waits_for_nobody_in_any_interleaving() {
    explore(200, || {
        let storage = SimStorage::new(7).as_storage();
        let db = builder(0).open_on(storage.clone()).unwrap();
        let keyspace = db.keyspace("k").unwrap();
        for n in 0..6u64 {
            keyspace.insert([0], value(n)).unwrap();
        }
        storage.pause(Duration::from_secs(5));
        let (sharing, settling) = (db.clone(), db.clone());
        let sharer = thread::spawn(move || (0..8).for_each(|_| sharing.shared().share_memory()));
        let settler = thread::spawn(move || {
            (0..8).for_each(|_| {
                settling.run_background().unwrap();
            });
        });
        sharer.join().unwrap();
        settler.join().unwrap();
        assert_eq!(number(keyspace.get([0]).unwrap().as_deref()), 5);
    });
}

/// Sleeps until it is woken.
#[derive(Default)]
struct Sleeper {
    woken: Mutex<bool>,
    wake: Condvar,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.wake.notify_one();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let sleeper = Arc::new(Sleeper::default());
    let waker = sleeper.clone().into();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut woken = sleeper.woken.lock();
        while !std::mem::take(&mut *woken) {
            sleeper.wake.wait(&mut woken);
        }
    }
}

/// Reads that are handed to threads, by several callers, beside the end of the database: each is answered or refused, and its caller woken.
#[test]
fn a_read_that_does_not_wait_is_answered_in_every_interleaving() {
    explore(60, || {
        let disk = SimStorage::new(8);
        let db = builder(0).open_on(disk.as_storage()).unwrap();
        let keyspace = db.keyspace("k").unwrap();
        for n in 0..6u64 {
            keyspace.insert([n as u8], value(n)).unwrap();
        }
        db.compact().unwrap();
        drop((keyspace, db));
        // Cold.
        let db = builder(1).open_on(disk.as_storage()).unwrap();
        let keyspace = db.keyspace("k").unwrap();
        let right = |n: u64, found: crate::Result<Option<Bytes>>| match found {
            Ok(found) => assert_eq!(number(found.as_deref()), n),
            Err(error) => assert!(matches!(error, Error::Closed), "{error}"),
        };
        let mut readers = Vec::new();
        for first in [0, 2, 4] {
            let keyspace = keyspace.clone();
            readers.push(thread::spawn(move || {
                let given_up = keyspace.get_async([first as u8]);
                let other = keyspace.get_async([first as u8 + 1]);
                drop(given_up);
                right(first + 1, block_on(other));
                right(first, block_on(keyspace.get_async([first as u8])));
            }));
        }
        let closer = thread::spawn(move || db.close().unwrap());
        for reader in readers {
            reader.join().unwrap();
        }
        closer.join().unwrap();
        right(0, block_on(keyspace.get_async([0])));
    });
}

/// A worker that has just found nothing to do learns of a memtable that is frozen before it sleeps, without another freeze after it.
#[test]
fn a_frozen_memtable_is_flushed_without_being_asked_for_again() {
    explore(150, || {
        let db = builder(1).open_on(SimStorage::new(6).as_storage()).unwrap();
        let keyspace = db.keyspace("k").unwrap();
        // Again and again, while the worker ends its last task and looks for the next one.
        for n in 0..18 {
            keyspace.insert([n as u8], value(n)).unwrap();
            while keyspace.state.view().heads.len() > 1 {
                thread::yield_now();
            }
        }
        assert!(db.stats().memtable_flush_bytes > 0);
    });
}

/// A keyspace is dropped under a writer that may be waiting for room in it.
#[test]
fn a_writer_of_a_keyspace_that_is_dropped_gets_an_error_in_every_interleaving() {
    explore(80, || {
        let db = builder(1).open_on(SimStorage::new(4).as_storage()).unwrap();
        let keyspace = db.keyspace("brief").unwrap();
        let writer = thread::spawn(move || {
            for n in 0..20u64 {
                match keyspace.insert([n as u8], value(n)) {
                    Ok(()) => {}
                    Err(Error::KeyspaceDropped { .. }) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        assert!(db.drop_keyspace("brief").unwrap());
        writer.join().unwrap();
        db.checkpoint().unwrap();
        assert_eq!(db.keyspaces(), Vec::<String>::new());
    });
}

/// The power is cut at any moment of two writers, background work and a checkpoint.
#[test]
fn a_power_cut_leaves_whole_batches_and_all_synced_ones_in_every_interleaving() {
    explore(40, || {
        let disk = SimStorage::new(5);
        let db = builder(1).open_on(disk.as_storage()).unwrap();
        let (a, b) = (db.keyspace("one").unwrap(), db.keyspace("two").unwrap());
        let synced = Arc::new(AtomicU64::new(0));
        let (disk2, synced2) = (disk.clone(), synced.clone());
        let cutter = thread::spawn(move || {
            for luck in 0..3 {
                let least = synced2.load(Ordering::SeqCst);
                let copy = disk2.crashed_copy(luck);
                let db = builder(0).open_on(copy.as_storage()).unwrap();
                let (a, b) = (db.keyspace("one").unwrap(), db.keyspace("two").unwrap());
                let n = number(a.get("a").unwrap().as_deref());
                assert_eq!(n, number(b.get("b").unwrap().as_deref()), "half of a batch");
                assert!(n >= least, "{n} is there, {least} was promised");
            }
        });
        let checkpointing = db.clone();
        let checkpointer = thread::spawn(move || checkpointing.checkpoint().unwrap());
        for n in 1..=6 {
            let durability = if n % 2 == 0 { Durability::Sync } else { Durability::Buffered };
            write_pair(&db, &a, &b, n, durability);
            if durability == Durability::Sync {
                synced.store(n, Ordering::SeqCst);
            }
        }
        cutter.join().unwrap();
        checkpointer.join().unwrap();
    });
}
