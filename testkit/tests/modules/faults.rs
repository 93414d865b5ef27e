//! Injected faults: each strikes where it was planned, is counted, and leaves what it should.

use std::sync::Arc;

use betree_storage::{AlignedBuf, Caching, Error, File, OpenMode, Pages, Request, Storage};
use betree_testkit::{FaultKind, SimStorage};

fn create(disk: &Arc<SimStorage>, name: &str) -> Arc<dyn File> {
    disk.open(name, OpenMode::CreateNew, Caching::Buffered).unwrap()
}

#[test]
fn planned_errors_strike_the_named_file_at_the_named_operation() {
    let disk = SimStorage::new(1);
    let (a, b) = (create(&disk, "a"), create(&disk, "b"));
    disk.inject(FaultKind::WriteError, "a", 1);
    disk.inject(FaultKind::ReadError, "", 0);
    b.write_at(0, b"x").unwrap();
    a.write_at(0, b"x").unwrap();
    b.write_at(0, b"x").unwrap();
    assert!(a.write_at(0, b"x").is_err());
    a.write_at(0, b"x").unwrap();
    assert!(b.read_at(0, &mut [0]).is_err());
    b.read_at(0, &mut [0]).unwrap();
    let counts = disk.injected();
    assert_eq!((counts[&FaultKind::WriteError], counts[&FaultKind::ReadError]), (1, 1));
}

#[test]
fn a_failed_sync_is_latched_and_its_data_may_never_become_durable() {
    let mut lost = 0;
    for seed in 0..100 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        disk.sync_dir().unwrap();
        file.write_at(0, &[1; 4096]).unwrap();
        disk.inject(FaultKind::SyncError, "", 0);
        let first = file.sync().unwrap_err();
        assert!(matches!(first, Error::SyncFailed { .. }));
        assert_eq!(file.sync().unwrap_err().to_string(), first.to_string(), "latched");
        // Another process syncs with success: the pages were dropped all the same.
        let disk = disk.kill();
        assert_eq!(disk.contents("f").unwrap(), vec![1; 4096]);
        disk.open("f", OpenMode::Existing, Caching::Buffered).unwrap().sync().unwrap();
        lost += usize::from(disk.crash().contents("f").unwrap() != vec![1; 4096]);
    }
    assert!((20..100).contains(&lost), "lost in {lost} of 100");
}

#[test]
fn a_failed_sync_of_a_ring_is_latched_too() {
    let disk = SimStorage::new(2);
    let file = create(&disk, "f");
    let mut ring = disk.ring(4).unwrap();
    disk.inject(FaultKind::SyncError, "f", 0);
    ring.submit(&mut vec![(1, Request::Sync { file: Arc::clone(&file) })]);
    let mut out = Vec::new();
    ring.wait(1, &mut out);
    assert!(matches!(out[0].result, Err(Error::SyncFailed { .. })));
    assert!(file.sync().is_err());
}

#[test]
fn a_full_device_refuses_writes_and_takes_them_again_when_space_is_freed() {
    let disk = SimStorage::new(3);
    disk.set_capacity(Some(64 << 10));
    let (a, b) = (create(&disk, "a"), create(&disk, "b"));
    a.allocate(0, 32 << 10).unwrap();
    b.write_at(0, &[1; 32 << 10]).unwrap();
    assert_eq!(disk.used_bytes(), 64 << 10);
    assert!(b.write_at(32 << 10, b"x").unwrap_err().is_no_space());
    assert!(a.allocate(0, 33 << 10).unwrap_err().is_no_space());
    a.write_at(0, &[2; 32 << 10]).unwrap();
    a.punch_hole(4096, 8192).unwrap();
    assert_eq!(disk.used_bytes(), 56 << 10);
    b.write_at(32 << 10, &[1; 8192]).unwrap();
    assert!(a.write_at(4096, b"x").unwrap_err().is_no_space());
    disk.remove("b").unwrap();
    assert_eq!(disk.used_bytes(), 24 << 10);
    a.set_len(100).unwrap();
    assert_eq!(disk.used_bytes(), 4096);
    disk.inject(FaultKind::NoSpace, "", 0);
    assert!(a.write_at(0, b"x").unwrap_err().is_no_space());
}

