//! What every storage backend must do, written once over the traits.
//!
//! Called by the integration tests of `storage` (both backends, a real directory) and of this crate (the simulated
//! disk). Each check gets a storage over an empty directory, on a file system that can punch holes.

use std::io::IoSliceMut;
use std::sync::Arc;

use betree_storage::{
    ALIGN, AlignedBuf, Caching, Completion, Error, File, OpenMode, Pages, Request, Ring, Storage,
};

use crate::Rng;

/// A named check.
pub type Check = (&'static str, fn(&Arc<dyn Storage>));

/// All checks.
pub const CHECKS: &[Check] = &[
    ("files_are_created_once_and_found_again", files_are_created_once_and_found_again),
    ("names_with_separators_are_refused", names_with_separators_are_refused),
    ("renaming_replaces_the_target", renaming_replaces_the_target),
    ("the_directory_is_locked_once", the_directory_is_locked_once),
    ("written_bytes_are_read_back", written_bytes_are_read_back),
    ("several_buffers_are_filled_one_after_the_other", several_buffers_are_filled_one_after_the_other),
    ("a_read_past_the_end_is_an_error", a_read_past_the_end_is_an_error),
    ("changing_the_length_cuts_and_extends_with_zeros", changing_the_length_cuts_and_extends_with_zeros),
    ("allocated_space_reads_as_zeros", allocated_space_reads_as_zeros),
    ("a_punched_hole_reads_as_zeros", a_punched_hole_reads_as_zeros),
    ("a_zeroed_range_reads_as_zeros_and_the_rest_stays", a_zeroed_range_reads_as_zeros_and_the_rest_stays),
    ("a_removed_file_stays_readable_through_its_handle", a_removed_file_stays_readable_through_its_handle),
    (
        "what_is_copied_into_a_window_is_read_from_the_file",
        what_is_copied_into_a_window_is_read_from_the_file,
    ),
    (
        "windows_of_all_kinds_of_pages_lie_beside_one_another",
        windows_of_all_kinds_of_pages_lie_beside_one_another,
    ),
    ("a_window_needs_allocated_space", a_window_needs_allocated_space),
    ("a_ring_writes_syncs_and_reads", a_ring_writes_syncs_and_reads),
    ("a_ring_takes_more_than_its_depth", a_ring_takes_more_than_its_depth),
    ("a_ring_reports_reads_past_the_end_and_goes_on", a_ring_reports_reads_past_the_end_and_goes_on),
    ("a_dropped_ring_has_carried_out_its_writes", a_dropped_ring_has_carried_out_its_writes),
    ("a_ring_moves_between_threads_with_requests_in_flight", a_ring_moves_between_threads),
    ("identities_differ_and_the_clock_never_goes_back", identities_differ_and_the_clock_never_goes_back),
    ("random_requests_equal_a_plain_array", random_requests_equal_a_plain_array),
];

/// Runs every check, each on a fresh storage.
pub fn run_all(fresh: impl Fn() -> Arc<dyn Storage>) {
    for (name, check) in CHECKS {
        let storage = fresh();
        println!("{} {name}", storage.backend());
        check(&storage);
    }
}

fn create(storage: &Arc<dyn Storage>, name: &str, caching: Caching) -> Arc<dyn File> {
    storage.open(name, OpenMode::CreateNew, caching).unwrap()
}

fn identities_differ_and_the_clock_never_goes_back(storage: &Arc<dyn Storage>) {
    let drawn: std::collections::BTreeSet<u128> = (0..100).map(|_| storage.entropy()).collect();
    assert_eq!(drawn.len(), 100);
    let before = storage.now();
    storage.pause(std::time::Duration::from_millis(1));
    let after = storage.now();
    assert!(after >= before + std::time::Duration::from_millis(1), "{before:?}, then {after:?}");
    storage.sync_dir().unwrap();
    assert!(storage.now() >= after);
}

fn files_are_created_once_and_found_again(storage: &Arc<dyn Storage>) {
    assert!(matches!(storage.open("b", OpenMode::Existing, Caching::Buffered), Err(Error::NotFound { .. })));
    create(storage, "b", Caching::Buffered).write_at(0, b"content").unwrap();
    create(storage, "a", Caching::Direct);
    assert!(matches!(storage.open("b", OpenMode::CreateNew, Caching::Buffered), Err(Error::Exists { .. })));
    storage.sync_dir().unwrap();
    let lock = storage.lock().unwrap();
    assert_eq!(storage.list().unwrap(), ["a", "b"], "sorted, and without the lock");
    drop(lock);
    let b = storage.open("b", OpenMode::Existing, Caching::Buffered).unwrap();
    assert_eq!((b.name(), b.len().unwrap()), ("b", 7));
    storage.remove("b").unwrap();
    assert!(matches!(storage.remove("b"), Err(Error::NotFound { .. })));
    assert_eq!(storage.list().unwrap(), ["a"]);
}

fn names_with_separators_are_refused(storage: &Arc<dyn Storage>) {
    for name in ["", ".", "..", "a/b", "../a", "LOCK", "nul\0"] {
        assert!(storage.open(name, OpenMode::CreateNew, Caching::Buffered).is_err(), "{name:?}");
        assert!(storage.remove(name).is_err(), "{name:?}");
    }
    assert!(storage.list().unwrap().is_empty());
}

fn renaming_replaces_the_target(storage: &Arc<dyn Storage>) {
    create(storage, "new", Caching::Buffered).write_at(0, b"new").unwrap();
    create(storage, "old", Caching::Buffered).write_at(0, b"older").unwrap();
    storage.rename("new", "old").unwrap();
    storage.sync_dir().unwrap();
    assert_eq!(storage.list().unwrap(), ["old"]);
    let file = storage.open("old", OpenMode::Existing, Caching::Buffered).unwrap();
    assert_eq!(read(&*file, 0, 3), b"new");
    assert!(matches!(storage.rename("new", "old"), Err(Error::NotFound { .. })));
}

fn the_directory_is_locked_once(storage: &Arc<dyn Storage>) {
    let held = storage.lock().unwrap();
    assert!(matches!(storage.lock(), Err(Error::Locked { .. })));
    drop(held);
    drop(storage.lock().unwrap());
}

fn written_bytes_are_read_back(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Buffered);
    assert!(file.is_empty().unwrap());
    file.write_at(10, b"hello").unwrap();
    file.sync().unwrap();
    assert_eq!(file.len().unwrap(), 15);
    assert_eq!(read(&*file, 8, 7), b"\0\0hello");

    let direct = create(storage, "d", Caching::Direct);
    let page = AlignedBuf::copy_of(&[5; 2 * ALIGN]);
    direct.write_at(ALIGN as u64, &page).unwrap();
    direct.sync().unwrap();
    direct.start_write_back(0, 3 * ALIGN as u64);
    direct.drop_cache(0, 3 * ALIGN as u64);
    let mut back = AlignedBuf::copy_of(&[1; 3 * ALIGN]);
    direct.read_at(0, &mut back).unwrap();
    assert!(back[..ALIGN].iter().all(|&b| b == 0) && back[ALIGN..].iter().all(|&b| b == 5));
}

