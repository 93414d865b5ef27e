//! Pages on the real disk: written, sealed, read back, and every way of being wrong found.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use betree_pager::{BLOCK, Error, Extent, FILE_NAME, Options, PageKind, PageRef, Pager, PagerIo};
use betree_storage::Storage;
use betree_testkit::SimStorage;

use crate::common::{assert_stamp, disk, fill, page_bytes, read, refs, small};

#[test]
fn pages_written_by_the_bulk_channel_are_read_one_by_one_and_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, published) = Pager::open(disk(&dir), small()).unwrap();
    assert!(published.is_none());
    let extent = Arc::new(pager.allocate(100 * BLOCK).unwrap());
    let checksums = fill(&pager, &extent, 9).unwrap();
    let first = read(&pager, &extent, 0, checksums[0]).unwrap();
    assert_stamp(&first, 9);
    let wants = refs(&extent, &checksums);
    for page in pager.get_many(&wants) {
        assert_stamp(&page.unwrap(), 9);
    }
    let stats = pager.stats();
    // The first page alone, then the other 99, which lie side by side, sixteen by one read.
    assert_eq!((stats.reads, stats.read_bytes), (1 + 7, 100 * BLOCK as u64));
    assert_eq!((stats.writes, stats.write_bytes), (100, 100 * BLOCK as u64));
    assert_eq!((stats.cache.data.hits, stats.cache.data.misses), (1, 100));
    for page in pager.get_many(&wants) {
        assert_stamp(&page.unwrap(), 9);
    }
    assert_eq!(pager.stats().reads, 1 + 7);
    assert_stamp(&pager.cached(wants[50]).unwrap(), 9);
}

#[test]
fn a_read_that_is_not_slept_through_gives_the_same_bytes_and_the_same_errors() {
    let several = std::thread::available_parallelism().unwrap().get() > 1;
    let mut errors = Vec::new();
    for busy_wait in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let storage = disk(&dir);
        // The first reads try how long it takes.
        let tried = busy_wait && several && storage.can_busy_wait();
        let (pager, _) = Pager::open(storage, Options { busy_wait, ..small() }).unwrap();
        let extent = Arc::new(pager.allocate(8 * BLOCK).unwrap());
        let checksums = fill(&pager, &extent, 5).unwrap();
        assert_stamp(&read(&pager, &extent, 0, checksums[0]).unwrap(), 5);
        let wants = refs(&extent, &checksums);
        for page in pager.get_many(&wants) {
            assert_stamp(&page.unwrap(), 5);
        }
        assert_eq!((pager.stats().reads, pager.stats().busy_reads), (2, if tried { 2 } else { 0 }));
        // A file that ends too early.
        let (pager, _) = Pager::open(disk(&dir), Options { busy_wait, ..small() }).unwrap();
        let extent = pager.allocate(8 * BLOCK).unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(extent.offset()).unwrap();
        errors.push(read(&pager, &Arc::new(extent), 0, 1).unwrap_err().to_string());
    }
    assert_eq!(errors[0], errors[1]);
}

#[test]
fn a_page_just_built_is_served_from_the_cache_before_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let extent = pager.allocate(BLOCK).unwrap();
    let mut page = page_bytes(3);
    let checksum = pager.seal(&mut page, extent.offset());
    pager.insert(&extent, 0, &page, PageKind::Meta);
    assert_stamp(&pager.get(&extent, 0, BLOCK as u32, checksum, PageKind::Meta).unwrap(), 3);
    assert_eq!((pager.stats().reads, pager.stats().cache.meta.hits), (0, 1));
}

#[test]
fn flipped_zeroed_swapped_and_stale_pages_are_located_corruption() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let extent = Arc::new(pager.allocate(2 * BLOCK).unwrap());
    let old = fill(&pager, &extent, 1).unwrap();
    let path = dir.path().join(FILE_NAME);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut stale = vec![0; 2 * BLOCK];
    file.read_exact_at(&mut stale, extent.offset()).unwrap();
    let checksums = fill(&pager, &extent, 2).unwrap();
    let mut good = vec![0; 2 * BLOCK];
    file.read_exact_at(&mut good, extent.offset()).unwrap();
    let swapped = [&good[BLOCK..], &good[..BLOCK]].concat();
    let mut flipped = good.clone();
    flipped[2000] ^= 4;
    flipped[BLOCK] ^= 1;
    for bad in [&flipped, &vec![0; 2 * BLOCK], &swapped, &stale] {
        file.write_all_at(bad, extent.offset()).unwrap();
        file.sync_all().unwrap();
        for (block, &checksum) in checksums.iter().enumerate() {
            let at = (block * BLOCK) as u32;
            match read(&pager, &extent, at, checksum) {
                Err(Error::Corruption { offset, .. }) => assert_eq!(offset, extent.offset() + u64::from(at)),
                other => panic!("{other:?}"),
            }
        }
        let want = |block: usize| PageRef {
            extent: &extent,
            at: (block * BLOCK) as u32,
            len: BLOCK as u32,
            expected: checksums[block],
            kind: PageKind::Data,
            keep: true,
        };
        assert!(pager.get_many(&[want(0), want(1)]).iter().all(Result::is_err));
    }
    assert!(
        read(&pager, &extent, 0, old[0]).is_ok(),
        "the stale page is intact, only its parent's copy differs"
    );
    file.write_all_at(&good, extent.offset()).unwrap();
    assert_stamp(&read(&pager, &extent, 0, checksums[0]).unwrap(), 2);
}