#[test]
fn lost_misdirected_and_flipped_writes_report_success() {
    let content = |kind| {
        let disk = SimStorage::new(4);
        let file = create(&disk, "f");
        file.write_at(0, &[0; 64 << 10]).unwrap();
        disk.inject(kind, "", 0);
        file.write_at(4096, &[255; 4096]).unwrap();
        let bytes = disk.contents("f").unwrap();
        let ones: u32 = bytes.iter().map(|b| b.count_ones()).sum();
        (bytes[4096..8192].iter().all(|&b| b == 255), ones)
    };
    assert_eq!(content(FaultKind::LostWrite), (false, 0));
    assert_eq!(content(FaultKind::MisdirectedWrite), (false, 8 * 4096));
    assert_eq!(content(FaultKind::FlippedBit), (false, 8 * 4096 - 1));
}

#[test]
fn a_short_write_leaves_a_part_and_a_short_read_fills_a_part_and_both_are_errors() {
    let (mut parts_written, mut parts_read) = (std::collections::BTreeSet::new(), 0);
    for seed in 0..50 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.write_at(0, &[1; 8192]).unwrap();
        disk.inject(FaultKind::ShortWrite, "f", 0);
        let error = file.write_at(0, &[2; 8192]).unwrap_err();
        assert!(matches!(&error, Error::Io { op: "write", offset: Some(0), .. }), "{error}");
        let bytes = disk.contents("f").unwrap();
        let written = bytes.iter().take_while(|&&b| b == 2).count();
        assert!((1..8192).contains(&written) && bytes[written..].iter().all(|&b| b == 1), "seed {seed}");
        parts_written.insert(written);

        disk.inject(FaultKind::ShortRead, "f", 0);
        let mut buf = [9; 8192];
        let error = file.read_at(0, &mut buf).unwrap_err();
        assert!(matches!(error, Error::ShortRead { offset: 0, len: 8192, .. }), "{error}");
        let read = buf.iter().take_while(|&&b| b != 9).count();
        assert!(read < 8192 && buf[..read] == bytes[..read] && buf[read..].iter().all(|&b| b == 9));
        parts_read += read;
        file.read_at(0, &mut buf).unwrap();
        assert_eq!(buf[..], bytes[..], "the next read is whole");
        let counts = disk.injected();
        assert_eq!((counts[&FaultKind::ShortWrite], counts[&FaultKind::ShortRead]), (1, 1));
    }
    assert!(parts_written.iter().any(|n| n % 512 != 0), "a short write keeps to no border");
    assert!(parts_written.len() > 20 && parts_read > 0);
}

#[test]
fn short_requests_of_a_ring_complete_with_the_error() {
    let disk = SimStorage::new(11);
    let file = create(&disk, "f");
    file.write_at(0, &[1; 4096]).unwrap();
    disk.inject(FaultKind::ShortRead, "f", 0);
    disk.inject(FaultKind::ShortWrite, "f", 0);
    let mut ring = disk.ring(4).unwrap();
    let (read, write) = (AlignedBuf::zeroed(4096), AlignedBuf::copy_of(&[2; 4096]));
    ring.submit(&mut vec![
        (1, Request::Read { file: Arc::clone(&file), offset: 0, buf: read }),
        (2, Request::Write { file: Arc::clone(&file), offset: 0, buf: write }),
    ]);
    let mut out = Vec::new();
    ring.wait(2, &mut out);
    out.sort_by_key(|completion| completion.token);
    assert!(matches!(out[0].result, Err(Error::ShortRead { .. })));
    assert!(matches!(out[1].result, Err(Error::Io { op: "write", .. })));
}

#[test]
fn what_power_losses_do_to_unsynced_writes_and_names_is_counted_by_kind() {
    let mut sums = std::collections::BTreeMap::new();
    for seed in 0..100 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.allocate(0, 64 << 10).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        create(&disk, "g");
        file.write_at(0, &[1; 4096]).unwrap();
        file.write_at(8192, &[2; 4096]).unwrap();
        let disk = disk.crash();
        let bytes = disk.contents("f").unwrap();
        let survived = |at: usize, byte| bytes[at..at + 4096].chunks(512).filter(|s| s[0] == byte).count();
        let (first, second) = (survived(0, 1), survived(8192, 2));
        let counts = disk.injected();
        let count = |kind| counts.get(&kind).copied().unwrap_or_default();
        let torn = [first, second].iter().filter(|n| (1..8).contains(*n)).count() as u64;
        assert_eq!(count(FaultKind::TornWrite), torn, "seed {seed}");
        assert_eq!(count(FaultKind::ReorderedWrite), u64::from(first < 8 && second > 0), "seed {seed}");
        assert_eq!(count(FaultKind::LostEntry), u64::from(disk.contents("g").is_none()), "seed {seed}");
        for (kind, n) in counts {
            *sums.entry(kind).or_insert(0) += n;
        }
    }
    assert!(sums.len() == 3 && sums.values().all(|n| *n > 10), "{sums:?}");
}

