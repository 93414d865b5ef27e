//! Allocation: no block has two owners, none is lost, and the file shrinks when it can.

use std::os::unix::fs::MetadataExt;

use betree_pager::{BLOCK, Epoch, Extent, FILE_NAME, Pager};

use crate::common::{Random, disk, small};

/// Compares the sum of all parts with the file and looks for overlaps.
fn check(pager: &Pager, extents: &[Extent]) {
    let stats = pager.stats();
    let held: u64 = extents.iter().map(|e| u64::from(e.len())).sum();
    assert_eq!(stats.allocated_bytes, held);
    assert_eq!(stats.allocated_bytes + stats.free_bytes + (64 << 10), stats.file_bytes);
    let mut places: Vec<_> = extents.iter().map(|e| (e.offset(), e.offset() + u64::from(e.len()))).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    assert!(places.iter().all(|&(start, end)| start >= 64 << 10 && end <= stats.file_bytes));
}

#[test]
fn random_allocation_checkpoints_and_reopening_never_share_or_lose_a_block() {
    let seed = 0x5eed_0003;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let mut extents: Vec<Extent> = Vec::new();
    let mut epoch = Epoch(0);
    for _ in 0..3000 {
        match random.below(100) {
            0..50 => extents.push(pager.allocate(1 + random.below(20 * BLOCK as u64) as usize).unwrap()),
            50..98 if !extents.is_empty() => {
                extents.swap_remove(random.below(extents.len() as u64) as usize);
            }
            98 => {
                epoch = epoch.next();
                pager.publish(epoch, b"").unwrap();
            }
            99 => {
                epoch = epoch.next();
                pager.publish(epoch, b"").unwrap();
                let places: Vec<_> = extents.drain(..).map(|e| (e.offset(), e.len())).collect();
                drop(pager);
                pager = Pager::open(disk(&dir), small()).unwrap().0;
                extents.extend(places.into_iter().map(|(offset, len)| pager.adopt(offset, len).unwrap()));
                pager.finish_recovery();
            }
            _ => {}
        }
        check(&pager, &extents);
    }
}

#[test]
fn the_free_tail_is_cut_after_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let keep = pager.allocate(BLOCK).unwrap();
    let large = pager.allocate(4 << 20).unwrap();
    pager.publish(Epoch(1), b"").unwrap();
    drop(large);
    let path = dir.path().join(FILE_NAME);
    pager.publish(Epoch(2), b"").unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    assert!(len <= 256 << 10, "{len}");
    assert_eq!(pager.stats().file_bytes, len);
    assert!(pager.stats().given_back_bytes >= 3 << 20);
    drop((keep, pager));
    Pager::open(disk(&dir), small()).unwrap();
}

#[test]
fn large_free_ranges_in_the_middle_are_punched_and_allocated_again() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let _first = pager.allocate(BLOCK).unwrap();
    let middle = pager.allocate(4 << 20).unwrap();
    let _last = pager.allocate(1 << 20).unwrap();
    pager.publish(Epoch(1), b"").unwrap();
    let before = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().blocks();
    drop(middle);
    pager.publish(Epoch(2), b"").unwrap();
    let after = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().blocks();
    assert!(after < before, "{before} blocks, then {after}");
    let unbacked = pager.stats().unbacked_bytes;
    assert!(unbacked >= 2 << 20, "{unbacked}");
    let file_bytes = pager.stats().file_bytes;
    let _again = pager.allocate(2 << 20).unwrap();
    assert_eq!(pager.stats().file_bytes, file_bytes);
    assert!(pager.stats().unbacked_bytes < unbacked);
}

#[test]
fn low_places_are_preferred_among_equals() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let extents: Vec<_> = (0..9).map(|_| pager.allocate(BLOCK).unwrap()).collect();
    let places: Vec<_> = extents.iter().map(Extent::offset).collect();
    let kept: Vec<_> = extents.into_iter().enumerate().filter(|(i, _)| i % 2 == 0).collect();
    let again: Vec<_> = (0..4).map(|_| pager.allocate(BLOCK).unwrap()).collect();
    assert_eq!(
        again.iter().map(Extent::offset).collect::<Vec<_>>(),
        [places[1], places[3], places[5], places[7]]
    );
    drop(kept);
}
