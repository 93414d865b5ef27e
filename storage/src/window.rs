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

use crate::Window;

/// A window over a mapping.
#[derive(Debug)]
pub(crate) struct MappedWindow {
    map: MmapRaw,
}

impl MappedWindow {
    /// Maps a range that the caller has found to lie inside the file.
    pub(crate) fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().offset(offset).len(len).map_raw(file)?;
        Ok(Self { map })
    }
}

impl Window for MappedWindow {
    fn len(&self) -> usize {
        self.map.len()
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        let end = at.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.map.len()),
            "{} bytes at {at} do not fit a window of {} bytes",
            bytes.len(),
            self.map.len()
        );
        // SAFETY: the assertion keeps the target inside the mapping, which lives as long as `self`; a slice of the
        // caller cannot overlap it, because no reference into a mapping is ever handed out.
        unsafe { self.map.as_mut_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    fn populate(&self, at: usize, len: usize) {
        let Some(len) = self.map.len().checked_sub(at).map(|rest| rest.min(len)) else { return };
        #[cfg(target_os = "linux")]
        if len != 0 {
            // A kernel older than 5.14 refuses; the first store then faults, which is all that is lost.
            let _refused = self.map.advise_range(memmap2::Advice::PopulateWrite, at, len);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = len;
    }
}
