//! A full disk: a failed append leaves nothing, and appending goes on when there is room.

use betree_testkit::SimStorage;
use betree_wal::Lsn;

use crate::{append_all, open_sim, payload};

#[test]
fn an_append_without_space_leaves_nothing_and_later_ones_succeed() {
    for files in 1..11_u64 {
        let disk = SimStorage::new(files);
        disk.set_capacity(Some(files * 4096));
        let mut opened = open_sim(&disk, Lsn(0));
        let mut expected = append_all(&mut opened, 0, &[1000]);
        let (end, used) = (opened.wal.end(), disk.used_bytes());
        // Takes 11 files, of which at most 10 more fit.
        let long = payload(1, 43_000);
        let refused = opened.appender.append(&[&long]);
        assert!(matches!(&refused, Err(error) if error.is_no_space()), "{files} files: {refused:?}");
        assert_eq!((opened.wal.end(), disk.used_bytes()), (end, used), "space was kept");
        // What is left of the file can still be used.
        expected.extend(append_all(&mut opened, 2, &[2000]));
        disk.set_capacity(None);
        expected.extend(append_all(&mut opened, 3, &[43_000, 10]));
        let disk = disk.kill();
        assert!(open_sim(&disk, Lsn(0)).records == expected, "{files} files");
    }
}

#[test]
fn preparing_on_a_full_disk_fails_and_harms_nothing() {
    let disk = SimStorage::new(30);
    disk.set_capacity(Some(3 * 4096));
    let mut opened = open_sim(&disk, Lsn(0));
    for _ in 0..3 {
        assert!(opened.wal.prepare().unwrap_err().is_no_space());
    }
    let mut expected = append_all(&mut opened, 0, &[3000; 3]);
    assert!(opened.appender.append(&[&payload(9, 3500)]).unwrap_err().is_no_space());
    disk.set_capacity(None);
    opened.wal.prepare().unwrap();
    expected.extend(append_all(&mut opened, 3, &[3000; 3]));
    drop(opened);
    assert!(open_sim(&disk, Lsn(0)).records == expected);
}

#[test]
fn trimming_makes_room_on_a_full_disk() {
    let disk = SimStorage::new(31);
    disk.set_capacity(Some(6 * 4096));
    let mut opened = open_sim(&disk, Lsn(0));
    for n in 0..100 {
        if opened.appender.append(&[&payload(n, 1000)]).is_err() {
            opened.wal.sync(opened.wal.end()).unwrap();
            opened.wal.trim(opened.wal.end()).unwrap();
            opened.appender.append(&[&payload(n, 1000)]).unwrap();
        }
    }
    assert_eq!(opened.wal.stats().records, 100);
}
