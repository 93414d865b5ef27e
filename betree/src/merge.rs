//! The merge of runs that lie above one another into one sequence, newest first: the heart of flush and compaction.
//!
//! Per key the newest message wins; a span of a newer run covers what is older; Merge operands are folded as far as they
//! can. At the bottom of the tree nothing lies below: Deletes vanish, operands become values, spans have done their work.
//!
//! Invariants kept: `tree.seqno_falls_downwards` (inputs are given newest first and become one run), `page.keys_ascend`.
//! Cost per entry: about one comparison of 8-byte heads for the dominant input, k for k inputs of equal size.

use std::cmp::Ordering;
use std::sync::Arc;

use betree_pager::{IoCompletion, Pager, PagerIo};

use crate::message::{Kind, MessageRef};
use crate::operands;
use crate::operator::MergeOperator;
use crate::run::Run;
use crate::segment::Segment;
use crate::spans::Spans;
use crate::stream::{RunStream, part_bytes};
use crate::{Error, Result};

/// See the module's text.
pub(crate) struct Merge<'a> {
    pager: &'a Pager,
    io: &'a mut PagerIo,
    operator: Option<Arc<dyn MergeOperator>>,
    bottom: bool,
    streams: Vec<RunStream>,
    spans: Vec<Spans>,
    has_spans: bool,
    /// Streams with an entry, by (key, newest first).
    order: Vec<Ranked>,
    /// How many at the front of `order` the last step used up.
    used: usize,
    /// Messages of the oldest run passed so far for whose key a newer one came.
    pub hidden_oldest: u64,
    /// Result of folding.
    folded: Vec<u8>,
    folded_key: Vec<u8>,
    done: Vec<IoCompletion>,
}

/// A stream with the head of its current key.
#[derive(Copy, Clone)]
struct Ranked {
    head: u64,
    stream: usize,
}

/// Where the message of a step is.
enum Outcome {
    Nothing,
    Stream(usize),
    Folded(Kind),
}

