//! A writer to be killed: `acknowledger DIRECTORY`. Commits numbered batches and says each number on standard output when its
//! commit has returned.
//!
//! Batch i sets `last` to i and three keys that depend on i, in two keyspaces, so that what is there after a kill tells
//! which batches were applied and whether any was split.

use betree::{AddI64, Db, Durability, KeyspaceOptions, TreeOptions};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("acknowledger DIRECTORY")?;
    let mut tree = TreeOptions::default();
    (tree.fanout, tree.leaf_bytes, tree.segment_bytes) = (6, 64 << 10, 32 << 10);
    let db = Db::builder().memory(4 << 20).memtable_bytes(32 << 10).tree(tree).open(path)?;
    let records = db.keyspace("records")?;
    let sums = db.keyspace_with("sums", KeyspaceOptions::new().merge_operator(AddI64))?;
    let last = records.get("last")?.map_or(0, |v| u64::from_le_bytes(v[..].try_into().unwrap_or_default()));
    let mut out = std::io::stdout().lock();
    for i in last + 1.. {
        let mut batch = db.batch();
        batch.insert(&records, "last", i.to_le_bytes())?;
        batch.insert(&records, format!("r{:08}", i.wrapping_mul(2_654_435_761) % 50_000), [i as u8; 100])?;
        batch.insert(&records, format!("i{i:010}"), i.to_le_bytes())?;
        if i > 3000 {
            batch.remove(&records, format!("i{:010}", i - 3000))?;
        }
        batch.merge(&sums, "count", 1i64.to_le_bytes())?;
        let durability = if i.is_multiple_of(100) { Durability::Sync } else { Durability::Buffered };
        db.write_with(&mut batch, durability)?;
        writeln!(out, "{i}")?;
        out.flush()?;
    }
    Ok(())
}
