//! A full disk: a failed append leaves nothing, and appending goes on when there is room.

use betree_testkit::SimStorage;
use betree_wal::Lsn;

use crate::{Options, append_all, open, open_sim, payload, small};

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
    disk.set_capacity(Some(2 * 4096));
    let mut opened = open_sim(&disk, Lsn(0));
    for _ in 0..3 {
        assert!(opened.wal.prepare().unwrap_err().is_no_space());
    }
    let mut expected = append_all(&mut opened, 0, &[3000; 2]);
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

#[test]
fn on_a_full_device_only_records_that_make_room_get_the_reserve_and_trim_restores_it() {
    let disk = SimStorage::new(1);
    let options = Options { reserve_file: true, ..small() };
    let mut opened = open(disk.as_storage(), &options, Lsn(0)).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let record = payload(1, 500);
    let mut taken = 0;
    while opened.appender.append(&[&record]).is_ok() {
        taken += 1;
    }
    assert!((5..8).contains(&taken), "one file holds {taken} records");
    // Its share, and no more than its share.
    let mut reserved = 0;
    while opened.appender.append_reserved(&[&record]).is_ok() {
        reserved += 1;
        assert!(opened.appender.append(&[b"x"]).unwrap_err().is_no_space());
    }
    assert!((6..9).contains(&reserved), "{reserved} records in the reserve");
    assert_eq!(opened.wal.stats().reserve_taken, 1);
    // Everything taken is there after a kill, and no reserve is made where there is no room for one.
    let killed = disk.kill();
    let mut again = open(killed.as_storage(), &options, Lsn(0)).unwrap();
    assert_eq!(again.records.len(), taken + reserved);
    assert!(again.appender.append(&[b"x"]).unwrap_err().is_no_space());
    again.wal.trim(again.wal.end()).unwrap();
    assert!(killed.files().contains_key("log-reserve"));
    again.appender.append_reserved(&[&record]).unwrap();
    killed.set_capacity(None);
    again.appender.append(&[&record]).unwrap();
    let killed = killed.kill();
    assert_eq!(open(killed.as_storage(), &options, again.wal.durable()).unwrap().records.len(), 2);
}
