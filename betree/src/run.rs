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

    /// The number of segments whose smallest key is below `key`.
    #[inline]
    pub(crate) fn beginning_below(&self, key: &[u8]) -> usize {
        let at = self.reaching(key);
        at + usize::from(self.list.get(at).is_some_and(|segment| segment.begins_below(key)))
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
        let to = high.map_or(self.segments.len(), |h| self.segments.beginning_below(h));
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

#[cfg(test)]
mod tests {
    use betree_testkit::SimStorage;

    use crate::Db;

    #[test]
    fn searches_by_heads_find_what_looks_at_every_segment_find() {
        let disk = SimStorage::new(3);
        let tree = crate::TreeOptions { page_bytes: 4096, segment_bytes: 16 << 10, ..Default::default() };
        let db = Db::builder()
            .memory(8 << 20)
            .tree(tree)
            .background_threads(0)
            .open_on(disk.as_storage())
            .unwrap();
        let keyspace = db.keyspace("k").unwrap();
        // Heads that tie, within and across segments.
        let key = |i: u32| format!("head{:04}{i:06}", i / 300);
        for i in (0..3000).step_by(2) {
            keyspace.insert(key(i), vec![7; 90]).unwrap();
        }
        db.compact().unwrap();
        let view = keyspace.state.view();
        let mut runs = Vec::new();
        view.root.visit_runs(&mut |run| runs.push(run.clone()));
        assert!(runs.iter().any(|run| run.segments.len() > 5), "{} runs", runs.len());
        let probes = (0..3000).map(key).chain(["", "head", "head0004", "zzz"].map(str::to_owned));
        for (run, probe) in
            runs.iter().flat_map(|run| probes.clone().map(move |probe| (run, probe.into_bytes())))
        {
            let reaching = run.segments.iter().filter(|segment| *segment.max < *probe).count();
            assert_eq!(run.segments.reaching(&probe), reaching);
            let below = run.segments.iter().filter(|segment| *segment.min < *probe).count();
            assert_eq!(run.segments.beginning_below(&probe), below);
        }
    }
}