#[test]
fn tampering_changes_what_is_read_now_and_after_a_crash() {
    let disk = SimStorage::new(5);
    let file = create(&disk, "f");
    file.write_at(0, &[0; 1000]).unwrap();
    file.sync().unwrap();
    disk.sync_dir().unwrap();
    assert!(disk.flip_bit("f", 10, 3));
    assert!(disk.corrupt("f", 20..30));
    assert!(!disk.flip_bit("f", 1000, 0) && !disk.corrupt("f", 990..1001) && !disk.flip_bit("g", 0, 0));
    let bytes = disk.contents("f").unwrap();
    assert_eq!(bytes[10], 8);
    assert!(bytes[20..30].iter().all(|&b| b != 0));
    assert_eq!(bytes.iter().filter(|&&b| b != 0).count(), 11);
    assert_eq!(disk.crash().contents("f").unwrap(), bytes);
}

#[test]
fn a_bit_flipped_before_the_sync_is_still_flipped_after_it() {
    let disk = SimStorage::new(6);
    let file = create(&disk, "f");
    file.write_at(0, &[0; 100]).unwrap();
    disk.flip_bit("f", 50, 0);
    file.sync().unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.crash().contents("f").unwrap()[50], 1);
}

#[test]
fn a_file_put_in_place_is_durable_and_replaces_what_was_there() {
    let disk = SimStorage::new(7);
    create(&disk, "f").write_at(0, b"first version").unwrap();
    let old = disk.contents("f").unwrap();
    disk.put("f", b"second");
    disk.put("f", &old);
    assert_eq!(disk.crash().contents("f").unwrap(), b"first version");
}

#[test]
fn rates_strike_now_and_then_and_can_be_ended() {
    let disk = SimStorage::new(8);
    let file = create(&disk, "f");
    disk.set_fault_rate(FaultKind::WriteError, 0.3);
    let failed = (0..1000).filter(|_| file.write_at(0, b"x").is_err()).count();
    assert!((200..400).contains(&failed), "{failed}");
    disk.clear_faults();
    assert!((0..100).all(|_| file.write_at(0, b"x").is_ok()));
}

#[test]
fn requests_of_a_ring_take_effect_in_an_order_of_their_own() {
    let orders: std::collections::BTreeSet<Vec<u64>> = (0..10)
        .map(|seed| {
            let disk = SimStorage::new(seed);
            let file = disk.open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
            let mut ring = disk.ring(8).unwrap();
            let write = |i: u64| Request::Write {
                file: Arc::clone(&file),
                offset: i * 4096,
                buf: AlignedBuf::copy_of(&[i as u8; 4096]),
            };
            ring.submit(&mut (0..8).map(|i| (i, write(i))).collect());
            let mut out = Vec::new();
            while ring.in_flight() > 0 {
                ring.wait(0, &mut out);
            }
            out.iter().map(|c| c.token).collect()
        })
        .collect();
    assert!(orders.len() > 5);
}

#[test]
#[should_panic(expected = "unaligned direct I/O")]
fn unaligned_direct_io_is_a_programming_error() {
    let disk = SimStorage::new(9);
    let file = disk.open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
    let _never = file.write_at(100, &AlignedBuf::zeroed(4096));
}

#[test]
#[should_panic(expected = "SIGBUS")]
fn storing_into_a_window_of_a_cut_file_is_a_programming_error() {
    let disk = SimStorage::new(10);
    let file = create(&disk, "f");
    file.allocate(0, 8192).unwrap();
    let mut window = file.window(0, 8192, Pages::OnDemand).unwrap();
    file.set_len(4096).unwrap();
    window.copy_in(5000, b"x");
}
