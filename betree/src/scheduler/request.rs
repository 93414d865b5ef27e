//! What callers of `compact` wait for: everything of a range that was committed when they asked lies in the bases of leaves.
//!
//! A request is served from the top down and from the left to the right: what waits for a child in the range is passed on, and when nothing waits any more, its
//! children are looked at. It ends though writers go on: a run counts while its first message is not younger than the request, each task moves what
//! counts a level down or into a base, and nothing that was committed later ever counts alone.
//!
//! Cost of a look: the trunk above the range.

use std::collections::HashSet;
use std::sync::Arc;

use super::due::{claim_of, task_of};
use super::{Claim, Inner, Task};
use crate::flush::Site;
use crate::node::{Node, Target};
use crate::run::Run;
use crate::shared::Shared;
use crate::state::State;
use crate::types::Seqno;
use crate::{Error, Result};

/// A range of one keyspace that is to be compacted.
#[derive(Debug)]
struct Request {
    state: Arc<State>,
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    /// Last Seqno that it is about.
    upto: Seqno,
}

/// The requests that somebody waits for, and the tasks that serve them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: Vec<Arc<Request>>,
    serving: HashSet<Claim>,
}

impl Requests {
    /// A task has ended.
    pub(super) fn ended(&mut self, claim: &Claim) {
        self.serving.remove(claim);
    }

    /// Whether a task serves a request now.
    pub(super) fn are_served(&self) -> bool {
        !self.serving.is_empty()
    }
}

impl Request {
    /// Visits the children below `node` for which something is to be done, until one is wanted.
    fn find(
        &self,
        node: &Arc<Node>,
        high: Option<&[u8]>,
        wanted: &mut dyn FnMut(&Arc<Node>, usize) -> bool,
    ) -> Option<Site> {
        let first = node.child_of(&self.low);
        for (index, child) in node.children.iter().enumerate().skip(first) {
            if self.high.as_deref().is_some_and(|end| &child.low[..] >= end) {
                break;
            }
            let child_high = node.high_of(index, high);
            let low = self.low.as_slice().max(&child.low);
            let end = match (self.high.as_deref(), child_high) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let counts = |run: &Arc<Run>| run.first <= self.upto && run.touches(low, end);
            let pending = node.pending_runs(index).any(|queued| counts(&queued.run));
            let rough = matches!(&child.target, Target::Leaf(leaf) if leaf.deltas.iter().any(counts));
            if (pending || rough) && wanted(node, index) {
                return Some(Site::new(node, index, high));
            }
            if let Target::Node(below) = &child.target
                && let Some(site) = self.find(below, child_high, wanted)
            {
                return Some(site);
            }
        }
        None
    }

    fn is_served(&self) -> bool {
        let root = &self.state.peek().root;
        self.state.is_dropped() || self.find(root, None, &mut |_, _| true).is_none()
    }
}

impl Shared {
    /// The next task for a request, claimed as one.
    pub(super) fn pick_requested(&self, inner: &mut Inner) -> Option<(Claim, Task)> {
        let waiting = inner.requests.waiting.clone();
        for request in waiting {
            let root = request.state.peek().root.clone();
            let mut idle =
                |node: &Arc<Node>, index: usize| !inner.is_busy(&claim_of(&request.state, node, index));
            if let Some(site) = request.find(&root, None, &mut idle) {
                let (claim, task) = task_of(request.state.clone(), site, true);
                inner.requests.serving.insert(claim.clone());
                return Some((claim, task));
            }
        }
        None
    }

    /// Moves what was committed to `low..high` so far down to the leaves and leaves no delta there.
    pub(crate) fn compact_range(
        &self,
        state: &Arc<State>,
        low: Vec<u8>,
        high: Option<Vec<u8>>,
    ) -> Result<()> {
        if high.as_ref().is_some_and(|high| *high <= low) {
            return Ok(());
        }
        self.flush_memtables(std::slice::from_ref(state))?;
        let upto = state.peek().flushed;
        let request = Arc::new(Request { state: state.clone(), low, high, upto });
        self.scheduler.inner.lock().requests.waiting.push(request.clone());
        let result = self.work_until(|_| request.is_served());
        self.scheduler.inner.lock().requests.waiting.retain(|other| !Arc::ptr_eq(other, &request));
        result?;
        if state.is_dropped() {
            return Err(Error::KeyspaceDropped { keyspace: state.name.clone() });
        }
        Ok(())
    }
}
