//! A file of a [`DiskStorage`](crate::DiskStorage).
//!
//! Invariants: interrupted calls are repeated and short ones continued; a failed sync is latched for the life of the
//! handle. Called from any thread. Locks: `syncing` is held across a sync, because the kernel reports a write-back
//! failure to one of several concurrent callers only, and the others must not return before it is latched.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;

use crate::window::MappedWindow;
use crate::{ALIGN, Caching, Error, File, Pages, Result, SyncLatch, Window, sys};

/// Bytes per read and write where a reservation must be emulated.
const FILL_CHUNK: usize = 64 << 10;
/// One write of them makes pieces of memory as large as this at most.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// An open file of the operating system.
#[derive(Debug)]
pub(crate) struct DiskFile {
    name: String,
    file: fs::File,
    /// As asked for: the rules of direct I/O hold even where the file system made it a buffered file.
    caching: Caching,
    latch: SyncLatch,
    syncing: Mutex<()>,
}

impl DiskFile {
    pub(crate) fn new(name: String, file: fs::File, caching: Caching) -> Self {
        Self { name, file, caching, latch: SyncLatch::new(), syncing: Mutex::new(()) }
    }

    fn error(&self, op: &'static str, offset: Option<u64>, source: io::Error) -> Error {
        Error::from_io(op, &self.name, offset, source)
    }

    fn assert_aligned(&self, offset: u64, buf: &[u8]) {
        if self.caching == Caching::Direct && !buf.is_empty() {
            let address = buf.as_ptr() as usize;
            debug_assert!(
                offset.is_multiple_of(ALIGN as u64)
                    && buf.len().is_multiple_of(ALIGN)
                    && address.is_multiple_of(ALIGN),
                "unaligned direct I/O on {}: offset {offset}, {} bytes, address {address:#x}",
                self.name,
                buf.len()
            );
        }
    }

    /// Writes zeros over what reads as zeros, so that blocks exist, where the file system has no reservation.
    /// Nobody else may write to the range meanwhile, as is the case for a file being prepared.
    fn allocate_by_writing(&self, offset: u64, len: u64) -> Result<()> {
        let align = ALIGN as u64;
        let end = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(align));
        let Some(end) = end else {
            return Err(self.error("allocate", Some(offset), io::Error::from(io::ErrorKind::InvalidInput)));
        };
        if self.len()? < end {
            self.set_len(end)?;
        }
        let mut buf = crate::AlignedBuf::zeroed(FILL_CHUNK);
        let mut at = offset - offset % align;
        while at < end {
            let size = usize::try_from(end - at).unwrap_or(FILL_CHUNK).min(FILL_CHUNK);
            let chunk = &mut buf[..size];
            self.read_at(at, chunk)?;
            if chunk.iter().all(|&byte| byte == 0) {
                self.write_at(at, chunk)?;
            }
            at += size as u64;
        }
        Ok(())
    }
}