fn several_buffers_are_filled_one_after_the_other(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Buffered);
    file.write_at(0, b"0123456789").unwrap();
    let (mut first, mut none, mut last) = ([0; 3], [], [0; 5]);
    let mut bufs = [&mut first[..], &mut none, &mut last].map(IoSliceMut::new);
    file.read_vectored_at(1, &mut bufs).unwrap();
    assert_eq!((&first, &last), (b"123", b"45678"));
    file.read_vectored_at(100, &mut []).unwrap();
    let mut bufs = [&mut first[..], &mut last].map(IoSliceMut::new);
    assert!(matches!(file.read_vectored_at(3, &mut bufs), Err(Error::ShortRead { .. })));

    // More of them than a system call takes.
    let many = 3000;
    let direct = create(storage, "d", Caching::Direct);
    let mut written = AlignedBuf::zeroed(many * ALIGN);
    written.chunks_mut(ALIGN).enumerate().for_each(|(i, page)| page.fill(i as u8));
    direct.write_at(0, &written).unwrap();
    let mut back: Vec<_> = (1..many).map(|_| AlignedBuf::zeroed(ALIGN)).collect();
    let mut bufs: Vec<_> = back.iter_mut().map(|page| IoSliceMut::new(page)).collect();
    direct.read_vectored_at(ALIGN as u64, &mut bufs).unwrap();
    assert!(back.iter().zip(1..).all(|(page, i)| page.iter().all(|&byte| byte == i as u8)));
}

fn a_read_past_the_end_is_an_error(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Buffered);
    file.write_at(0, b"12345").unwrap();
    let mut buf = [0; 6];
    assert!(matches!(file.read_at(0, &mut buf), Err(Error::ShortRead { offset: 0, len: 6, .. })));
    assert!(matches!(file.read_at(5, &mut buf[..1]), Err(Error::ShortRead { .. })));
    file.read_at(4, &mut buf[..1]).unwrap();
    assert_eq!(buf[0], b'5');

    let direct = create(storage, "d", Caching::Direct);
    direct.set_len(ALIGN as u64 + 100).unwrap();
    let mut buf = AlignedBuf::zeroed(2 * ALIGN);
    assert!(matches!(direct.read_at(0, &mut buf), Err(Error::ShortRead { .. })));
}