impl<'a> Merge<'a> {
    /// Over the parts of `runs` (newest first) with keys in `low..high`. `bottom`: nothing lies below.
    pub(crate) fn new(
        pager: &'a Pager,
        io: &'a mut PagerIo,
        operator: Option<Arc<dyn MergeOperator>>,
        runs: &[Arc<Run>],
        low: &[u8],
        high: Option<&[u8]>,
        bottom: bool,
    ) -> Result<Merge<'a>> {
        // Two workers merge at a time.
        let part_bytes = part_bytes(pager.idle_buffer_bytes() / 2, runs.len());
        let mut segments: Vec<&Arc<Segment>> = Vec::new();
        let mut counts = Vec::with_capacity(runs.len());
        let mut spans: Vec<Spans> = Vec::with_capacity(runs.len());
        let mut newer = Spans::default();
        for run in runs {
            let before = segments.len();
            // Segments wholly under a newer range delete are dropped unread.
            segments.extend(run.segments_in(low, high).iter().filter(|s| {
                let mut end = s.max.to_vec();
                end.push(0);
                newer.is_empty() || !newer.covers(&s.min, Some(&end))
            }));
            counts.push(segments.len() - before);
            let clipped = run.spans.clip(low, high);
            newer.union(&clipped);
            spans.push(clipped);
        }
        // Nobody else will ask for the index of what is used up here.
        let metas = Segment::metas(pager, &segments, |segment| !segment.inside(low, high))?;
        let mut indexed = segments.into_iter().cloned().zip(metas);
        let mut streams = Vec::with_capacity(runs.len());
        for count in counts {
            streams.push(RunStream::new(indexed.by_ref().take(count), low, high, part_bytes)?);
        }
        let mut merge = Merge {
            pager,
            io,
            operator,
            bottom,
            has_spans: !newer.is_empty(),
            spans,
            order: Vec::with_capacity(streams.len()),
            streams,
            used: 0,
            hidden_oldest: 0,
            folded: Vec::new(),
            folded_key: Vec::new(),
            done: Vec::new(),
        };
        for i in 0..merge.streams.len() {
            merge.streams[i].request(merge.io, i as u64)?;
        }
        for i in 0..merge.streams.len() {
            if merge.refill(i)? {
                let at = merge.order.len();
                merge.order.push(Ranked { head: merge.streams[i].head, stream: i });
                merge.order[..=at].rotate_right(1);
                merge.sink(0);
            }
        }
        Ok(merge)
    }

    /// Bytes that will be read from the data file.
    pub(crate) fn bytes(&self) -> u64 {
        self.streams.iter().map(RunStream::bytes).sum()
    }

    /// The spans of all inputs together: those of the resulting run, unless it lies at the bottom.
    pub(crate) fn spans(&self) -> Spans {
        let mut all = Spans::default();
        if !self.bottom {
            self.spans.iter().for_each(|s| all.union(s));
        }
        all
    }

    /// The next message, in key order.
    pub(crate) fn step(&mut self) -> Result<Option<MessageRef<'_>>> {
        loop {
            self.consume()?;
            let Some(&first) = self.order.first() else { return Ok(None) };
            self.used = 1;
            while let Some(next) = self.order.get(self.used)
                && next.head == first.head
                && self.streams[next.stream].key == self.streams[first.stream].key
            {
                self.used += 1;
            }
            // Messages for one key are in order of age.
            let oldest = self.order[self.used - 1].stream + 1 == self.streams.len();
            self.hidden_oldest += u64::from(self.used > 1 && oldest);
            match self.resolve(first.stream)? {
                Outcome::Nothing => {}
                Outcome::Stream(i) => return Ok(Some(self.streams[i].entry())),
                Outcome::Folded(kind) => {
                    return Ok(Some(MessageRef { kind, key: &self.folded_key, value: &self.folded }));
                }
            }
        }
    }

    /// Whether a span newer than stream `i` covers its current key.
    fn covered(&self, i: usize) -> bool {
        self.has_spans && self.spans[..i].iter().any(|s| s.contains(&self.streams[i].key))
    }

    /// What becomes of the messages for the smallest key, which are those of `order[..used]`.
    fn resolve(&mut self, first: usize) -> Result<Outcome> {
        if self.covered(first) {
            // Everything older is covered as well; the span itself stays with the run.
            return Ok(Outcome::Nothing);
        }
        match self.streams[first].kind {
            Kind::Put => Ok(Outcome::Stream(first)),
            Kind::Delete if self.bottom => Ok(Outcome::Nothing),
            Kind::Delete => Ok(Outcome::Stream(first)),
            Kind::Merge if self.used == 1 && !self.bottom && !self.covers_below(first) => {
                Ok(Outcome::Stream(first))
            }
            Kind::Merge | Kind::RangeDelete => self.fold(first),
        }
    }

    /// Whether a span of stream `i` or an older one covers its current key: then the key is absent below its operands.
    fn covers_below(&self, i: usize) -> bool {
        self.has_spans && self.spans[i..].iter().any(|s| s.contains(&self.streams[i].key))
    }

    /// Folds the operands of stream `first` with what the older streams and spans say.
    fn fold(&mut self, first: usize) -> Result<Outcome> {
        let Some(operator) = self.operator.clone() else {
            return Err(Error::MergeOperator {
                keyspace: String::new(),
                detail: "operands are stored, but no merge operator is known".into(),
            });
        };
        let key = self.streams[first].key.clone();
        let mut list = self.streams[first].entry().value.to_vec();
        let mut base: Option<Option<Vec<u8>>> = None;
        let mut passed = first;
        for &Ranked { stream: i, .. } in &self.order[1..self.used] {
            if self.has_spans && self.spans[passed..i].iter().any(|s| s.contains(&key)) {
                base = Some(None);
                break;
            }
            passed = i;
            let entry = self.streams[i].entry();
            match entry.kind {
                Kind::Put => base = Some(Some(entry.value.to_vec())),
                Kind::Delete | Kind::RangeDelete => base = Some(None),
                Kind::Merge => {
                    list = operands::combine(&*operator, &key, entry.value, &list)
                        .ok_or_else(|| lost(self.pager))?;
                    continue;
                }
            }
            break;
        }
        if base.is_none()
            && (self.bottom || self.has_spans && self.spans[passed..].iter().any(|s| s.contains(&key)))
        {
            base = Some(None);
        }
        self.folded_key = key;
        match base {
            Some(base) => {
                self.folded = operands::fold(&*operator, &self.folded_key, base.as_deref(), &list)
                    .ok_or_else(|| lost(self.pager))?;
                Ok(Outcome::Folded(Kind::Put))
            }
            None => {
                self.folded = list;
                Ok(Outcome::Folded(Kind::Merge))
            }
        }
    }

    /// Moves the streams that the last step used up and puts them back in order.
    #[inline]
    fn consume(&mut self) -> Result<()> {
        while self.used > 0 {
            self.used -= 1;
            let i = self.order[self.used].stream;
            if !self.streams[i].advance(self.pager)? && !self.refill(i)? {
                self.order.remove(self.used);
                continue;
            }
            self.order[self.used].head = self.streams[i].head;
            self.sink(self.used);
        }
        Ok(())
    }

    /// Moves the stream at `at` behind those that come before it. REQUIRES that those behind it are in order.
    #[inline]
    fn sink(&mut self, mut at: usize) {
        let moved = self.order[at];
        while let Some(&next) = self.order.get(at + 1)
            && (next.head < moved.head || next.head == moved.head && self.precedes(next.stream, moved.stream))
        {
            self.order[at] = next;
            at += 1;
        }
        self.order[at] = moved;
    }

    /// Whether stream `a` comes before `b`, which has the same head.
    fn precedes(&self, a: usize, b: usize) -> bool {
        match self.streams[a].key.cmp(&self.streams[b].key) {
            Ordering::Less => true,
            Ordering::Equal => a < b,
            Ordering::Greater => false,
        }
    }

    /// Brings stream `i` to the first entry of its next part; false when there is none.
    fn refill(&mut self, i: usize) -> Result<bool> {
        while !self.streams[i].valid() {
            if !self.streams[i].has_next_part() {
                return Ok(false);
            }
            self.streams[i].request(self.io, i as u64)?;
            while !self.streams[i].next_part_arrived() {
                self.io.wait(1, &mut self.done);
                for done in self.done.drain(..) {
                    done.result?;
                    self.streams[done.token as usize].arrive(done.buf);
                }
            }
            self.streams[i].next_part(self.pager, self.io)?;
            self.streams[i].request(self.io, i as u64)?;
        }
        Ok(true)
    }
}

impl Drop for Merge<'_> {
    fn drop(&mut self) {
        // The channel outlives this merge: what is still in flight after an error must not reach the next one.
        self.done.clear();
        while self.io.pending() > 0 {
            self.io.wait(1, &mut self.done);
        }
        for buf in
            self.done.drain(..).map(|d| d.buf).chain(self.streams.drain(..).filter_map(RunStream::into_buf))
        {
            self.io.recycle(buf);
        }
    }
}

/// An entry that decoded when its stream moved to it no longer does: memory was changed under us.
#[cold]
fn lost(_: &Pager) -> Error {
    Error::Corrupt {
        file: betree_pager::FILE_NAME.to_string(),
        offset: 0,
        structure: "merge",
        detail: "an entry that was verified no longer decodes".into(),
    }
}
