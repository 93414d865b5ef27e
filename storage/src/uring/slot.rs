//! One request of the io_uring ring: what to ask the kernel for next, and what its answer means.
//!
//! Invariant: the buffer is not moved out of its slot, and so not freed, before the request is finished; `done` bytes
//! of it were carried out. Knows nothing of queues. Called by the ring; holds no lock.

use std::io;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use crate::{AlignedBuf, Error, File, Result};

/// The most bytes asked for at once; the kernel's own bound is just below 2 GiB, the rest is continued.
pub(super) const MAX_TRANSFER: usize = 1 << 30;
/// How often a request is submitted again after the kernel cancelled or put it off, before that is an error.
const MAX_RETRIES: u32 = 1000;

/// The operations that requests are made of.
pub(super) const OPCODES: [u8; 3] = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE];

/// One request, from submission to completion.
pub(super) struct Slot {
    pub(super) token: u64,
    pub(super) file: Arc<dyn File>,
    fd: i32,
    pub(super) op: Op,
    retries: u32,
}

/// What is asked for, and how far it got.
pub(super) enum Op {
    Read { offset: u64, buf: AlignedBuf, done: usize },
    Write { offset: u64, buf: AlignedBuf, done: usize },
    Sync,
}

/// What a completion of the kernel means for its request.
pub(super) enum Outcome {
    Finished(Result<()>),
    Continue,
}

impl Slot {
    pub(super) fn new(token: u64, file: Arc<dyn File>, fd: i32, op: Op) -> Self {
        Self { token, file, fd, op, retries: 0 }
    }

    /// The queue entry for what is left to do, or for the next `piece` bytes of it.
    pub(super) fn entry(&mut self, piece: usize) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        let transfer = |left: usize| left.min(piece).min(MAX_TRANSFER) as u32;
        match &mut self.op {
            Op::Read { offset, buf, done } => {
                let at = *offset + *done as u64;
                let rest = &mut buf[*done..];
                opcode::Read::new(fd, rest.as_mut_ptr(), transfer(rest.len())).offset(at).build()
            }
            Op::Write { offset, buf, done } => {
                let at = *offset + *done as u64;
                let rest = &buf[*done..];
                opcode::Write::new(fd, rest.as_ptr(), transfer(rest.len())).offset(at).build()
            }
            Op::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    /// Takes the kernel's answer: a count of bytes or a negated error number.
    pub(super) fn outcome(&mut self, code: i32) -> Outcome {
        if code < 0 {
            return self.failure(-code);
        }
        let count = code as usize;
        let name = self.file.name();
        match &mut self.op {
            Op::Sync => Outcome::Finished(match self.file.sync_latch() {
                Some(latch) => latch.check(),
                None => Ok(()),
            }),
            Op::Read { offset, buf, done } => {
                *done += count;
                if *done >= buf.len() {
                    return Outcome::Finished(Ok(()));
                }
                // Asked before going on: past an end that is not aligned, direct I/O refuses to continue.
                let at_end = count == 0 || self.file.len().is_ok_and(|len| *offset + *done as u64 >= len);
                if !at_end {
                    return Outcome::Continue;
                }
                let (file, offset, len) = (name.to_owned(), *offset, buf.len());
                Outcome::Finished(Err(Error::ShortRead { file, offset, len }))
            }
            Op::Write { offset, buf, done } => {
                *done += count;
                if *done >= buf.len() {
                    return Outcome::Finished(Ok(()));
                }
                if count != 0 {
                    return Outcome::Continue;
                }
                let cause = io::Error::from(io::ErrorKind::WriteZero);
                Outcome::Finished(Err(Error::from_io("write", name, Some(*offset), cause)))
            }
        }
    }

    fn failure(&mut self, errno: i32) -> Outcome {
        if matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Outcome::Continue;
        }
        let cause = io::Error::from_raw_os_error(errno);
        let name = self.file.name();
        let at = match &self.op {
            Op::Read { offset, done, .. } | Op::Write { offset, done, .. } => Some(*offset + *done as u64),
            Op::Sync => None,
        };
        let error = match (&self.op, self.file.sync_latch()) {
            (Op::Sync, Some(latch)) => latch.fail(name, cause),
            (op, _) => Error::from_io(op.name(), name, at, cause),
        };
        Outcome::Finished(Err(error))
    }
}

impl Op {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Sync => "sync",
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Read { buf, .. } | Self::Write { buf, .. } if buf.is_empty())
    }

    pub(super) fn into_buf(self) -> Option<AlignedBuf> {
        match self {
            Self::Read { buf, .. } | Self::Write { buf, .. } => Some(buf),
            Self::Sync => None,
        }
    }
}

/// The descriptor of a file that this ring can serve; for a sync, the latch must not have closed either.
pub(super) fn usable_fd(file: &dyn File, op: &Op) -> Result<i32> {
    let unsupported = || {
        let cause = io::Error::new(io::ErrorKind::Unsupported, "the file has no descriptor");
        Error::from_io(op.name(), file.name(), None, cause)
    };
    let fd = file.raw_fd().ok_or_else(unsupported)?;
    if matches!(op, Op::Sync) {
        file.sync_latch().ok_or_else(unsupported)?.check()?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Caching;
    use crate::file::DiskFile;

    fn file_of(len: u64) -> Arc<dyn File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        Arc::new(DiskFile::new("f".to_owned(), file, Caching::Buffered))
    }

    fn slot(file: &Arc<dyn File>, op: Op) -> Slot {
        Slot::new(0, Arc::clone(file), file.raw_fd().unwrap(), op)
    }

    #[test]
    fn short_transfers_are_continued_until_the_end_of_the_request_or_of_the_file() {
        let buf = || AlignedBuf::zeroed(8192);
        let mut read = slot(&file_of(8192), Op::Read { offset: 0, buf: buf(), done: 0 });
        assert!(matches!(read.outcome(4096), Outcome::Continue));
        assert!(matches!(read.outcome(4096), Outcome::Finished(Ok(()))));
        let mut cut = slot(&file_of(5000), Op::Read { offset: 0, buf: buf(), done: 0 });
        assert!(matches!(cut.outcome(4096), Outcome::Continue));
        assert!(matches!(cut.outcome(904), Outcome::Finished(Err(Error::ShortRead { .. }))));
        let mut write = slot(&file_of(0), Op::Write { offset: 0, buf: buf(), done: 0 });
        assert!(matches!(write.outcome(100), Outcome::Continue));
        assert!(matches!(write.outcome(0), Outcome::Finished(Err(Error::Io { .. }))));
    }

    #[test]
    fn cancelled_requests_are_tried_again_but_not_for_ever() {
        let mut sync = slot(&file_of(0), Op::Sync);
        let tries = (0..).take_while(|_| matches!(sync.outcome(-libc::ECANCELED), Outcome::Continue)).count();
        assert_eq!(tries, MAX_RETRIES as usize);
        assert!(matches!(sync.outcome(0), Outcome::Finished(Err(Error::SyncFailed { .. }))), "latched");
    }
}