fn changing_the_length_cuts_and_extends_with_zeros(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Buffered);
    file.write_at(0, &[7; 9000]).unwrap();
    file.set_len(5000).unwrap();
    file.set_len(9000).unwrap();
    let bytes = read(&*file, 0, 9000);
    assert!(bytes[..5000].iter().all(|&b| b == 7) && bytes[5000..].iter().all(|&b| b == 0));
}

fn allocated_space_reads_as_zeros(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    file.allocate(ALIGN as u64, 64 * ALIGN as u64).unwrap();
    assert_eq!(file.len().unwrap(), 65 * ALIGN as u64);
    let mut buf = AlignedBuf::copy_of(&vec![1; 65 * ALIGN]);
    file.read_at(0, &mut buf).unwrap();
    assert!(buf.iter().all(|&b| b == 0));
    buf.truncate(ALIGN);
    buf.fill(3);
    file.write_at(2 * ALIGN as u64, &buf).unwrap();
    file.allocate(0, 8 * ALIGN as u64).unwrap();
    file.read_at(2 * ALIGN as u64, &mut buf).unwrap();
    assert!(buf.iter().all(|&b| b == 3), "allocating keeps what was written");
    assert_eq!(file.len().unwrap(), 65 * ALIGN as u64);
}

fn a_punched_hole_reads_as_zeros(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    file.write_at(0, &AlignedBuf::copy_of(&[9; 4 * ALIGN])).unwrap();
    file.punch_hole(ALIGN as u64, 2 * ALIGN as u64).unwrap();
    let mut buf = AlignedBuf::zeroed(4 * ALIGN);
    file.read_at(0, &mut buf).unwrap();
    assert!(buf[..ALIGN].iter().chain(&buf[3 * ALIGN..]).all(|&b| b == 9));
    assert!(buf[ALIGN..3 * ALIGN].iter().all(|&b| b == 0));
}

fn a_zeroed_range_reads_as_zeros_and_the_rest_stays(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    file.write_at(0, &AlignedBuf::copy_of(&[9; 4 * ALIGN])).unwrap();
    file.zero_range(ALIGN as u64, 2 * ALIGN as u64).unwrap();
    let mut buf = AlignedBuf::zeroed(4 * ALIGN);
    file.read_at(0, &mut buf).unwrap();
    assert!(buf[..ALIGN].iter().chain(&buf[3 * ALIGN..]).all(|&b| b == 9));
    assert!(buf[ALIGN..3 * ALIGN].iter().all(|&b| b == 0));
    assert_eq!(file.len().unwrap(), 4 * ALIGN as u64);
}

fn a_removed_file_stays_readable_through_its_handle(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Buffered);
    file.write_at(0, b"still here").unwrap();
    storage.remove("f").unwrap();
    storage.sync_dir().unwrap();
    create(storage, "f", Caching::Buffered).write_at(0, b"another").unwrap();
    assert_eq!(read(&*file, 0, 10), b"still here");
    file.sync().unwrap();
}

fn what_is_copied_into_a_window_is_read_from_the_file(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Buffered);
    file.allocate(0, 4 * ALIGN as u64).unwrap();
    let mut window = file.window(ALIGN as u64, 2 * ALIGN, Pages::Single).unwrap();
    assert_eq!(window.len(), 2 * ALIGN);
    window.copy_in(100, b"record");
    window.copy_in(2 * ALIGN - 3, b"end");
    window.copy_in(2 * ALIGN, b"");
    file.sync().unwrap();
    assert_eq!(read(&*file, ALIGN as u64 + 99, 8), b"\0record\0");
    assert_eq!(read(&*file, 3 * ALIGN as u64 - 3, 4), b"end\0");
    // The window stays usable when the file handle is gone, and on another thread.
    drop(file);
    std::thread::spawn(move || window.copy_in(0, b"x")).join().unwrap();
    let file = storage.open("f", OpenMode::Existing, Caching::Buffered).unwrap();
    assert_eq!(read(&*file, ALIGN as u64, 1), b"x");
}

