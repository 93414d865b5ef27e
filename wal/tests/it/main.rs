//! Integration tests of the log: one binary, its files by subject.

mod basic;
mod corruption;
mod crash;
mod space;
mod threads;

use std::sync::Arc;

use betree_storage::Storage;
use betree_testkit::SimStorage;
use betree_wal::{Appender, Lsn, Options, Replayed, Result, Wal};

/// A log of the smallest files, so that few records rotate them.
fn small() -> Options {
    Options { file_bytes: 4096, salt: 0xfeed, ..Options::default() }
}

/// A payload that says which it is.
fn payload(n: u64, len: usize) -> Vec<u8> {
    let mut out: Vec<u8> = (0..len).map(|at| (at as u64 * 7 + n * 13 + 1) as u8).collect();
    let tag = n.to_le_bytes();
    let tagged = len.min(8);
    out[..tagged].copy_from_slice(&tag[..tagged]);
    out
}

struct Opened {
    wal: Wal,
    appender: Appender,
    replayed: Replayed,
    records: Vec<(Lsn, Vec<u8>)>,
}

fn open(storage: Arc<dyn Storage>, options: &Options, from: Lsn) -> Result<Opened> {
    let mut records = Vec::new();
    let (wal, appender, replayed) = Wal::open(storage, options.clone(), from, &mut |lsn, payload| {
        records.push((lsn, payload.to_vec()));
        Ok(())
    })?;
    assert_eq!(replayed.records, records.len() as u64);
    assert_eq!(replayed.end, wal.end());
    assert_eq!(wal.durable(), wal.end(), "after an open all of the log is durable");
    Ok(Opened { wal, appender, replayed, records })
}

fn open_sim(disk: &Arc<SimStorage>, from: Lsn) -> Opened {
    open(disk.as_storage(), &small(), from).unwrap()
}

/// Appends payloads of these lengths, numbered from `first`; returns them with their Lsns as replay would.
fn append_all(opened: &mut Opened, first: u64, lens: &[usize]) -> Vec<(Lsn, Vec<u8>)> {
    let mut out = Vec::new();
    for (n, len) in (first..).zip(lens) {
        let start = opened.appender.end();
        let payload = payload(n, *len);
        opened.appender.append(&[&payload[..len / 3], &payload[len / 3..]]).unwrap();
        out.push((start, payload));
    }
    out
}
