//! Superblocks: four slots made up by the fuzzer, checksums set or not; what decodes is encoded to the same bytes, and a file with the
//! slots opens with the newest of them or is refused.

use betree_pager::Pager;
use betree_pager::fuzzing::{decode_slot, encode_slot, seal_slot};
use betree_testkit::SimStorage;

const SLOT: usize = 4096;
const STRIDE: usize = 16 << 10;

/// The bytes: flags (bit i: slot i gets its checksum), then four pieces of equal length, one for each slot.
pub fn superblock(bytes: &[u8]) {
    let mut source = super::Source(bytes);
    let flags = source.u8();
    let piece = (source.0.len() / 4).min(SLOT);
    let mut file = vec![0; 4 * STRIDE + 16 * SLOT];
    let mut valid = Vec::new();
    for slot in 0..4 {
        let content = source.bytes(piece);
        let place = &mut file[slot * STRIDE..][..SLOT];
        place[..piece].copy_from_slice(&content);
        if flags >> slot & 1 == 1 {
            seal_slot(place, slot);
        }
        if let Some(superblock) = decode_slot(place, slot) {
            assert!(superblock.payload.len() <= betree_pager::MAX_PAYLOAD);
            assert_eq!(encode_slot(&superblock, slot), *place, "slot {slot} does not encode to what it was");
            valid.push(superblock);
        }
    }
    let disk = SimStorage::new(1);
    disk.put("data.betree", &file);
    let options = betree_pager::Options { cache_bytes: 1 << 16, create: false, ..Default::default() };
    let Ok((pager, found)) = Pager::open(disk.as_storage(), options) else { return };
    let newest = valid.iter().max_by_key(|superblock| superblock.epoch).expect("one was valid");
    assert!(valid.iter().all(|superblock| superblock.uuid == pager.uuid()), "slots of two files");
    assert_eq!(pager.epoch(), newest.epoch, "superblock.newest_valid_wins");
    match found {
        Some(found) => assert_eq!(found, *newest),
        None => assert_eq!(newest.epoch.0, 0, "a checkpoint went unnoticed"),
    }
}
