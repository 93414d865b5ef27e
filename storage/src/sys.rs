//! The system calls that the standard library does not wrap, behind safe functions that return `io::Result`.
//!
//! Each has a fallback for systems that lack it, said at the function. Called by `disk`, `uring` and `processor`; holds no lock.

#![allow(unsafe_code, reason = "direct calls into libc")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// 128 random bits. The standard library's hash keys come from the operating system; the time is there should they ever repeat.
pub(crate) fn entropy() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = |salt: u64| u128::from(RandomState::new().hash_one((salt, std::time::SystemTime::now())));
    half(1) << 64 | half(2)
}

/// A counter that is ready for reading while it is not zero, and never blocks.
#[cfg(target_os = "linux")]
pub(crate) fn event_counter() -> io::Result<OwnedFd> {
    // SAFETY: takes and returns integers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The processor that runs this thread.
#[cfg(target_os = "linux")]
pub(crate) fn processor() -> Option<usize> {
    // SAFETY: takes nothing and returns an integer.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// Elsewhere than on Linux it is not asked for.
#[cfg(not(target_os = "linux"))]
pub(crate) fn processor() -> Option<usize> {
    None
}

/// The processors that a thread may run on.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy)]
pub(crate) struct Affinity(libc::cpu_set_t);

#[cfg(target_os = "linux")]
impl Affinity {
    /// This thread's. `None`: there are more processors than the set has places for (1024).
    pub(crate) fn get() -> Option<Affinity> {
        let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: the output points to a set of the length given; all-zero is a valid, empty set.
        let (code, set) = unsafe {
            let code = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr());
            (code, set.assume_init())
        };
        (code == 0).then_some(Affinity(set))
    }

    /// Has this thread run there only. Refused where the system does not let it: it runs where it might.
    pub(crate) fn set(&self) {
        // SAFETY: points to a set of the length given.
        let _refused = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.0) };
    }

    pub(crate) fn has(&self, processor: usize) -> bool {
        // SAFETY: the processor has a place in the set.
        processor < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(processor, &self.0) }
    }

    /// One processor of the set. REQUIRES that it is in it.
    pub(crate) fn only(&self, processor: usize) -> Affinity {
        let mut set = *self;
        // SAFETY: the processor has a place in the set, as it is in it.
        unsafe {
            libc::CPU_ZERO(&mut set.0);
            libc::CPU_SET(processor, &mut set.0);
        }
        Affinity(set.0)
    }
}

/// Elsewhere than on Linux it is neither known nor changed.
#[cfg(not(target_os = "linux"))]
#[derive(Clone, Copy)]
pub(crate) struct Affinity;

#[cfg(not(target_os = "linux"))]
impl Affinity {
    pub(crate) fn get() -> Option<Affinity> {
        None
    }

    pub(crate) fn set(&self) {}

    pub(crate) fn has(&self, _processor: usize) -> bool {
        false
    }

    pub(crate) fn only(&self, _processor: usize) -> Affinity {
        Affinity
    }
}

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Affinity").finish_non_exhaustive()
    }
}

/// Makes the descriptor bypass the page cache. `Ok(false)`: the file system cannot.
#[cfg(target_os = "linux")]
pub(crate) fn set_direct(file: &File) -> io::Result<bool> {
    let fd = file.as_raw_fd();
    // SAFETY: `fd` is open for the life of `file`; these commands take and return integers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_DIRECT) } == 0 {
        if direct_alignment_suffices(file) {
            return Ok(true);
        }
        // SAFETY: as above.
        unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
        return Ok(false);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(false) } else { Err(error) }
}

/// Elsewhere than on Linux direct files are buffered.
#[cfg(not(target_os = "linux"))]
pub(crate) fn set_direct(_file: &File) -> io::Result<bool> {
    Ok(false)
}

/// Whether [`crate::ALIGN`] meets what the kernel demands of direct I/O on this file; yes where it does not say.
#[cfg(target_os = "linux")]
fn direct_alignment_suffices(file: &File) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a terminated empty string, the output points to a statx; all-zero is a valid statx.
    let (code, stat) = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        let path = c"".as_ptr();
        let code = libc::statx(file.as_raw_fd(), path, flags, libc::STATX_DIOALIGN, stat.as_mut_ptr());
        (code, stat.assume_init())
    };
    if code != 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return true;
    }
    let fits = |align: u32| align != 0 && align as usize <= crate::ALIGN;
    fits(stat.stx_dio_mem_align) && fits(stat.stx_dio_offset_align)
}

