//! What the tests share: small options, pages with recognisable content, a directory.

use std::sync::Arc;

use betree_pager::{BLOCK, Extent, Options, Page, PageKind, PageRef, Pager};
use betree_storage::{AlignedBuf, Backend, DiskStorage, Storage};

/// Grows in steps of 16 blocks, without a reserve.
pub fn small() -> Options {
    Options { cache_bytes: 1 << 20, min_growth: 64 << 10, reserve: 0, uuid: Some(7), ..Options::default() }
}

/// A directory on the real disk.
pub fn disk(dir: &tempfile::TempDir) -> Arc<dyn Storage> {
    DiskStorage::open(dir.path(), Backend::Auto).unwrap()
}

/// A page of one block whose content tells `stamp`.
pub fn page_bytes(stamp: u64) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(BLOCK);
    for (i, chunk) in buf.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&(stamp << 16 | i as u64).to_le_bytes());
    }
    buf
}

/// Writes a sealed page for every block of the extent and returns their checksums.
pub fn fill(pager: &Pager, extent: &Arc<Extent>, stamp: u64) -> betree_pager::Result<Vec<u32>> {
    let mut io = pager.io()?;
    let mut checksums = Vec::new();
    for at in (0..extent.len()).step_by(BLOCK) {
        let mut page = page_bytes(stamp);
        checksums.push(pager.seal(&mut page, extent.offset() + u64::from(at)));
        io.submit_write(extent, at, page, u64::from(at));
    }
    io.finish()?;
    Ok(checksums)
}

/// The pages of one block each that [`fill`] wrote, to be kept when they are read.
pub fn refs<'a>(extent: &'a Extent, checksums: &[u32]) -> Vec<PageRef<'a>> {
    let place = |(at, &expected)| {
        let (at, len) = ((at * BLOCK) as u32, BLOCK as u32);
        PageRef { extent, at, len, expected, kind: PageKind::Data, keep: true }
    };
    checksums.iter().enumerate().map(place).collect()
}

/// Reads a page written by [`fill`].
pub fn read(pager: &Pager, extent: &Extent, at: u32, checksum: u32) -> betree_pager::Result<Page> {
    pager.get(extent, at, BLOCK as u32, checksum, PageKind::Data)
}

/// Asserts that the page is the one of `stamp`.
pub fn assert_stamp(page: &Page, stamp: u64) {
    assert_eq!(page[8..], page_bytes(stamp)[8..]);
}

/// A small generator: the seed is printed by the test that makes it.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}
