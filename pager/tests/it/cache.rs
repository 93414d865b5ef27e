//! The cache in use: concurrent readers over a budget far smaller than the data.

use std::sync::Arc;

use betree_pager::{BLOCK, Options, PageKind, PageRef, Pager};

use crate::common::{Random, assert_stamp, disk, fill, refs, small};

#[test]
fn concurrent_readers_get_the_right_pages_within_the_budget() {
    let seed = 0x5eed_0004;
    println!("seed {seed:#x}");
    let dir = tempfile::tempdir().unwrap();
    let options = Options { cache_bytes: 512 << 10, ..small() };
    let (pager, _) = Pager::open(disk(&dir), options).unwrap();
    let written: Vec<_> = (0..20)
        .map(|stamp| {
            let extent = Arc::new(pager.allocate(16 * BLOCK).unwrap());
            let checksums = fill(&pager, &extent, stamp).unwrap();
            (extent, checksums)
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            let (pager, written) = (&pager, &written);
            scope.spawn(move || {
                let mut random = Random(seed * thread);
                for _ in 0..300 {
                    let picks: Vec<_> = (0..1 + random.below(8))
                        .map(|_| (random.below(20) as usize, random.below(16) as usize))
                        .collect();
                    let wants: Vec<_> = picks
                        .iter()
                        .map(|&(extent, block)| PageRef {
                            extent: &written[extent].0,
                            at: (block * BLOCK) as u32,
                            len: BLOCK as u32,
                            expected: written[extent].1[block],
                            kind: PageKind::Data,
                            keep: true,
                        })
                        .collect();
                    for (page, &(extent, _)) in pager.get_many(&wants).iter().zip(&picks) {
                        assert_stamp(page.as_ref().unwrap(), extent as u64);
                    }
                    let cache = pager.stats().cache;
                    assert!(cache.bytes <= cache.budget);
                }
            });
        }
    });
    let cache = pager.stats().cache;
    assert!(cache.data.hits > 0 && cache.evictions > 0);
}

#[test]
fn a_reused_place_never_serves_the_former_owners_page() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let first = Arc::new(pager.allocate(BLOCK).unwrap());
    let old = fill(&pager, &first, 1).unwrap();
    let page = pager.get(&first, 0, BLOCK as u32, old[0], PageKind::Data).unwrap();
    let place = first.offset();
    drop(first);
    let second = Arc::new(pager.allocate(BLOCK).unwrap());
    assert_eq!(second.offset(), place);
    let new = fill(&pager, &second, 2).unwrap();
    assert_stamp(&pager.get(&second, 0, BLOCK as u32, new[0], PageKind::Data).unwrap(), 2);
    assert_stamp(&page, 1);
}

#[test]
fn a_page_brings_those_beside_it_while_all_that_is_stored_fits() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let extent = Arc::new(pager.allocate(32 * BLOCK).unwrap());
    let mut checksums = fill(&pager, &extent, 5).unwrap();
    checksums[2] ^= 1;
    let wants = refs(&extent, &checksums);
    let get = |index: usize| {
        let beside = &wants[index / 16 * 16..][..16];
        pager.get_around(wants[index], || beside.to_vec())
    };
    assert_stamp(&get(7).unwrap(), 5);
    assert_eq!((pager.stats().reads, pager.stats().read_bytes), (1, 16 * BLOCK as u64));
    let cached = || wants.iter().map(|&want| pager.cached(want).is_some()).collect::<Vec<_>>();
    let expected: Vec<_> = (0..32).map(|index| index < 16 && index != 2).collect();
    assert_eq!(cached(), expected);
    assert_stamp(&get(15).unwrap(), 5);
    assert_eq!(pager.stats().reads, 1);
    assert!(get(2).unwrap_err().is_corruption());
    let misses = pager.stats().cache.data.misses;
    assert_eq!(misses, 2, "what is read beside a page was not looked for");
    // The file keeps its pages, the cache is smaller than they are.
    pager.set_cache_bytes(31 * BLOCK);
    let before = pager.stats().reads;
    assert_stamp(&get(20).unwrap(), 5);
    assert_stamp(&get(21).unwrap(), 5);
    assert_eq!(pager.stats().reads, before + 2);
}
