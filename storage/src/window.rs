//! Mapped append windows: a preallocated part of a file into which bytes are copied without a system call.
//!
//! Invariants: the mapped range lay inside the file and was allocated when it was mapped, so a store into it needs no
//! new block (no SIGBUS on a full disk); no Rust reference to the mapped bytes is ever formed, because the file may be
//! read and written by others at the same time. The owner must not shorten the file while a window is mapped.
//! Called by the log. Holds no lock; `copy_in` needs `&mut self`.

#![allow(unsafe_code, reason = "stores through a shared file mapping")]

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

use crate::{Window, prefetch};

/// What a page table of the processor covers, on the machines that this is tuned for.
const TABLE: u64 = 2 << 20;

/// A window over a mapping.
#[derive(Debug)]
pub(crate) struct MappedWindow {
    map: MmapRaw,
    /// Where in the mapping the window begins.
    start: usize,
    len: usize,
}

impl MappedWindow {
    /// Maps a range that the caller has found to lie inside the file of `file_len` bytes.
    ///
    /// Mapped is the whole [`TABLE`] around it, where the file has that: then file systems with large pieces of memory choose an address at which
    /// offset and address agree modulo [`TABLE`], and one fault maps a whole piece.
    pub(crate) fn new(file: &File, file_len: u64, offset: u64, len: usize) -> io::Result<Self> {
        let from = offset / TABLE * TABLE;
        let end = (offset + len as u64).next_multiple_of(TABLE).min(file_len);
        let map = MmapOptions::new().offset(from).len((end - from) as usize).map_raw(file)?;
        Ok(Self { map, start: (offset - from) as usize, len })
    }

    /// Whether a piece of memory as large as the window can be mapped by one fault. Where it cannot, each page of it is mapped by a fault that looks
    /// at every block of the piece (measured: 4.4 µs per page of 4 KiB instead of 0.25; pages one by one take 2.4).
    pub(crate) fn maps_large(&self) -> bool {
        let address = self.map.as_mut_ptr() as usize + self.start;
        address.is_multiple_of(self.len.next_power_of_two())
    }

    /// Makes the pages writable, so that [`Window::copy_in`] does not fault.
    pub(crate) fn populate(&self) {
        // A kernel older than 5.14 refuses; the first store then faults, which is all that is lost.
        #[cfg(target_os = "linux")]
        let _refused = self.map.advise_range(memmap2::Advice::PopulateWrite, self.start, self.len);
    }
}

impl Window for MappedWindow {
    fn len(&self) -> usize {
        self.len
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        let end = at.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{} bytes at {at} do not fit a window of {} bytes",
            bytes.len(),
            self.len
        );
        // SAFETY: the window lies inside the mapping, which lives as long as `self`, and the assertion keeps the target inside the
        // window; a slice of the caller cannot overlap it, because no reference into a mapping is ever handed out.
        unsafe {
            self.map.as_mut_ptr().add(self.start + at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        prefetch::append(self.map.as_mut_ptr().wrapping_add(self.start + at + bytes.len()));
    }
}
