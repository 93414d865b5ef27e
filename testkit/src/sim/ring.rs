//! The ring of the simulated disk: requests take effect late and in an order drawn from the seed.
//!
//! Invariant: a request takes effect some time between its submission and its completion, so an engine that relies on
//! an order between requests in flight, or on a read seeing a write in flight, is found out. Holds no lock.

use betree_storage::{Completion, Request, Ring};

use crate::Rng;

#[derive(Debug)]
pub(super) struct SimRing {
    rng: Rng,
    depth: usize,
    queued: Vec<(u64, Request)>,
    done: Vec<Completion>,
}

impl SimRing {
    pub(super) fn new(rng: Rng, depth: usize) -> Self {
        Self { rng, depth: depth.max(1), queued: Vec::new(), done: Vec::new() }
    }

    fn carry_out_one(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let (token, request) = self.queued.swap_remove(self.rng.index(self.queued.len()));
        self.done.push(match request {
            Request::Read { file, offset, mut buf } => {
                let result = file.read_at(offset, &mut buf);
                Completion { token, buf: Some(buf), result }
            }
            Request::Write { file, offset, buf } => {
                let result = file.write_at(offset, &buf);
                Completion { token, buf: Some(buf), result }
            }
            Request::Sync { file } => Completion { token, buf: None, result: file.sync() },
        });
    }
}

impl Ring for SimRing {
    fn submit(&mut self, batch: &mut Vec<(u64, Request)>) {
        for entry in batch.drain(..) {
            if self.queued.len() == self.depth {
                self.carry_out_one();
            }
            self.queued.push(entry);
        }
    }

    fn wait(&mut self, min: usize, out: &mut Vec<Completion>) {
        let target = min.min(self.in_flight());
        while self.done.len() < target {
            self.carry_out_one();
        }
        while !self.queued.is_empty() && self.rng.chance(0.5) {
            self.carry_out_one();
        }
        self.rng.shuffle(&mut self.done);
        out.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.queued.len() + self.done.len()
    }
}

impl Drop for SimRing {
    fn drop(&mut self) {
        while !self.queued.is_empty() {
            self.carry_out_one();
        }
    }
}
