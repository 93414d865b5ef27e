//! Runs: immutable sorted sequences of messages, at most one per key.
//!
//! A run is a list of segments in key order plus the spans of its range deletes. Within a run the spans count as **older**
//! than the messages in its pages: what they covered was dropped when the run was written. A run in memory is a value that shares its segments;
//! a slice of a run (what a child takes over by reference) is another value over some of the same segments.
//!
//! Invariants: `run.segments_ascend` (disjoint, in key order), `run.nothing_under_own_span` holds by construction,
//! `run.seqnos` (every message had a Seqno in `first..=last`).

use std::ops::Deref;
use std::sync::Arc;

use crate::headed::{Heads, head_of};
use crate::segment::Segment;
use crate::spans::Spans;
use crate::types::Seqno;

/// Segments in key order, with the heads of their largest keys side by side: a search of a run with a hundred segments looks at two lines of these instead of
/// at seven segments.
#[derive(Debug, Clone)]
pub(crate) struct Segments {
    list: Vec<Arc<Segment>>,
    tops: Heads,
}

impl Segments {
    /// The index of the first segment whose largest key is not below `key`.
    #[inline]
    pub(crate) fn reaching(&self, key: &[u8]) -> usize {
        self.tops.partition_point(head_of(key), |at| *self.list[at].max < *key)
    }

    /// Asks the processor for what [`Segments::reaching`] looks at first.
    #[inline]
    pub(crate) fn prefetch_search(&self) {
        self.tops.prefetch();
    }
}

impl FromIterator<Arc<Segment>> for Segments {
    fn from_iter<I: IntoIterator<Item = Arc<Segment>>>(segments: I) -> Self {
        let list: Vec<_> = segments.into_iter().collect();
        let tops = list.iter().map(|segment| segment.max.head()).collect();
        Segments { list, tops }
    }
}

impl Deref for Segments {
    type Target = [Arc<Segment>];

    #[inline]
    fn deref(&self) -> &[Arc<Segment>] {
        &self.list
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub segments: Segments,
    pub spans: Spans,
    pub first: Seqno,
    pub last: Seqno,
}

impl Run {
    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.spans.is_empty()
    }

    /// The segments with keys in `low..high`.
    pub(crate) fn segments_in(&self, low: &[u8], high: Option<&[u8]>) -> &[Arc<Segment>] {
        let from = self.segments.reaching(low);
        let to = high.map_or(self.segments.len(), |h| self.segments.partition_point(|s| *s.min < *h));
        &self.segments[from..to.max(from)]
    }

    /// The part of the run with keys in `low..high`, by reference. Segments at the ends may reach beyond; whoever reads a child clips to its range.
    pub(crate) fn slice(&self, low: &[u8], high: Option<&[u8]>) -> Run {
        Run {
            segments: self.segments_in(low, high).iter().cloned().collect(),
            spans: self.spans.clip(low, high),
            first: self.first,
            last: self.last,
        }
    }

    /// Whether any message or span may concern `low..high`.
    pub(crate) fn touches(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        !self.segments_in(low, high).is_empty() || !self.spans.clip(low, high).is_empty()
    }

    /// Estimate of the bytes of data pages with keys in `low..high`.
    pub(crate) fn bytes_in(&self, low: &[u8], high: Option<&[u8]>) -> u64 {
        self.segments_in(low, high).iter().map(|s| s.bytes_in(low, high)).sum()
    }

    /// Bytes of data pages.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| u64::from(s.data_len)).sum()
    }
}
