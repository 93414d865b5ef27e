//! Opening: what was published comes back, what was not adopted is free, and damage is told precisely.

use std::sync::Arc;

use betree_pager::{BLOCK, Epoch, Error, FILE_NAME, MAX_PAYLOAD, Pager, dump};

use crate::common::{assert_stamp, disk, fill, read, small};

#[test]
fn a_published_payload_and_its_pages_come_back_and_the_rest_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let uuid = pager.uuid();
    let lost = Arc::new(pager.allocate(3 * BLOCK).unwrap());
    let kept = Arc::new(pager.allocate(2 * BLOCK).unwrap());
    let checksums = fill(&pager, &kept, 5).unwrap();
    pager.publish(Epoch(1), b"one").unwrap();
    pager.publish(Epoch(2), b"two").unwrap();
    let (offset, len) = (kept.offset(), kept.len());
    drop((kept, lost, pager));

    let (pager, published) = Pager::open(disk(&dir), small()).unwrap();
    let published = published.unwrap();
    assert_eq!((published.epoch, &published.payload[..]), (Epoch(2), &b"two"[..]));
    assert_eq!((published.uuid, pager.uuid(), pager.epoch()), (uuid, uuid, Epoch(2)));
    let kept = pager.adopt(offset, len).unwrap();
    pager.finish_recovery();
    assert_stamp(&read(&pager, &kept, BLOCK as u32, checksums[1]).unwrap(), 5);
    let stats = pager.stats();
    assert_eq!(stats.allocated_bytes, 2 * BLOCK as u64);
    assert_eq!(stats.free_bytes + stats.allocated_bytes + (64 << 10), stats.file_bytes);
    let again = pager.allocate(3 * BLOCK).unwrap();
    assert_eq!(again.offset(), 64 << 10);
}

#[test]
fn a_file_never_published_opens_as_new() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let extent = pager.allocate(BLOCK).unwrap();
    drop((extent, pager));
    let (pager, published) = Pager::open(disk(&dir), small()).unwrap();
    assert!(published.is_none());
    pager.allocate(BLOCK).unwrap();
    pager.publish(Epoch(1), b"").unwrap();
}

#[test]
fn an_unfinished_creation_is_swept_away() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data.betree.new"), b"half").unwrap();
    assert!(Pager::open(disk(&dir), small()).unwrap().1.is_none());
    assert!(!dir.path().join("data.betree.new").exists());
}

#[test]
fn without_create_a_missing_file_is_an_error_and_stays_missing() {
    let dir = tempfile::tempdir().unwrap();
    let options = betree_pager::Options { create: false, ..small() };
    assert!(matches!(Pager::open(disk(&dir), options), Err(Error::Missing { .. })));
    assert!(!dir.path().join(FILE_NAME).exists());
}

#[test]
fn extents_that_overlap_or_leave_the_file_are_located_corruption() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let all = pager.allocate(10 * BLOCK).unwrap();
    pager.publish(Epoch(1), b"").unwrap();
    drop((all, pager));
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let (start, block) = (64 << 10, BLOCK as u32);
    let _middle = pager.adopt(start + 2 * BLOCK as u64, 3 * block).unwrap();
    let overlapping = [(2, 1), (1, 2), (4, 1), (4, 5), (0, 10), (2, 3), (3, 1)];
    for (at, len) in overlapping {
        match pager.adopt(start + at * BLOCK as u64, len * block) {
            Err(Error::Corruption { what: "extent.owned_once", offset, .. }) => {
                assert_eq!(offset, start + at * BLOCK as u64);
            }
            other => panic!("{len} blocks at {at}: {other:?}"),
        }
    }
    let outside =
        [(0, block), (start - 4096, block), (start + 1, block), (start, 0), (start, 100), (1 << 40, block)];
    for (offset, len) in outside.into_iter().chain([(u64::MAX - 4095, block), (start, u32::MAX - 4095)]) {
        let error = pager.adopt(offset, len).unwrap_err();
        assert!(
            matches!(error, Error::Corruption { what: "extent bounds", .. }),
            "{len} at {offset}: {error}"
        );
    }
    let _below = pager.adopt(start, 2 * block).unwrap();
    let _above = pager.adopt(start + 5 * BLOCK as u64, block).unwrap();
}

#[test]
fn one_damaged_copy_is_repaired_by_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    for epoch in 1..=3 {
        pager.publish(Epoch(epoch), &[epoch as u8]).unwrap();
    }
    drop(pager);
    let path = dir.path().join(FILE_NAME);
    let intact = std::fs::read(&path).unwrap();
    for at in (0..4096).step_by(101).flat_map(|at| [2usize, 3].map(|slot| slot * (16 << 10) + at)) {
        let mut bytes = intact.clone();
        bytes[at] ^= 0x20;
        std::fs::write(&path, bytes).unwrap();
        let (_, published) = Pager::open(disk(&dir), small()).unwrap();
        assert_eq!(published.unwrap().epoch, Epoch(3));
        assert_eq!(std::fs::read(&path).unwrap(), intact, "byte {at}");
    }
}

#[test]
fn foreign_short_empty_wiped_and_cut_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let extent = pager.allocate(BLOCK).unwrap();
    pager.publish(Epoch(1), b"x").unwrap();
    drop((extent, pager));
    let path = dir.path().join(FILE_NAME);
    let intact = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Pager::open(disk(&dir), small()).map(|(_, published)| published.map(|s| s.epoch))
    };
    assert_eq!(open(&intact).unwrap(), Some(Epoch(1)));
    assert!(matches!(open(&[b'x'; 1 << 17]), Err(Error::NotOurs { .. })));
    for len in [0, 100, 4096, 40_000, (64 << 10) + 4095] {
        let error = open(&intact[..len]).unwrap_err();
        assert!(matches!(error, Error::Corruption { .. }), "{len}: {error}");
    }
    assert!(matches!(open(&[0; 1 << 17]), Err(Error::Corruption { .. })));
}

#[test]
fn a_payload_over_the_limit_is_refused_and_the_pager_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let error = pager.publish(Epoch(1), &[1; MAX_PAYLOAD + 1]).unwrap_err();
    assert!(matches!(error, Error::TooLong { limit: 3072, .. }));
    pager.publish(Epoch(1), &[1; MAX_PAYLOAD]).unwrap();
    drop(pager);
    let (_, published) = Pager::open(disk(&dir), small()).unwrap();
    assert_eq!(published.unwrap().payload, [1; MAX_PAYLOAD]);
}

#[test]
fn the_dump_shows_every_slot_and_the_choice() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    pager.publish(Epoch(1), b"\x01\xff").unwrap();
    let mut text = Vec::new();
    dump(&*disk(&dir), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let expected = "data.betree: 65536 bytes
slot 0 at 0: epoch 0, uuid 00000000000000000000000000000007, file length 65536, payload of 0 bytes
slot 1 at 16384: epoch 0, uuid 00000000000000000000000000000007, file length 65536, payload of 0 bytes
slot 2 at 32768: epoch 1, uuid 00000000000000000000000000000007, file length 65536, payload of 2 bytes 01ff
slot 3 at 49152: epoch 1, uuid 00000000000000000000000000000007, file length 65536, payload of 2 bytes 01ff
opens at epoch 1
";
    assert_eq!(text, expected);
}
