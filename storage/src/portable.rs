//! The portable ring: every request is carried out while it is submitted, by the file's own methods.
//!
//! Works with any [`File`](crate::File), so it also serves files of other backends. Invariant: nothing is ever really
//! in flight; `done` holds what was carried out and not yet handed out. Holds no lock.

use crate::{Completion, Request, Ring};

/// A ring without a kernel queue behind it.
#[derive(Debug, Default)]
pub(crate) struct PortableRing {
    done: Vec<Completion>,
}

impl Ring for PortableRing {
    fn submit(&mut self, batch: &mut Vec<(u64, Request)>) {
        self.done.extend(batch.drain(..).map(|(token, request)| perform(token, request)));
    }

    fn wait(&mut self, _min: usize, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}

/// Carries one request out, blocking.
pub(crate) fn perform(token: u64, request: Request) -> Completion {
    match request {
        Request::Read { file, offset, mut buf } => {
            let result = file.read_at(offset, &mut buf);
            Completion { token, buf: Some(buf), result }
        }
        Request::Write { file, offset, buf } => {
            let result = file.write_at(offset, &buf);
            Completion { token, buf: Some(buf), result }
        }
        Request::Sync { file } => Completion { token, buf: None, result: file.sync() },
    }
}