/// Reserves blocks. `Ok(false)`: the file system cannot.
#[cfg(target_os = "linux")]
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    fallocate(file, 0, offset, len)
}

/// Elsewhere than on Linux there is no reservation that reads as zeros.
#[cfg(not(target_os = "linux"))]
pub(crate) fn allocate(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
    Ok(false)
}

/// Zeroes a range and keeps its blocks. `Ok(false)`: the file system cannot.
#[cfg(target_os = "linux")]
pub(crate) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    fallocate(file, libc::FALLOC_FL_ZERO_RANGE, offset, len)
}

/// Elsewhere than on Linux there is no call for it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn zero_range(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
    Ok(false)
}

/// Gives blocks back. `Ok(false)`: the file system cannot.
#[cfg(target_os = "linux")]
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

/// Elsewhere than on Linux holes are not punched.
#[cfg(not(target_os = "linux"))]
pub(crate) fn punch_hole(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(target_os = "linux")]
fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<bool> {
    let (offset, len) = (to_off(offset)?, to_off(len)?);
    loop {
        // SAFETY: `file` is open; the call takes integers only.
        if unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(false),
            _ => return Err(error),
        }
    }
}

#[cfg(target_os = "linux")]
fn to_off(value: u64) -> io::Result<libc::off64_t> {
    libc::off64_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Reads into the buffers one after the other, with one call; how many bytes came.
#[cfg(target_os = "linux")]
pub(crate) fn read_vectored(file: &File, offset: u64, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
    let count = bufs.len().min(libc::UIO_MAXIOV as usize) as libc::c_int;
    let offset = to_off(offset)?;
    // SAFETY: `file` is open; an `IoSliceMut` is an `iovec` in memory, as its documentation promises, and each of the `count` names memory that is borrowed
    // mutably over the call.
    let read = unsafe { libc::preadv64(file.as_raw_fd(), bufs.as_mut_ptr().cast(), count, offset) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Elsewhere than on Linux the first buffer is read into.
#[cfg(not(target_os = "linux"))]
pub(crate) fn read_vectored(file: &File, offset: u64, bufs: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    bufs.iter_mut().find(|buf| !buf.is_empty()).map_or(Ok(0), |buf| file.read_at(buf, offset))
}

/// Starts write-back of a range; a hint, errors surface at the sync.
#[cfg(target_os = "linux")]
pub(crate) fn start_write_back(file: &File, offset: u64, len: u64) {
    if let (Ok(offset), Ok(len)) = (to_off(offset), to_off(len)) {
        // SAFETY: `file` is open; the call takes integers only.
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

/// Elsewhere than on Linux the hint is dropped.
#[cfg(not(target_os = "linux"))]
pub(crate) fn start_write_back(_file: &File, _offset: u64, _len: u64) {}

/// Lets clean cached pages of a range go; a hint.
#[cfg(target_os = "linux")]
pub(crate) fn drop_cache(file: &File, offset: u64, len: u64) {
    if let (Ok(offset), Ok(len)) = (to_off(offset), to_off(len)) {
        // SAFETY: `file` is open; the call takes integers only.
        unsafe { libc::posix_fadvise64(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) };
    }
}

/// Elsewhere than on Linux the hint is dropped.
#[cfg(not(target_os = "linux"))]
pub(crate) fn drop_cache(_file: &File, _offset: u64, _len: u64) {}

/// The calling thread gives way to others when there are more than cores.
#[cfg(all(target_os = "linux", not(feature = "shuttle")))]
pub(crate) fn give_way() {
    // SAFETY: takes and returns integers. On Linux it concerns the calling thread only; to give way is never refused.
    unsafe { libc::nice(GIVE_WAY) };
}

/// Steps of niceness, each worth about a fifth of a thread's weight. Measured with one writer and one reader on two cores, gets beside the writer took 0.44
/// instead of 0.67 ms (p99 6.9 instead of 9.5 ms) and the writer was as fast; ten steps cost the writer a sixth.
#[cfg(all(target_os = "linux", not(feature = "shuttle")))]
const GIVE_WAY: libc::c_int = 5;

/// Elsewhere than on Linux niceness is the whole process's.
#[cfg(not(any(target_os = "linux", feature = "shuttle")))]
pub(crate) fn give_way() {}
