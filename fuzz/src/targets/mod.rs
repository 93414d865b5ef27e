//! The bodies of the fuzz targets: plain functions over bytes that panic when something does not hold.
//!
//! Called by the thin wrappers in `fuzz/cargo-fuzz/` with what a fuzzer makes up, and by a test with the kept corpus in `fuzz/corpus/`.
//! Checksums would stop a fuzzer, so targets set them, or call the decoder behind them. No locks.

mod batch;
mod log;
mod meta;
mod node;
mod ops;
mod page;
mod resp;
mod rows;
mod superblock;

pub use batch::batch;
pub use log::log;
pub use meta::meta;
pub use node::node;
pub use ops::ops;
pub use page::page;
pub use resp::resp;
pub use rows::rows;
pub use superblock::superblock;

/// A target's body.
pub type Target = fn(&[u8]);

/// All targets by name; a name is also that of the wrapper and of the folder of the corpus.
pub const ALL: [(&str, Target); 9] = [
    ("batch", batch),
    ("log", log),
    ("meta", meta),
    ("node", node),
    ("ops", ops),
    ("page", page),
    ("resp", resp),
    ("rows", rows),
    ("superblock", superblock),
];

/// Takes numbers off the front of a fuzzer's bytes; zeros when they are over.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn u8(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.u8()) % n
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}
