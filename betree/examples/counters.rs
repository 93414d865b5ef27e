//! Counters without reading: several threads add to page views with Merge messages, then the sums are checked after
//! reopening.
//!
//! `cargo run -p betree --example counters [DIRECTORY]`. Without a directory it uses one of its own and removes it at the
//! end; with one, every run adds to what is there. It ends with an error if a single increment is missing.
//!
//! An increment written as get and insert costs a read each, and loses updates unless callers lock. A Merge message only
//! says "add 3": it goes the way of every other write, and messages of one key become one on their way down the tree.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use betree::{AddI64, Bytes, Db, Keyspace, KeyspaceOptions};

const THREADS: u64 = 4;
const PAGES: u64 = 1_000;
const INCREMENTS: u64 = 50_000;

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _scratch) = directory()?;
    let db = Db::open(&dir)?;
    let views = counters(&db)?;
    let before = total(&views)?;

    let start = Instant::now();
    // Handles are cheap to clone and may be used from any thread.
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let views = views.clone();
            thread::spawn(move || -> Result<i64, betree::Error> {
                let mut added = 0;
                let mut random = 0x9e37_79b9_7f4a_7c15 ^ thread;
                for _ in 0..INCREMENTS {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let (page, amount) = (random % PAGES, 1 + (random >> 32) as i64 % 3);
                    views.merge(format!("page/{page:04}"), amount.to_le_bytes())?;
                    added += amount;
                }
                Ok(added)
            })
        })
        .collect();
    let mut expected = before;
    for thread in threads {
        expected += thread.join().map_err(|_| "a writer panicked")??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let count = THREADS * INCREMENTS;
    println!(
        "{count} increments of {PAGES} counters by {THREADS} threads: {:.0} per second",
        count as f64 / seconds
    );

    drop(views);
    db.close()?;

    // The operator's name is stored with the keyspace. Built-in ones are known at every open.
    let db = Db::open(&dir)?;
    let views = counters(&db)?;
    let mut busiest: Vec<(i64, Bytes)> = Vec::new();
    for record in views.prefix("page/") {
        let (page, sum) = record?;
        busiest.push((number(&sum)?, page));
    }
    busiest.sort_by(|a, b| b.cmp(a));
    for (sum, page) in busiest.iter().take(3) {
        println!("  {} {sum}", String::from_utf8_lossy(page));
    }
    let sum = total(&views)?;
    println!("sum after reopening: {sum}, expected {expected}");
    if sum != expected {
        return Err(format!("{} views are missing", expected - sum).into());
    }
    db.close()?;
    Ok(())
}

fn counters(db: &Db) -> betree::Result<Keyspace> {
    db.keyspace_with("views", KeyspaceOptions::new().merge_operator(AddI64))
}

fn total(views: &Keyspace) -> Result<i64, Box<dyn Error>> {
    let mut sum = 0;
    for record in views.iter() {
        sum += number(&record?.1)?;
    }
    Ok(sum)
}

/// The operator's values are 8 bytes, little-endian.
fn number(value: &[u8]) -> Result<i64, Box<dyn Error>> {
    Ok(i64::from_le_bytes(value.try_into()?))
}

/// The first argument, or a temporary directory that lives as long as the second value.
fn directory() -> std::io::Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(dir) = std::env::args_os().nth(1) {
        return Ok((Path::new(&dir).to_path_buf(), None));
    }
    let scratch = tempfile::tempdir()?;
    Ok((scratch.path().to_path_buf(), Some(scratch)))
}