#[test]
fn a_reference_that_leaves_its_extent_is_corruption_and_reads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let extent = Arc::new(pager.allocate(2 * BLOCK).unwrap());
    let block = BLOCK as u32;
    for (at, len) in
        [(0, 0), (0, 3 * block), (block, 2 * block), (u32::MAX - 4095, block), (1, block), (0, 100)]
    {
        let result = pager.get(&extent, at, len, 0, PageKind::Data);
        assert!(result.unwrap_err().is_corruption(), "{len} at {at}");
    }
    let mut io = pager.io().unwrap();
    io.submit_read(&extent, 2 * block, BLOCK, 5);
    io.submit_write(&extent, block, betree_storage::AlignedBuf::zeroed(2 * BLOCK), 6);
    let mut done = Vec::new();
    io.wait(2, &mut done);
    assert!(done.iter().all(|c| c.result.is_err()) && done.len() == 2);
    assert_eq!((pager.stats().reads, pager.stats().writes), (0, 0));
}

#[test]
fn the_bulk_channel_answers_every_token_with_its_own_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let mut io = pager.io().unwrap();
    let extents: Vec<_> = (0..200).map(|_| Arc::new(pager.allocate(BLOCK).unwrap())).collect();
    for (i, extent) in extents.iter().enumerate() {
        io.submit_write(extent, 0, page_bytes(i as u64), i as u64);
    }
    assert_eq!(io.pending(), 200);
    io.finish().unwrap();
    for (i, extent) in extents.iter().enumerate() {
        io.submit_read(extent, 0, BLOCK, i as u64);
    }
    let mut done = Vec::new();
    while io.pending() > 0 {
        io.wait(1, &mut done);
    }
    let mut seen: Vec<_> = done
        .iter()
        .map(|completion| {
            assert_eq!(completion.buf[..], page_bytes(completion.token)[..]);
            completion.token
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
}

#[test]
fn an_extent_dropped_by_its_owner_lives_until_its_write_completes() {
    let dir = tempfile::tempdir().unwrap();
    let (pager, _) = Pager::open(disk(&dir), small()).unwrap();
    let mut io = pager.io().unwrap();
    let extent = Arc::new(pager.allocate(BLOCK).unwrap());
    let offset = extent.offset();
    io.submit_write(&extent, 0, page_bytes(1), 0);
    drop(extent);
    assert_ne!(pager.allocate(BLOCK).unwrap().offset(), offset);
    io.finish().unwrap();
    assert_eq!(pager.allocate(BLOCK).unwrap().offset(), offset);
}

/// Writes 12 blocks through `io` and says how many completed at each wait for one.
fn completed_at_once(io: &mut PagerIo, extent: &Arc<Extent>) -> Vec<usize> {
    for i in 0..12 {
        io.submit_write(extent, i * BLOCK as u32, page_bytes(u64::from(i)), 0);
    }
    io.kick();
    let mut counts = Vec::new();
    while io.pending() > 0 {
        let mut done = Vec::new();
        io.wait(1, &mut done);
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        counts.push(done.len());
    }
    counts
}

#[test]
fn a_background_channel_has_few_requests_in_flight_while_somebody_reads() {
    // The simulated disk may complete all that is in flight when one is waited for.
    let disk = SimStorage::new(5);
    let (pager, _) = Pager::open(disk.as_storage(), small()).unwrap();
    let extent = Arc::new(pager.allocate(12 * BLOCK).unwrap());
    let checksums = fill(&pager, &extent, 1).unwrap();
    let (mut background, mut foreground) = (pager.background_io().unwrap(), pager.io().unwrap());
    let alone = completed_at_once(&mut background, &extent);
    assert!(alone.len() < 12, "several in flight: {alone:?}");

    fill(&pager, &extent, 1).unwrap();
    read(&pager, &extent, 0, checksums[0]).unwrap();
    assert_eq!(completed_at_once(&mut background, &extent), [1; 12]);
    assert!(completed_at_once(&mut foreground, &extent).len() < 12, "others do not give way");
    // All of it was written.
    for i in 0..12 {
        background.submit_read(&extent, i * BLOCK as u32, BLOCK, u64::from(i));
    }
    let mut done = Vec::new();
    background.wait(12, &mut done);
    assert_eq!(done.len(), 12);
    assert!(done.iter().all(|completion| completion.buf[..] == page_bytes(completion.token)[..]));

    // As long as reads are quick there may be a few.
    let apart = Arc::new(pager.allocate(BLOCK).unwrap());
    let sums = fill(&pager, &apart, 2).unwrap();
    let unkept = PageRef { keep: false, ..refs(&apart, &sums)[0] };
    for _ in 0..300 {
        pager.get_ref(unkept).unwrap();
    }
    let beside_quick_reads = completed_at_once(&mut background, &extent);
    assert!(beside_quick_reads.iter().any(|&count| count > 1), "{beside_quick_reads:?}");
    assert!(beside_quick_reads.iter().all(|&count| count <= 4), "{beside_quick_reads:?}");
    // Reads that nobody times are no reason to have more than one.
    foreground.submit_read(&extent, 0, BLOCK, 0);
    foreground.finish().unwrap();
    assert_eq!(completed_at_once(&mut background, &extent), [1; 12]);

    // A read that the cache answers is none, and after a while nobody is expected.
    disk.pause(Duration::from_secs(2));
    read(&pager, &extent, 0, checksums[0]).unwrap();
    assert!(completed_at_once(&mut background, &extent).len() < 12);
}