fn windows_of_all_kinds_of_pages_lie_beside_one_another(storage: &Arc<dyn Storage>) {
    const LEN: usize = 512 << 10;
    let file = create(storage, "f", Caching::Buffered);
    // Not a multiple of what a large window maps.
    file.allocate(0, 5 * LEN as u64 + ALIGN as u64).unwrap();
    let kinds = [Pages::OnDemand, Pages::Large, Pages::Single, Pages::Large, Pages::Large];
    let mut windows = Vec::new();
    for (i, pages) in kinds.into_iter().enumerate() {
        let mut window = file.window((i * LEN) as u64, LEN, pages).unwrap();
        window.copy_in(0, &[i as u8 + 1; 3]);
        window.copy_in(LEN - 3, &[i as u8 + 101; 3]);
        windows.push(window);
    }
    let mut last = file.window(5 * LEN as u64, ALIGN, Pages::Large).unwrap();
    file.sync().unwrap();
    last.copy_in(ALIGN - 1, b"z");
    for (i, window) in windows.iter_mut().enumerate() {
        window.copy_in(LEN / 2, &[i as u8 + 201]);
    }
    drop((windows, last));
    file.sync().unwrap();
    for i in 0..kinds.len() {
        let bytes = read(&*file, (i * LEN) as u64, LEN);
        let stored: Vec<(usize, u8)> =
            bytes.iter().enumerate().filter(|(_, b)| **b != 0).map(|(at, b)| (at, *b)).collect();
        let (low, middle, high) = (i as u8 + 1, i as u8 + 201, i as u8 + 101);
        let expected = [0, 1, 2, LEN / 2, LEN - 3, LEN - 2, LEN - 1].map(|at| {
            (
                at,
                if at < 3 {
                    low
                } else if at == LEN / 2 {
                    middle
                } else {
                    high
                },
            )
        });
        assert_eq!(stored, expected, "window {i}");
    }
    assert_eq!(read(&*file, 5 * LEN as u64 + ALIGN as u64 - 2, 2), b"\0z");
}

fn a_window_needs_allocated_space(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Buffered);
    assert!(file.window(0, ALIGN, Pages::OnDemand).is_err());
    file.allocate(0, ALIGN as u64).unwrap();
    for pages in [Pages::OnDemand, Pages::Single, Pages::Large] {
        assert!(file.window(0, ALIGN + 1, pages).is_err());
        assert!(file.window(0, 0, pages).is_err());
        assert!(file.window(u64::MAX, ALIGN, pages).is_err());
        assert!(file.window(0, ALIGN, pages).is_ok());
    }
}

fn a_ring_writes_syncs_and_reads(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    let mut ring = storage.ring(8).unwrap();
    let mut batch: Vec<_> =
        (0..8u64).map(|i| (i, write(&file, i * ALIGN as u64, &[i as u8 + 1; ALIGN]))).collect();
    ring.submit(&mut batch);
    assert!(batch.is_empty());
    assert_eq!(ring.in_flight(), 8);
    let done = drain(&mut *ring);
    assert_eq!(done.len(), 8);
    assert!(done.iter().all(|c| c.result.is_ok() && c.buf.as_ref().is_some_and(|b| b.len() == ALIGN)));
    ring.submit(&mut vec![(99, Request::Sync { file: Arc::clone(&file) })]);
    let done = drain(&mut *ring);
    assert!(matches!(&done[..], [Completion { token: 99, buf: None, result: Ok(()) }]));
    ring.submit(&mut (0..4u64).map(|i| (i, read_request(&file, i * 2 * ALIGN as u64, 2 * ALIGN))).collect());
    for completion in drain(&mut *ring) {
        completion.result.unwrap();
        let (buf, first) = (completion.buf.unwrap(), completion.token as u8 * 2 + 1);
        assert!(buf[..ALIGN].iter().all(|&b| b == first) && buf[ALIGN..].iter().all(|&b| b == first + 1));
    }
}

fn a_ring_takes_more_than_its_depth(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    for depth in [0, 1, 3] {
        let mut ring = storage.ring(depth).unwrap();
        let mut batch = (0..50u64).map(|i| (i, write(&file, i * ALIGN as u64, &[i as u8; ALIGN]))).collect();
        ring.submit(&mut batch);
        assert_eq!(ring.in_flight(), 50);
        let mut out = Vec::new();
        ring.wait(10, &mut out);
        assert!(out.len() >= 10 && out.len() + ring.in_flight() == 50);
        out.extend(drain(&mut *ring));
        let mut tokens: Vec<u64> = out.iter().map(|c| c.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..50).collect::<Vec<_>>());
        out.clear();
        ring.wait(5, &mut out);
        assert!(out.is_empty(), "waiting on an idle ring returns");
    }
}

