//! The check of a closed database: its files as they are, none of them changed.
//!
//! Superblocks → catalog → trees → log. What cannot be read is a problem, and the check goes on with what does not hang from
//! it: without a superblock the log is read all the same. Takes the directory's lock while it reads.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use betree_pager::{FILE_NAME, Inspector};
use betree_storage::{DiskStorage, Storage};
use betree_wal::{Finding, Lsn, examine};

use super::{CheckReport, Checker, Progress};
use crate::checkpoint::{Catalog, decode_payload};
use crate::message::{Messages, take_batch_header};
use crate::types::Seqno;
use crate::{Error, Result};

/// The directory, opened to read only.
pub(crate) fn storage_of(path: &Path) -> Result<Arc<dyn Storage>> {
    let storage =
        DiskStorage::open_read_only(path).map_err(|_| Error::Missing { path: path.display().to_string() })?;
    Ok(storage)
}

/// The data file of a directory that has one.
pub(crate) fn inspector_of(storage: &dyn Storage) -> Result<Inspector> {
    Inspector::open(storage).map_err(|error| match error {
        betree_pager::Error::Storage(betree_storage::Error::NotFound { .. }) => {
            Error::Missing { path: storage.path() }
        }
        other => other.into(),
    })
}

/// The salt of the log, which follows from the uuid of the data file.
pub(crate) fn log_salt(uuid: u128) -> u64 {
    (uuid >> 64) as u64 ^ uuid as u64
}

/// See the module's text.
pub(crate) fn check(storage: &dyn Storage, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport> {
    let _lock = storage.lock()?;
    let inspector = inspector_of(storage)?;
    let total = inspector.len().unwrap_or(0);
    let mut checker = Checker::new(&inspector, progress, total);
    let mut log = None;
    if let Some(catalog) = read_catalog(&mut checker) {
        log = Some((catalog.log_start, catalog.log_end));
        let mut names = HashSet::new();
        for entry in &catalog.entries {
            checker.report.keyspaces += 1;
            if !names.insert(&entry.name) || entry.id.0 >= catalog.next_id || entry.flushed >= catalog.next {
                checker.problem(format!(
                    "view.nothing_between: keyspace {:?}: its entry in the catalog contradicts the others",
                    entry.name
                ));
            }
            checker.tree_on_disk(&entry.name, entry.root);
        }
        let flushed = catalog.entries.iter().map(|entry| (entry.id, entry.flushed)).collect();
        checker.rows(&catalog.rows, &flushed);
    }
    check_log(&mut checker, storage, inspector.uuid().map(log_salt), log)?;
    Ok(checker.finish())
}

/// Checks the superblocks and reads the catalog. `None`: there is none, or none that can be read.
fn read_catalog(checker: &mut Checker<'_>) -> Option<Catalog> {
    for slot in checker.inspector.slots() {
        if let Some(Err(what)) = &slot.content {
            checker.problem(format!("{FILE_NAME} at offset {}: superblock: {what}", slot.offset));
        }
    }
    let newest = match checker.inspector.newest() {
        Ok(newest) => newest,
        Err(error) => {
            checker.problem(format!("superblock.newest_valid_wins: {error}"));
            return None;
        }
    };
    let copies = checker.inspector.slots();
    let copies = copies.iter().filter_map(|slot| slot.content.as_ref()?.as_ref().ok());
    if copies.filter(|copy| copy.epoch == newest.epoch).count() < 2 {
        checker.note(format!("superblock: only one copy of epoch {}; opening writes both", newest.epoch.0));
    }
    if newest.payload.is_empty() {
        checker.note("no checkpoint yet".to_owned());
        return Some(Catalog { next: Seqno(1), next_id: 1, ..Catalog::default() });
    }
    let Some((pointer, log_end)) = decode_payload(&newest.payload) else {
        checker.problem(format!("superblock of epoch {}: its payload does not decode", newest.epoch.0));
        return None;
    };
    checker.own(pointer.offset, pointer.len, pointer.crc);
    let page = checker.read(pointer, "catalog")?;
    let catalog = Catalog::decode(&page);
    if catalog.is_none() {
        checker.problem(format!(
            "page.sealed: the catalog at offset {} of {FILE_NAME} does not decode",
            pointer.offset
        ));
    }
    catalog.map(|catalog| Catalog { log_end, ..catalog })
}

/// Reads the log from where the catalog says; it must reach to the end that was durable then. All of it when the catalog is lost.
fn check_log(
    checker: &mut Checker<'_>,
    storage: &dyn Storage,
    salt: Option<u64>,
    catalog: Option<(Lsn, Lsn)>,
) -> Result<()> {
    let mut findings = Vec::new();
    let mut next = 0;
    let (from, known) = catalog.unwrap_or_default();
    let seen = examine(storage, salt, from, known, &mut |finding| {
        match finding {
        Finding::Record { lsn, payload } => {
            let mut body = payload;
            let header = take_batch_header(&mut body);
            let mut messages = Messages::new(body);
            let decoded = messages.by_ref().count() as u64;
            match header {
                Some((first, count))
                    if count > 0 && messages.finished() && decoded == u64::from(count) && first.0 >= next =>
                {
                    next = first.0.saturating_add(decoded);
                }
                _ => findings.push((
                    true,
                    format!("log.whole_records: log at lsn {}: the batch does not decode", lsn.0),
                )),
            }
        }
        Finding::Damage { file, offset, len, lsn, what } => {
            // Without a catalog it is not known where the log has to begin.
            let lost_start = catalog.is_none() && lsn == Lsn(0);
            findings.push((
                !lost_start,
                format!(
                    "log.whole_records: {file} at offset {offset} (lsn {}), {len} bytes: {what}",
                    lsn.0
                ),
            ));
        }
        Finding::Torn { file, offset, lsn, frames } => findings.push((
            false,
            format!(
                "{file} at offset {offset} (lsn {}): the log ends in what was being written ({frames} valid frames behind); opening cuts it off",
                lsn.0
            ),
        )),
    }
    })?;
    checker.report.log_frames = seen.frames;
    checker.report.log_records = seen.records;
    for (problem, text) in findings {
        if problem { checker.problem(text) } else { checker.note(text) }
    }
    Ok(())
}
