//! The checker: every named invariant that a database shows, every checksum, every message.
//!
//! Two ways in: [`check`] looks at an open database, its trees as they are now and what the last checkpoint wrote;
//! [`offline::check`] at the files of a closed one, which it does not change. Both read from the device, never through the page cache, and go
//! on behind what is wrong: each problem is a line with its invariant and its place. Views and the checkpoint's trees are held
//! meanwhile, so that no extent is used anew while it is read; no lock is held across I/O except the pager's for the superblock.

pub(crate) mod offline;
mod segment;
mod tree;

use std::collections::{BTreeMap, HashMap};

use betree_pager::Inspector;
use serde::Serialize;

use crate::checkpoint::Catalog;
use crate::node_codec::NodePointer;
use crate::remember;
use crate::shared::Shared;
use crate::state::State;
use crate::types::{KeyspaceId, Seqno};
use crate::view::View;
use crate::{Error, Result};

/// Most problems that a report names, and most notes.
const MAX_PROBLEMS: usize = 1000;

/// What [`crate::Db::check`] or [`crate::Builder::check_at`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// What is wrong, each with its invariant and its place; at most 1,000.
    pub problems: Vec<String>,
    /// What is worth knowing and not wrong, such as a log that ends in a record that was being written.
    pub notes: Vec<String>,
    /// Keyspaces checked.
    pub keyspaces: u64,
    /// Nodes checked.
    pub nodes: u64,
    /// Leaves checked.
    pub leaves: u64,
    /// Runs checked, shared ones where they are shared.
    pub runs: u64,
    /// Segments read.
    pub segments: u64,
    /// Data pages read and verified.
    pub pages: u64,
    /// Messages read.
    pub messages: u64,
    /// Valid frames of the log; zero when the database was open.
    pub log_frames: u64,
    /// Whole records of the log; zero when the database was open.
    pub log_records: u64,
    /// Length of the data file.
    pub file_bytes: u64,
    /// Bytes of the data file that the trees and the catalog take.
    pub live_bytes: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// How far a check or a salvage has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being read: `data file` or `log`.
    pub what: &'static str,
    /// Bytes read of it.
    pub done: u64,
    /// About how many there are.
    pub total: u64,
}

/// A check under way.
struct Checker<'a> {
    inspector: &'a Inspector,
    report: CheckReport,
    progress: &'a mut dyn FnMut(Progress),
    /// What is owned, by offset: length, and the checksum of the page that makes it unique.
    extents: BTreeMap<u64, (u32, u32)>,
    /// Bytes checked, and about how many there are.
    done: u64,
    total: u64,
    /// The first refusal of the device.
    refused: Option<Error>,
}

impl<'a> Checker<'a> {
    fn new(inspector: &'a Inspector, progress: &'a mut dyn FnMut(Progress), total: u64) -> Checker<'a> {
        let (report, extents) = (CheckReport::default(), BTreeMap::new());
        Checker { inspector, report, progress, extents, done: 0, total, refused: None }
    }

    fn problem(&mut self, text: String) {
        if self.report.problems.len() < MAX_PROBLEMS {
            self.report.problems.push(text);
        }
    }

    fn note(&mut self, text: String) {
        if self.report.notes.len() < MAX_PROBLEMS {
            self.report.notes.push(text);
        }
    }

    /// Enters an owner of part of the file; false if it was entered before. `crc` tells two owners of one place apart.
    fn own(&mut self, offset: u64, len: u32, crc: u32) -> bool {
        match self.extents.insert(offset, (len, crc)) {
            None => {
                self.done += u64::from(len);
                (self.progress)(Progress {
                    what: "data file",
                    done: self.done,
                    total: self.total.max(self.done),
                });
                true
            }
            Some(before) => {
                if before != (len, crc) {
                    self.problem(format!("extent.owned_once: two different owners at offset {offset}"));
                }
                false
            }
        }
    }

    /// A page of the trunk or the catalog, read from the device.
    fn read(&mut self, pointer: NodePointer, place: &str) -> Option<betree_storage::AlignedBuf> {
        match self.inspector.page(pointer.offset, pointer.len, pointer.crc) {
            Ok(page) => Some(page),
            Err(error) => {
                self.unreadable(place, error.into());
                None
            }
        }
    }

    /// Rows that were remembered, where keyspaces have these messages in their trees.
    fn rows(&mut self, blocks: &[NodePointer], flushed: &HashMap<KeyspaceId, Seqno>) {
        for &block in blocks {
            if self.own(block.offset, block.len, block.crc)
                && let Some(page) = self.read(block, "rows")
                && let Some(fault) = remember::fault(&page, flushed)
            {
                self.problem(format!("{fault}: the rows at offset {}", block.offset));
            }
        }
    }

    /// A page that cannot be read or is not what its parent says.
    fn unreadable(&mut self, place: &str, error: Error) {
        let damaged = match &error {
            Error::Corrupt { .. } => true,
            // A file that was cut is damage; one that is long enough was not read for another reason.
            Error::Storage(betree_storage::Error::ShortRead { offset, len, .. }) => {
                offset + *len as u64 > self.inspector.len().unwrap_or(0)
            }
            _ => false,
        };
        if !damaged {
            self.refused.get_or_insert(error.clone());
        }
        self.problem(format!("page.checksum_in_parent: {place}: {error}"));
    }

    /// The account of all extents, while they are held.
    fn finish(mut self) -> CheckReport {
        let mut end = 0;
        // Not earlier: while the check ran a checkpoint may have given nodes of its trees a place behind the file's end of then.
        self.report.file_bytes = self.inspector.len().unwrap_or(0);
        for (offset, (len, _)) in std::mem::take(&mut self.extents) {
            if offset < end {
                self.problem(format!(
                    "extent.owned_once: the extent at offset {offset} overlaps the one before"
                ));
            }
            end = end.max(offset + u64::from(len));
            self.report.live_bytes += u64::from(len);
        }
        if end > self.report.file_bytes {
            let file = self.report.file_bytes;
            self.problem(format!(
                "extent.owned_once: extents reach to offset {end}, the file has {file} bytes"
            ));
        }
        (self.progress)(Progress { what: "data file", done: self.done, total: self.done });
        self.report
    }
}