impl File for DiskFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| self.error("stat", None, e))?.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| self.error("set length", Some(len), e))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let reserved = sys::allocate(&self.file, offset, len);
        if reserved.map_err(|e| self.error("allocate", Some(offset), e))? {
            return Ok(());
        }
        self.allocate_by_writing(offset, len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let punched = sys::punch_hole(&self.file, offset, len);
        punched.map(drop).map_err(|e| self.error("punch hole", Some(offset), e))
    }

    fn zero_range(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        // Keeping the blocks costs microseconds where giving them back and taking them again costs milliseconds.
        let zeroed = sys::zero_range(&self.file, offset, len);
        if zeroed.map_err(|e| self.error("zero range", Some(offset), e))? {
            return Ok(());
        }
        self.punch_hole(offset, len)?;
        self.allocate(offset, len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_vectored_at(offset, &mut [IoSliceMut::new(buf)])
    }

    fn read_vectored_at(&self, offset: u64, mut bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        bufs.iter().for_each(|buf| self.assert_aligned(offset, buf));
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            match sys::read_vectored(&self.file, at, bufs) {
                Ok(count) => {
                    done += count;
                    // Asked before going on: past an end that is not aligned, direct I/O refuses to continue.
                    if done < len && (count == 0 || offset + done as u64 >= self.len()?) {
                        return Err(Error::ShortRead { file: self.name.clone(), offset, len });
                    }
                    IoSliceMut::advance_slices(&mut bufs, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error("read", Some(at), error)),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.assert_aligned(offset, buf);
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.file.write_at(&buf[done..], at) {
                Ok(0) => {
                    let cause = io::Error::from(io::ErrorKind::WriteZero);
                    return Err(self.error("write", Some(at), cause));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error("write", Some(at), error)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let _one_at_a_time = self.syncing.lock();
        self.latch.check()?;
        match self.file.sync_data() {
            Ok(()) => self.latch.check(),
            Err(error) => Err(self.latch.fail(&self.name, error)),
        }
    }

    fn start_write_back(&self, offset: u64, len: u64) {
        sys::start_write_back(&self.file, offset, len);
    }

    fn drop_cache(&self, offset: u64, len: u64) {
        sys::drop_cache(&self.file, offset, len);
    }

    fn window(&self, offset: u64, len: usize, pages: Pages) -> Result<Box<dyn Window>> {
        let file_len = self.len()?;
        if len == 0 || offset.checked_add(len as u64).is_none_or(|end| end > file_len) {
            let cause = io::Error::new(io::ErrorKind::InvalidInput, "the range is empty or not allocated");
            return Err(self.error("map", Some(offset), cause));
        }
        let window = MappedWindow::new(&self.file, file_len, offset, len);
        let window = window.map_err(|e| self.error("map", Some(offset), e))?;
        if pages == Pages::Large && window.maps_large() {
            for at in (0..len).step_by(ZEROS.len()) {
                self.write_at(offset + at as u64, &ZEROS[..ZEROS.len().min(len - at)])?;
            }
        }
        if pages != Pages::OnDemand {
            window.populate();
        }
        Ok(Box::new(window))
    }

    fn raw_fd(&self) -> Option<i32> {
        Some(self.file.as_raw_fd())
    }

    fn sync_latch(&self) -> Option<&SyncLatch> {
        Some(&self.latch)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn device(path: &str) -> DiskFile {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        DiskFile::new("device".to_owned(), file, Caching::Buffered)
    }

    #[test]
    fn a_failed_sync_is_latched() {
        // A device that cannot be synced at all.
        let file = device("/dev/null");
        let first = file.sync().unwrap_err();
        assert!(matches!(first, Error::SyncFailed { .. }), "{first}");
        assert_eq!(file.sync().unwrap_err().to_string(), first.to_string());
        assert!(file.latch.check().is_err());
    }

    #[test]
    fn a_full_device_is_no_space() {
        let error = device("/dev/full").write_at(0, b"x").unwrap_err();
        assert!(error.is_no_space(), "{error}");
    }

    #[test]
    fn space_is_reserved_by_writing_without_touching_what_is_there() {
        let file = DiskFile::new("f".to_owned(), tempfile::tempfile().unwrap(), Caching::Direct);
        let page = ALIGN as u64;
        file.write_at(page, &crate::AlignedBuf::copy_of(&[7; ALIGN])).unwrap();
        file.allocate_by_writing(0, 40 * page).unwrap();
        assert_eq!(file.len().unwrap(), 40 * page);
        let mut buf = crate::AlignedBuf::zeroed(3 * ALIGN);
        file.read_at(0, &mut buf).unwrap();
        assert!(buf[..ALIGN].iter().all(|&b| b == 0) && buf[ALIGN..2 * ALIGN].iter().all(|&b| b == 7));
        assert!(file.allocate_by_writing(u64::MAX, 2).is_err());
    }
}
