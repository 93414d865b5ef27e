//! Functions over bytes for fuzz targets, by the feature `fuzzing`, which is off unless asked for.
//!
//! Not part of the API: they change with the codecs. Called by the crate `betree-fuzz` only. No locks.

use crate::checksum::Sealer;
use crate::superblock::{self, SLOT_LEN, Slot, Superblock};

/// The superblock in slot `slot`, if it is valid.
#[must_use]
pub fn decode_slot(bytes: &[u8], slot: usize) -> Option<Superblock> {
    match superblock::decode(bytes, slot) {
        Slot::Valid(superblock) => Some(superblock),
        _ => None,
    }
}

/// The bytes of slot `slot`.
///
/// # Panics
/// When the payload is too long.
#[must_use]
pub fn encode_slot(superblock: &Superblock, slot: usize) -> Vec<u8> {
    let mut out = vec![0; SLOT_LEN];
    superblock::encode(superblock, slot, &mut out);
    out
}

/// Sets the checksum of slot `slot`.
///
/// # Panics
/// When the bytes are not those of a slot.
pub fn seal_slot(bytes: &mut [u8], slot: usize) {
    superblock::seal(bytes, slot);
}

/// Sets the checksum of a page of the file `uuid` and returns it.
///
/// # Panics
/// When the page is shorter than its checksum.
pub fn seal_page(uuid: u128, page: &mut [u8], file_offset: u64) -> u32 {
    Sealer::new(uuid).seal(page, file_offset)
}