/// Checks an open database.
pub(crate) fn check(shared: &Shared, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport> {
    // The durable checkpoint first: what replaces it while this runs does not free what is held here.
    let (roots, catalog, rows, flushed) = {
        let durable = shared.checkpoint.lock();
        (durable.roots.clone(), durable.catalog.clone(), durable.rows.clone(), durable.flushed.clone())
    };
    let states = shared.states();
    let views: Vec<_> = states.iter().map(|s| s.view()).collect();
    let inspector = shared.pager.inspector();
    let mut checker = Checker::new(&inspector, progress, shared.pager.stats().allocated_bytes);
    roots.iter().for_each(|root| checker.durable_nodes(root));
    for (state, view) in states.iter().zip(&views) {
        checker.report.keyspaces += 1;
        check_heads(&mut checker, state, view);
        checker.tree_in_memory(&state.name, &view.root);
    }
    roots.iter().for_each(|root| checker.durable_segments(root));
    let blocks: Vec<_> = rows.iter().map(|place| NodePointer::of(place)).collect();
    checker.rows(&blocks, &flushed);
    if let Some(extent) = &catalog {
        // Its pointer is in the superblock, which may be a newer one by now: the page speaks for itself.
        checker.own(extent.offset(), extent.len(), 0);
        match inspector.bytes(extent.offset(), extent.len()) {
            Ok(page) if inspector.fits(&page, extent.offset()) && Catalog::decode(&page).is_some() => {}
            Ok(_) => checker.problem(format!("page.sealed: the catalog at offset {}", extent.offset())),
            Err(error) => checker.unreadable("catalog", error.into()),
        }
    }
    match shared.pager.check_superblock() {
        Ok(wrong) => wrong
            .into_iter()
            .for_each(|what| checker.problem(format!("superblock.newest_valid_wins: {what}"))),
        Err(error) => checker.unreadable("superblock", error.into()),
    }
    let owned: Vec<_> = checker.extents.iter().map(|(&offset, &(len, _))| (offset, len)).collect();
    shared.pager.audit(&owned).into_iter().for_each(|what| checker.problem(what));
    let refused = checker.refused.take();
    let report = checker.finish();
    drop((views, roots, catalog, rows));
    refused.map_or(Ok(report), Err)
}

/// The memtables of a view against its tree.
fn check_heads(checker: &mut Checker<'_>, state: &State, view: &View) {
    let mut above = None;
    for head in &view.heads {
        if let Some((first, last)) = head.table.seqnos() {
            if first <= view.flushed || above.is_some_and(|a| last >= a) {
                checker.problem(format!(
                    "view.nothing_between: keyspace {:?}: memtable {first}..={last} with {} in the tree",
                    state.name, view.flushed
                ));
            }
            above = Some(first);
        }
    }
}
