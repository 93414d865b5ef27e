//! Reading everything that a database has, for comparison with the oracle: records, or only their digest.

use betree::{Db, Iter, Keyspace, Result, Snapshot};
use betree_testkit::{Content, Digest, Records};

use crate::SPACES;

fn records(iter: Iter) -> Result<Records> {
    let mut records = Records::new();
    for record in iter {
        let (key, value) = record?;
        records.insert(key.to_vec(), value.to_vec());
    }
    Ok(records)
}

/// The records of all keyspaces of [`SPACES`].
///
/// # Errors
/// Those of the engine.
pub fn read_all(db: &Db) -> Result<Content> {
    let names = db.keyspaces();
    let mut content = Content::default();
    for (name, _) in SPACES {
        let there = names.iter().any(|n| n == name);
        content.keyspaces.push(if there { Some(records(db.keyspace(name)?.iter())?) } else { None });
    }
    Ok(content)
}

/// The digest of the records of all keyspaces of [`SPACES`]: that of [`read_all`], without keeping a record.
///
/// # Errors
/// Those of the engine.
pub fn digest_all(db: &Db) -> Result<u64> {
    let names = db.keyspaces();
    let mut digest = Digest::default();
    for (i, (name, _)) in SPACES.iter().enumerate().filter(|(_, (name, _))| names.iter().any(|n| n == name)) {
        digest.keyspace(i);
        for record in db.keyspace(name)?.iter() {
            let (key, value) = record?;
            digest.record(i, &key, &value);
        }
    }
    Ok(digest.value())
}

/// The records that a snapshot has, through the handles of its time.
///
/// # Errors
/// Those of the engine.
pub fn read_snapshot(snapshot: &Snapshot, spaces: &[Option<Keyspace>]) -> Result<Content> {
    let mut content = Content::default();
    for space in spaces {
        content.keyspaces.push(match space {
            Some(space) => Some(records(snapshot.iter(space)?)?),
            None => None,
        });
    }
    Ok(content)
}
