//! The walk over a trunk that may have holes: for every leaf's key range, in key order, the layers above one another.
//!
//! Below a node that cannot be read its whole key range has a [`Layer::Gap`]; under that lies what an older checkpoint's tree has
//! there, if there is one. Only the nodes of one path are in memory. Called by salvage in one thread.

use std::sync::Arc;

use betree_pager::Inspector;

use super::report::{Damage, KeyRange, Losses};
use crate::checkpoint::Catalog;
use crate::node_codec::NodePointer;
use crate::stored::{StoredNode, StoredRun, StoredTarget};
use crate::{Error, Result};

/// What lies over a key range, from the newest to the oldest.
#[derive(Debug, Clone)]
pub(super) enum Layer {
    Run(Arc<StoredRun>, Trust),
    /// Something was here that cannot be read.
    Gap,
}

/// Whether a tree's extents are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// They belong to the last checkpoint.
    Live,
    /// They were free since: other segments, of other keyspaces too, may lie there. Only what a parent's checksum confirms counts.
    Stale,
}

/// What takes the leaves' ranges.
pub(super) type Visit<'a> = dyn FnMut(&mut Losses, &[u8], Option<&[u8]>, &[Layer]) -> Result<()> + 'a;

/// A walk over one keyspace.
pub(super) struct Walk<'a> {
    pub inspector: &'a Inspector,
    pub keyspace: &'a str,
    pub losses: &'a mut Losses,
    /// Of the tree at hand.
    pub trust: Trust,
    pub visit: &'a mut Visit<'a>,
}

/// Part of a node's keys.
#[derive(Clone, Copy)]
struct Range<'a> {
    low: &'a [u8],
    high: Option<&'a [u8]>,
}

impl<'a> Range<'a> {
    /// The keys of both; `None`: there are none.
    fn and(self, other: Range<'a>) -> Option<Range<'a>> {
        let high = match (self.high, other.high) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let low = self.low.max(other.low);
        high.is_none_or(|high| low < high).then_some(Range { low, high })
    }
}

const ALL: Range<'_> = Range { low: b"", high: None };

/// Reads a node that must be of `level` and have the keys of `range`.
fn load(
    inspector: &Inspector,
    pointer: NodePointer,
    level: Option<u64>,
    range: Range<'_>,
) -> Result<StoredNode> {
    let page = inspector.page(pointer.offset, pointer.len, pointer.crc)?;
    let node = StoredNode::decode(&page, pointer.offset)?;
    let mut fault = None;
    node.faults(level, range.low, range.high, &mut |what| {
        fault.get_or_insert(what);
    });
    match fault {
        None => Ok(node),
        Some(detail) => Err(Error::Corrupt {
            file: betree_pager::FILE_NAME.into(),
            offset: pointer.offset,
            structure: "node",
            detail,
        }),
    }
}

/// How many nodes of the catalog's trees cannot be read.
pub(super) fn unreadable_nodes(inspector: &Inspector, catalog: &Catalog) -> u64 {
    fn below(inspector: &Inspector, pointer: NodePointer, level: Option<u64>, range: Range<'_>) -> u64 {
        let Ok(node) = load(inspector, pointer, level, range) else { return 1 };
        let mut count = 0;
        for (i, child) in node.children.iter().enumerate() {
            if let StoredTarget::Node(pointer) = child.target {
                let range = Range { low: &child.low, high: node.high_of(i, range.high) };
                count += below(inspector, pointer, Some(node.level - 1), range);
            }
        }
        count
    }
    catalog.entries.iter().map(|entry| below(inspector, entry.root, None, ALL)).sum()
}

impl Walk<'_> {
    /// Over all keys: the tree at the first of `roots`; the others answer where it has holes.
    pub(super) fn run(&mut self, roots: &[NodePointer]) -> Result<()> {
        match roots {
            [] => Ok(()),
            [root, older @ ..] => self.node(*root, None, ALL, ALL, &[], older),
        }
    }

    fn node(
        &mut self,
        pointer: NodePointer,
        level: Option<u64>,
        range: Range<'_>,
        wanted: Range<'_>,
        above: &[Layer],
        older: &[NodePointer],
    ) -> Result<()> {
        let Some(wanted) = range.and(wanted) else { return Ok(()) };
        let node = match load(self.inspector, pointer, level, range) {
            Ok(node) => node,
            Err(error) => return self.hole(pointer, wanted, above, older, &error),
        };
        for (i, child) in node.children.iter().enumerate() {
            let range = Range { low: &child.low, high: node.high_of(i, range.high) };
            let Some(part) = range.and(wanted) else { continue };
            let mut layers = above.to_vec();
            let pending = node.pending_runs(i).filter(|run| run.touches(part.low, part.high));
            layers.extend(pending.map(|run| Layer::Run(run.clone(), self.trust)));
            match &child.target {
                StoredTarget::Node(below) => {
                    self.node(*below, Some(node.level - 1), range, part, &layers, older)?;
                }
                StoredTarget::Leaf { deltas, base, .. } => {
                    let runs = deltas.iter().rev().chain(base);
                    layers.extend(runs.map(|run| Layer::Run(run.clone(), self.trust)));
                    (self.visit)(self.losses, part.low, part.high, &layers)?;
                }
            }
        }
        Ok(())
    }

    /// A node cannot be read: its keys, with what lies above and what an older tree has.
    fn hole(
        &mut self,
        pointer: NodePointer,
        range: Range<'_>,
        above: &[Layer],
        older: &[NodePointer],
        error: &Error,
    ) -> Result<()> {
        let instead = if older.is_empty() { "nothing answers" } else { "an older checkpoint answers" };
        self.losses.add(Damage {
            structure: "node",
            file: betree_pager::FILE_NAME.into(),
            offset: pointer.offset,
            len: pointer.len.into(),
            keyspace: Some(self.keyspace.into()),
            range: Some(KeyRange { low: range.low.into(), high: range.high.map(Into::into) }),
            messages: None,
            detail: format!("{error}; {instead} for what was below"),
        });
        let mut layers = above.to_vec();
        layers.push(Layer::Gap);
        match older {
            [root, older @ ..] => {
                let trust = std::mem::replace(&mut self.trust, Trust::Stale);
                let result = self.node(*root, None, ALL, range, &layers, older);
                self.trust = trust;
                result
            }
            [] => (self.visit)(self.losses, range.low, range.high, &layers),
        }
    }
}
