//! Reads that do not wait: they answer what waiting ones answer, whoever polls them and whatever becomes of them.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use betree::{AddI64, Builder, Bytes, Db, Error, GetFuture, Keyspace, KeyspaceOptions, TreeOptions};

type Done = Result<(), Box<dyn std::error::Error>>;

const RECORDS: u32 = 20_000;

/// More data than the caches hold, in a tree of several levels.
fn small() -> Builder {
    let mut tree = TreeOptions::default();
    tree.fanout = 4;
    tree.leaf_bytes = 64 << 10;
    tree.segment_bytes = 16 << 10;
    Db::builder().memory(1 << 20).memtable_bytes(64 << 10).tree(tree)
}

fn key(i: u32) -> [u8; 8] {
    u64::from(i.wrapping_mul(0x9e37_79b1)).to_be_bytes()
}

fn value(i: u32) -> Vec<u8> {
    format!("{i:0>200}").into_bytes()
}

/// Every third record was deleted, every fifth has operands.
fn fill(db: &Db) -> Result<Keyspace, Error> {
    let keyspace = db.keyspace_with("k", KeyspaceOptions::default().merge_operator(AddI64))?;
    for i in 0..RECORDS {
        match i % 5 {
            0 => keyspace.insert(key(i), i64::from(i).to_le_bytes())?,
            _ => keyspace.insert(key(i), value(i))?,
        }
    }
    for i in 0..RECORDS {
        if i % 5 == 0 {
            keyspace.merge(key(i), 7i64.to_le_bytes())?;
        } else if i % 3 == 0 {
            keyspace.remove(key(i))?;
        }
    }
    Ok(keyspace)
}

fn expected(i: u32) -> Option<Vec<u8>> {
    match i {
        RECORDS.. => None,
        _ if i.is_multiple_of(5) => Some((i64::from(i) + 7).to_le_bytes().to_vec()),
        _ if i.is_multiple_of(3) => None,
        _ => Some(value(i)),
    }
}

/// Unparks the thread that waits, and counts.
struct Unpark(Thread, AtomicUsize);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current(), AtomicUsize::new(0))));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

#[test]
fn a_read_that_does_not_wait_answers_what_one_that_waits_does() -> Done {
    let dir = tempfile::tempdir()?;
    let db = small().open(dir.path())?;
    let keyspace = fill(&db)?;
    let mut waited = 0;
    for i in (0..RECORDS + 2000).step_by(7) {
        let at_once = keyspace.try_get(key(i))?;
        waited += usize::from(at_once.is_pending());
        if let Poll::Ready(found) = at_once {
            assert_eq!(found.as_deref(), expected(i).as_deref(), "record {i}, in memory");
        }
        let found = block_on(keyspace.get_async(key(i)))?;
        assert_eq!(found.as_deref(), expected(i).as_deref(), "record {i}");
        assert_eq!(keyspace.get(key(i))?, found, "record {i}");
    }
    assert!(waited > 500, "{waited} reads needed the device");
    let keys: Vec<_> = (0..RECORDS + 500).step_by(13).collect();
    let found = block_on(keyspace.multi_get_async(&keys.iter().map(|i| key(*i)).collect::<Vec<_>>()))?;
    let right: Vec<_> = keys.iter().map(|i| expected(*i).map(Bytes::from)).collect();
    assert_eq!(found, right);
    assert_eq!(block_on(keyspace.multi_get_async::<&[u8]>(&[]))?, Vec::<Option<Bytes>>::new());
    Ok(())
}

#[test]
fn what_was_prefetched_is_in_memory() -> Done {
    let dir = tempfile::tempdir()?;
    {
        let db = small().open(dir.path())?;
        fill(&db)?;
        // No background work displaces anything later.
        db.compact()?;
    }
    let db = small().memory(8 << 20).open(dir.path())?;
    let keyspace = db.keyspace_with("k", KeyspaceOptions::default().merge_operator(AddI64))?;
    let keys: Vec<_> = (0..RECORDS).step_by(1000).map(key).collect();
    let cold = keys.iter().filter(|key| keyspace.try_get(key).is_ok_and(|found| found.is_pending())).count();
    assert!(cold > keys.len() / 2, "{cold} of {} are cold", keys.len());
    block_on(keyspace.prefetch(&keys))?;
    for (key, i) in keys.iter().zip((0..RECORDS).step_by(1000)) {
        let Poll::Ready(found) = keyspace.try_get(key)? else { panic!("record {i} needs the device") };
        assert_eq!(found.as_deref(), expected(i).as_deref());
    }
    Ok(())
}

#[test]
fn many_reads_of_one_thread_are_in_flight_together_and_each_is_told_once() -> Done {
    let dir = tempfile::tempdir()?;
    let db = small().open(dir.path())?;
    let keyspace = fill(&db)?;
    let mut reads: Vec<_> =
        (0..RECORDS).step_by(40).map(|i| (i, Box::pin(keyspace.get_async(key(i))))).collect();
    // Some are given up.
    reads.retain(|(i, _)| i % 3 != 1);
    let unpark = Arc::new(Unpark(thread::current(), AtomicUsize::new(0)));
    let waker = Waker::from(unpark.clone());
    let (mut waited, mut answered) = (0, 0);
    while !reads.is_empty() {
        reads.retain_mut(|(i, read)| {
            let ready = read.is_ready();
            match read.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => {
                    assert!(!ready, "record {i} was said to be ready");
                    waited += 1;
                    true
                }
                Poll::Ready(found) => {
                    assert_eq!(found.expect("a value").as_deref(), expected(*i).as_deref(), "record {i}");
                    answered += 1;
                    false
                }
            }
        });
        if !reads.is_empty() {
            thread::park_timeout(Duration::from_millis(50));
        }
    }
    assert_eq!(answered, (0..RECORDS).step_by(40).filter(|i| i % 3 != 1).count());
    assert!(waited > 0 && unpark.1.load(Ordering::SeqCst) <= answered, "each wakes its task once");
    Ok(())
}