fn a_ring_reports_reads_past_the_end_and_goes_on(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    file.set_len(2 * ALIGN as u64 + 700).unwrap();
    let mut ring = storage.ring(4).unwrap();
    let page = ALIGN as u64;
    ring.submit(&mut vec![
        (0, read_request(&file, 0, 2 * ALIGN)),
        (1, read_request(&file, page, 2 * ALIGN)),
        (2, read_request(&file, 8 * page, ALIGN)),
        (3, read_request(&file, 0, 0)),
    ]);
    let mut done = drain(&mut *ring);
    done.sort_by_key(|c| c.token);
    assert!(done[0].result.is_ok() && done[3].result.is_ok());
    assert!(
        matches!(&done[1].result, Err(Error::ShortRead { offset, len, .. }) if *offset == page && *len == 2 * ALIGN)
    );
    assert!(matches!(done[2].result, Err(Error::ShortRead { .. })));
    assert!(done.iter().all(|c| c.buf.is_some()), "the buffer comes back with an error too");
}

fn a_dropped_ring_has_carried_out_its_writes(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    let mut ring = storage.ring(16).unwrap();
    ring.submit(&mut (0..16u64).map(|i| (i, write(&file, i * ALIGN as u64, &[1; ALIGN]))).collect());
    drop(ring);
    let mut buf = AlignedBuf::zeroed(16 * ALIGN);
    file.read_at(0, &mut buf).unwrap();
    assert!(buf.iter().all(|&b| b == 1));
}

fn a_ring_moves_between_threads(storage: &Arc<dyn Storage>) {
    let file = create(storage, "f", Caching::Direct);
    file.allocate(0, 1 << 20).unwrap();
    let mut ring = storage.ring(32).unwrap();
    for round in 0..8u64 {
        let file = Arc::clone(&file);
        ring = std::thread::spawn(move || {
            let requests = (0..32u64).map(|i| (i, write(&file, i * 8 * ALIGN as u64, &[round as u8; ALIGN])));
            ring.submit(&mut requests.chain([(32, Request::Sync { file: Arc::clone(&file) })]).collect());
            ring
        })
        .join()
        .unwrap();
        let done = drain(&mut *ring);
        assert_eq!(done.len(), 33);
        for completion in done {
            completion.result.unwrap();
        }
    }
}

fn random_requests_equal_a_plain_array(storage: &Arc<dyn Storage>) {
    let seed = 42;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let pages = 64;
    let mut plain = vec![0u8; pages * ALIGN];
    let file = create(storage, "f", Caching::Direct);
    file.allocate(0, plain.len() as u64).unwrap();
    let mut ring = storage.ring(8).unwrap();
    for _ in 0..60 {
        // Disjoint pages per round: requests in flight are not ordered.
        let mut order: Vec<usize> = (0..pages).collect();
        rng.shuffle(&mut order);
        let mut batch = Vec::new();
        for &page in &order[..rng.index(24)] {
            let (place, offset) = (page * ALIGN..(page + 1) * ALIGN, (page * ALIGN) as u64);
            if rng.chance(0.5) {
                rng.fill(&mut plain[place.clone()]);
                batch.push((page as u64, write(&file, offset, &plain[place])));
            } else {
                batch.push((page as u64, read_request(&file, offset, ALIGN)));
            }
        }
        ring.submit(&mut batch);
        for completion in drain(&mut *ring) {
            completion.result.unwrap();
            let page = completion.token as usize;
            assert!(completion.buf.unwrap()[..] == plain[page * ALIGN..(page + 1) * ALIGN], "page {page}");
        }
    }
    file.sync().unwrap();
    let mut all = AlignedBuf::zeroed(plain.len());
    file.read_at(0, &mut all).unwrap();
    assert!(all[..] == plain[..]);
}

fn read(file: &dyn File, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    file.read_at(offset, &mut out).unwrap();
    out
}

fn write(file: &Arc<dyn File>, offset: u64, bytes: &[u8]) -> Request {
    Request::Write { file: Arc::clone(file), offset, buf: AlignedBuf::copy_of(bytes) }
}

fn read_request(file: &Arc<dyn File>, offset: u64, len: usize) -> Request {
    Request::Read { file: Arc::clone(file), offset, buf: AlignedBuf::zeroed(len) }
}

fn drain(ring: &mut dyn Ring) -> Vec<Completion> {
    let mut out = Vec::new();
    ring.wait(ring.in_flight(), &mut out);
    assert_eq!(ring.in_flight(), 0);
    out
}
