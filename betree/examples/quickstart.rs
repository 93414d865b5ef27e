//! The first ten minutes with betree: open, write, read, ranges, a batch, a snapshot, and opening again.
//!
//! `cargo run -p betree --example quickstart [DIRECTORY]`. Without a directory it uses one of its own and removes it at
//! the end. It ends with an error if anything it reads back is not what it wrote, so it doubles as a smoke test.

use std::error::Error;
use std::path::{Path, PathBuf};

use betree::{Db, Durability};

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _scratch) = directory()?;
    let db = Db::open(&dir)?;
    println!("opened {} ({})", dir.display(), db.stats().backend);

    // A keyspace is an ordered map of byte strings. Any number of them share one log, one cache, one checkpoint.
    let rivers = db.keyspace("rivers")?;
    for (name, km) in
        [("Danube", "2850"), ("Elbe", "1094"), ("Ems", "371"), ("Isar", "292"), ("Rhine", "1233")]
    {
        // Blind: nothing is read, nothing about an older value comes back.
        rivers.insert(name, km)?;
    }
    let danube = rivers.get("Danube")?;
    println!("the Danube has {} km", text(danube.as_deref().unwrap_or_default()));
    ensure(danube.as_deref() == Some(b"2850"), "a value that was written is read")?;
    ensure(rivers.get("Nile")?.is_none(), "a missing key is None, not an error")?;

    // Ranges come in byte order, from both ends, and see one fixed moment however long they take.
    println!("from D up to F:");
    for record in rivers.range("D".."F") {
        let (name, km) = record?;
        println!("  {} {}", text(&name), text(&km));
    }
    let backward: Vec<_> = rivers.prefix("E").rev().collect::<Result<_, _>>()?;
    ensure(backward.len() == 2 && backward[0].0 == "Ems", "a prefix walks backward too")?;

    // A batch is one step, across keyspaces: after a crash all of it is there or none.
    let by_length = db.keyspace("rivers-by-length")?;
    let mut batch = db.batch();
    batch.insert(&rivers, "Neckar", "362")?;
    batch.insert(&by_length, 362u32.to_be_bytes(), "Neckar")?;
    batch.remove(&rivers, "Isar")?;
    // This one survives power loss when the call returns; `Buffered`, the default, survives a killed process.
    db.write_with(&mut batch, Durability::Sync)?;

    // A snapshot keeps seeing what it saw, whatever is written later.
    let before = db.snapshot();
    rivers.remove_range("A", "Z")?;
    rivers.insert("Oder", "866")?;
    println!("now {} river, in the snapshot {}", rivers.iter().count(), before.iter(&rivers)?.count());
    ensure(rivers.iter().count() == 1, "the range delete removed the others")?;
    ensure(before.iter(&rivers)?.count() == 5, "the snapshot still has them")?;
    drop(before);

    // `close` checkpoints, so the next open replays nothing. Dropping the handles instead loses nothing either.
    drop((rivers, by_length));
    db.close()?;

    let db = Db::open(&dir)?;
    let rivers = db.keyspace("rivers")?;
    ensure(rivers.get("Oder")?.as_deref() == Some(b"866"), "what was written is there after reopening")?;
    let by_length = db.keyspace("rivers-by-length")?;
    ensure(by_length.get(362u32.to_be_bytes())?.as_deref() == Some(b"Neckar"), "and so is the batch")?;
    let report = db.check()?;
    println!("check: {} problems, {} messages in runs", report.problems.len(), report.messages);
    ensure(report.is_clean(), "the checker finds nothing")?;
    // So that a second run on the same directory starts as the first did.
    rivers.clear()?;
    db.close()?;
    Ok(())
}

/// The first argument, or a temporary directory that lives as long as the second value.
fn directory() -> std::io::Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(dir) = std::env::args_os().nth(1) {
        return Ok((Path::new(&dir).to_path_buf(), None));
    }
    let scratch = tempfile::tempdir()?;
    Ok((scratch.path().to_path_buf(), Some(scratch)))
}

fn ensure(holds: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(format!("expected: {what}").into()) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