#[test]
fn many_values_read_at_once_are_of_one_moment() -> Done {
    let dir = tempfile::tempdir()?;
    let db = small().open(dir.path())?;
    let keyspace = fill(&db)?;
    let keys: Vec<_> = (0..64u32).map(|i| key(i * 300 + 1)).collect();
    let writer = {
        let (db, keyspace, keys) = (db.clone(), keyspace.clone(), keys.clone());
        thread::spawn(move || -> Result<(), Error> {
            for round in 0..300u32 {
                let mut batch = db.batch();
                for key in &keys {
                    batch.insert(&keyspace, key, format!("round {round}"))?;
                }
                db.write(batch)?;
                for i in 0..100 {
                    keyspace.insert(key(RECORDS + round * 100 + i), value(i))?;
                }
            }
            Ok(())
        })
    };
    while !writer.is_finished() {
        let found = block_on(keyspace.multi_get_async(&keys))?;
        let round = |value: &Option<Bytes>| value.clone().filter(|value| value.starts_with(b"round"));
        assert!(found.iter().all(|value| round(value) == round(&found[0])), "{found:?}");
    }
    writer.join().expect("the writer's thread")?;
    Ok(())
}

#[test]
fn reads_are_answered_without_threads_and_refused_after_closing() -> Done {
    let dir = tempfile::tempdir()?;
    fill(&small().open(dir.path())?)?;
    let operator = || KeyspaceOptions::default().merge_operator(AddI64);
    let db = small().background_threads(0).open(dir.path())?;
    let keyspace = db.keyspace_with("k", operator())?;
    for i in (0..RECORDS).step_by(97) {
        let read = keyspace.get_async(key(i));
        assert!(read.is_ready());
        assert_eq!(block_on(read)?.as_deref(), expected(i).as_deref());
    }
    db.close()?;
    assert!(matches!(block_on(keyspace.get_async(key(1))), Err(Error::Closed)));
    assert!(matches!(keyspace.try_get(key(1)), Err(Error::Closed)));

    // What is queued when the database is closed is told so or answered, and nobody waits for ever.
    drop(keyspace);
    let db = small().open(dir.path())?;
    let keyspace = db.keyspace_with("k", operator())?;
    let reads: Vec<_> = (0..RECORDS).step_by(5).map(|i| (i, keyspace.get_async(key(i)))).collect();
    db.close()?;
    for (i, read) in reads {
        match block_on(read) {
            Ok(found) => assert_eq!(found.as_deref(), expected(i).as_deref()),
            Err(error) => assert!(matches!(error, Error::Closed), "{error}"),
        }
    }
    Ok(())
}

#[test]
fn futures_outlive_the_handles_that_made_them_and_move_to_other_threads() -> Done {
    let dir = tempfile::tempdir()?;
    fill(&small().open(dir.path())?)?;
    let reads: Vec<GetFuture> = {
        let db = small().open(dir.path())?;
        let keyspace = db.keyspace_with("k", KeyspaceOptions::default().merge_operator(AddI64))?;
        (0..200).map(|i| keyspace.get_async(key(i))).collect()
    };
    thread::spawn(move || {
        for (i, read) in reads.into_iter().enumerate() {
            match block_on(read) {
                Ok(found) => assert_eq!(found.as_deref(), expected(i as u32).as_deref()),
                Err(error) => assert!(matches!(error, Error::Closed), "{error}"),
            }
        }
    })
    .join()
    .expect("the other thread");
    // The directory is free again.
    small().open(dir.path())?.close()?;
    Ok(())
}

#[test]
fn damage_is_told_to_whom_it_concerns_and_reading_goes_on() -> Done {
    let dir = tempfile::tempdir()?;
    {
        let db = small().open(dir.path())?;
        fill(&db)?;
        db.compact()?;
    }
    let db = small().open(dir.path())?;
    let keyspace = db.keyspace_with("k", KeyspaceOptions::default().merge_operator(AddI64))?;
    // The trunk is in memory before the file is damaged.
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("data.betree"))?;
    let len = file.metadata()?.len();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xff; (len / 4) as usize], len / 2)?;
    file.sync_all()?;
    let reads: Vec<_> = (0..RECORDS).step_by(20).map(|i| (i, keyspace.get_async(key(i)))).collect();
    let (mut right, mut damaged) = (0, 0);
    for (i, read) in reads {
        match block_on(read) {
            Ok(found) => {
                assert_eq!(found.as_deref(), expected(i).as_deref(), "record {i}");
                right += 1;
            }
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
                damaged += 1;
            }
        }
    }
    assert!(right > 100 && damaged > 100, "{right} right, {damaged} damaged");
    Ok(())
}
