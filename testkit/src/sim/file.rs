//! Files and windows of the simulated disk.
//!
//! Invariants: the rules of direct I/O and of mapped windows are asserted here, stricter than an operating system
//! would; a handle keeps its inode until it is dropped. Locks: the storage's mutex, for the length of one call; a
//! failed sync is latched under it, so that no concurrent sync of the file can return success after it.

use std::io;
use std::sync::Arc;

use betree_storage::primitives::point;
use betree_storage::{ALIGN, Caching, Error, File, Pages, Result, SyncLatch, Window};
use parking_lot::Mutex;

use super::faults::FaultKind;
use super::state::{State, broken, gone};

/// A reference to an inode that keeps it alive.
#[derive(Debug)]
pub(super) struct Handle {
    state: Arc<Mutex<State>>,
    inode: u64,
    name: String,
}

impl Handle {
    /// The inode must exist in the locked state.
    pub(super) fn new(shared: &Arc<Mutex<State>>, state: &mut State, inode: u64, name: &str) -> Self {
        state.inode(inode).handles += 1;
        Self { state: Arc::clone(shared), inode, name: name.to_owned() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            inode.handles = inode.handles.saturating_sub(1);
            if inode.handles == 0 {
                state.drop_unreachable();
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct SimFile {
    handle: Arc<Handle>,
    caching: Caching,
    latch: SyncLatch,
}

impl SimFile {
    pub(super) fn new(handle: Handle, caching: Caching) -> Self {
        Self { handle: Arc::new(handle), caching, latch: SyncLatch::new() }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        point();
        self.handle.state.lock()
    }

    fn assert_aligned(&self, offset: u64, buf: &[u8]) {
        if self.caching == Caching::Direct && !buf.is_empty() {
            let address = buf.as_ptr() as usize;
            assert!(
                offset.is_multiple_of(ALIGN as u64)
                    && buf.len().is_multiple_of(ALIGN)
                    && address.is_multiple_of(ALIGN),
                "unaligned direct I/O on {}: offset {offset}, {} bytes, address {address:#x}",
                self.handle.name,
                buf.len()
            );
        }
    }

    fn range_end(&self, op: &'static str, offset: u64, len: u64) -> Result<u64> {
        offset.checked_add(len).filter(|&end| end <= i64::MAX as u64).ok_or_else(|| {
            let cause = io::Error::new(io::ErrorKind::InvalidInput, "the range exceeds the largest file");
            Error::from_io(op, &self.handle.name, Some(offset), cause)
        })
    }
}

impl File for SimFile {
    fn name(&self) -> &str {
        &self.handle.name
    }

    fn len(&self) -> Result<u64> {
        let id = self.handle.inode;
        self.state().look("stat", &self.handle.name, |state| Ok(state.inode(id).len()))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.range_end("set length", len, 0)?;
        let (id, name) = (self.handle.inode, &self.handle.name);
        self.state().change("set length", name, |state| {
            state.trace("set_len", name, len, 0, &[]);
            state.inode(id).set_len(len);
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.range_end("allocate", offset, len)?;
        let (id, name) = (self.handle.inode, &self.handle.name);
        self.state().change("allocate", name, |state| {
            state.trace("allocate", name, offset, len, &[]);
            let more = state.inode(id).allocated.missing(offset, end);
            state.reserve("allocate", name, more)?;
            state.inode(id).allocate(offset, end);
            Ok(())
        })
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.range_end("punch hole", offset, len)?;
        let (id, name) = (self.handle.inode, &self.handle.name);
        self.state().change("punch hole", name, |state| {
            state.trace("punch_hole", name, offset, len, &[]);
            state.inode(id).punch(offset, end);
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.assert_aligned(offset, buf);
        let end = self.range_end("read", offset, buf.len() as u64)?;
        let (id, name) = (self.handle.inode, &self.handle.name);
        self.state().look("read", name, |state| {
            state.trace("read", name, offset, buf.len() as u64, &[]);
            if state.strikes(FaultKind::ReadError, name) {
                return Err(broken("read", name, Some(offset)));
            }
            if end > state.inode(id).len() && !buf.is_empty() {
                return Err(Error::ShortRead { file: name.clone(), offset, len: buf.len() });
            }
            if buf.len() > 1 && state.strikes(FaultKind::ShortRead, name) {
                let part = state.rng.index(buf.len());
                state.inode(id).read(offset, &mut buf[..part]);
                return Err(Error::ShortRead { file: name.clone(), offset, len: buf.len() });
            }
            state.inode(id).read(offset, buf);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.assert_aligned(offset, buf);
        self.range_end("write", offset, buf.len() as u64)?;
        let (id, name) = (self.handle.inode, &self.handle.name);
        if buf.is_empty() {
            return Ok(());
        }
        self.state().change("write", name, |state| {
            state.trace("write", name, offset, buf.len() as u64, buf);
            state.write(id, name, offset, buf)
        })
    }

    fn sync(&self) -> Result<()> {
        let (id, name) = (self.handle.inode, &self.handle.name);
        let mut state = self.state();
        self.latch.check()?;
        state.change("sync", name, |state| {
            state.trace("sync", name, 0, 0, &[]);
            if state.strikes(FaultKind::SyncError, name) {
                let mut rng = state.rng.fork();
                state.inode(id).fail_sync(&mut rng);
                return Err(self.latch.fail(name, io::Error::other("injected failure")));
            }
            state.inode(id).sync();
            Ok(())
        })
    }

    fn start_write_back(&self, _offset: u64, _len: u64) {}

    fn drop_cache(&self, _offset: u64, _len: u64) {}

    fn window(&self, offset: u64, len: usize, pages: Pages) -> Result<Box<dyn Window>> {
        let end = self.range_end("map", offset, len as u64)?;
        let (id, name) = (self.handle.inode, &self.handle.name);
        self.state().look("map", name, |state| {
            let inode = state.inode(id);
            if len == 0 || end > inode.len() || inode.allocated.missing(offset, end) > 0 {
                let cause =
                    io::Error::new(io::ErrorKind::InvalidInput, "the range is empty or not allocated");
                return Err(Error::from_io("map", name, Some(offset), cause));
            }
            Ok(())
        })?;
        if pages == Pages::Large {
            self.write_at(offset, &vec![0; len])?;
        }
        Ok(Box::new(SimWindow { handle: Arc::clone(&self.handle), offset, len }))
    }

    fn sync_latch(&self) -> Option<&SyncLatch> {
        Some(&self.latch)
    }
}

#[derive(Debug)]
struct SimWindow {
    handle: Arc<Handle>,
    offset: u64,
    len: usize,
}

impl Window for SimWindow {
    fn len(&self) -> usize {
        self.len
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        let fits = at.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        assert!(fits, "{} bytes at {at} do not fit a window of {} bytes", bytes.len(), self.len);
        if bytes.is_empty() {
            return;
        }
        let offset = self.offset + at as u64;
        let (id, name) = (self.handle.inode, &self.handle.name);
        point();
        let mut state = self.handle.state.lock();
        // A store cannot fail; on a device that is gone it is lost with everything else.
        let stored = state.change("store", name, |state| {
            state.trace("store", name, offset, bytes.len() as u64, bytes);
            let end = offset + bytes.len() as u64;
            let inode = state.inode(id);
            let backed = end <= inode.len() && inode.allocated.missing(offset, end) == 0;
            if !backed {
                return Err(gone("store", name));
            }
            inode.write(offset, bytes);
            Ok(())
        });
        let backed_or_gone = stored.is_ok() || state.gone;
        drop(state);
        assert!(backed_or_gone, "store into a window of {name} whose file was cut or punched (SIGBUS)");
    }
}
