//! Estimates how much of a leaf's base a new delta makes garbage: what overwrites and deletes waste until the leaf is compacted.
//!
//! Asks the base's filters, which are in the cache for the reads that come this way: a hash and a look into one cache line per message
//! of a delta. A load of new keys finds no garbage, and its leaves are left alone for longer. Called by `flush` for one delta, from one thread.

use std::sync::Arc;

use betree_pager::Pager;

use crate::Result;
use crate::hash::hash;
use crate::message::{Kind, MessageRef};
use crate::run::Run;
use crate::segment::{Meta, Segment};

/// See the module's text.
pub(crate) struct Probe<'a> {
    segments: &'a [Arc<Segment>],
    /// Of the first of `segments`.
    meta: Option<Meta>,
    /// Bytes found so far: of the base, and of the deletes.
    pub garbage: u64,
}

impl<'a> Probe<'a> {
    pub(crate) fn new(base: Option<&'a Run>) -> Probe<'a> {
        Probe { segments: base.map_or(&[], |run| &run.segments), meta: None, garbage: 0 }
    }

    /// REQUIRES: keys ascend from call to call.
    #[inline]
    pub(crate) fn see(&mut self, pager: &Pager, message: MessageRef<'_>) -> Result<()> {
        if message.kind == Kind::Delete {
            self.garbage += message.key.len() as u64;
        }
        while let Some(first) = self.segments.first()
            && *first.max < *message.key
        {
            self.segments = &self.segments[1..];
            self.meta = None;
        }
        let Some(segment) = self.segments.first().filter(|segment| *segment.min <= *message.key) else {
            return Ok(());
        };
        if self.meta.is_none() {
            self.meta = Some(segment.meta(pager)?);
        }
        if self.meta.as_ref().is_some_and(|meta| meta.may_contain(hash(message.key))) {
            self.garbage += u64::from(segment.data_len) / u64::from(segment.messages.max(1));
        }
        Ok(())
    }
}
