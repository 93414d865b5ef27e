//! What power loss and a killed process leave.

use std::collections::BTreeSet;
use std::sync::Arc;

use betree_storage::{Caching, Error, File, OpenMode, Pages, Storage};
use betree_testkit::{Rng, SimStorage};

fn create(disk: &Arc<SimStorage>, name: &str) -> Arc<dyn File> {
    disk.open(name, OpenMode::CreateNew, Caching::Buffered).unwrap()
}

#[test]
fn synced_bytes_and_names_always_survive() {
    for seed in 0..200 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.write_at(0, &[1; 3000]).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        let disk = disk.crash();
        assert_eq!(disk.contents("f"), Some(vec![1; 3000]), "seed {seed}");
    }
}

#[test]
fn unsynced_bytes_survive_in_some_crashes_torn_in_some_and_vanish_in_others() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.write_at(0, &[1; 4096]).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        file.write_at(0, &[2; 4096]).unwrap();
        let bytes = disk.crash().contents("f").unwrap();
        assert_eq!(bytes.len(), 4096);
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|&b| b == sector[0]), "seed {seed}: a sector is never torn");
        }
        let new = bytes.chunks(512).filter(|sector| sector[0] == 2).count();
        outcomes.insert(new.clamp(0, 8) / 4 + usize::from(new % 4 != 0));
        outcomes.insert(10 + new);
    }
    assert!(outcomes.contains(&10) && outcomes.contains(&18), "all lost, all kept: {outcomes:?}");
    assert!(outcomes.iter().any(|n| (11..18).contains(n)), "torn: {outcomes:?}");
}

#[test]
fn a_later_write_can_survive_an_earlier_one() {
    let survived = |seed| {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.allocate(0, 8192).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        file.write_at(0, &[1; 512]).unwrap();
        file.write_at(4096, &[1; 512]).unwrap();
        let bytes = disk.crash().contents("f").unwrap();
        (bytes[0] == 1, bytes[4096] == 1)
    };
    let outcomes: BTreeSet<_> = (0..200).map(survived).collect();
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
}

#[test]
fn small_writes_to_one_sector_survive_as_a_prefix() {
    for seed in 0..200 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.allocate(0, 4096).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        let mut window = file.window(0, 4096, Pages::OnDemand).unwrap();
        for i in 0..10 {
            window.copy_in(i * 10, &[i as u8 + 1; 10]);
        }
        let bytes = disk.crash().contents("f").unwrap();
        let kept = bytes.chunks(10).take_while(|c| c[0] != 0).count();
        assert!(bytes[kept * 10..].iter().all(|&b| b == 0), "seed {seed}");
    }
}

#[test]
fn the_length_after_a_crash_is_one_that_the_file_had() {
    for seed in 0..200 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.write_at(0, &[1; 1000]).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        file.write_at(1000, &[2; 1000]).unwrap();
        file.set_len(500).unwrap();
        file.write_at(500, &[3; 100]).unwrap();
        let bytes = disk.crash().contents("f").unwrap();
        assert!([1000, 2000, 500, 600].contains(&bytes.len()), "seed {seed}: {}", bytes.len());
        let old = bytes.iter().take(500).filter(|&&b| b == 1).count();
        assert_eq!(old, 500, "seed {seed}: what was synced and not cut is there");
    }
}

#[test]
fn an_unsynced_file_name_may_vanish_and_a_removed_one_may_return() {
    let names = |seed| {
        let disk = SimStorage::new(seed);
        create(&disk, "old");
        disk.sync_dir().unwrap();
        create(&disk, "new").sync().unwrap();
        disk.remove("old").unwrap();
        disk.crash().list().unwrap()
    };
    let outcomes: BTreeSet<_> = (0..200).map(names).collect();
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
}

#[test]
fn a_rename_is_atomic_and_follows_the_creation() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..300 {
        let disk = SimStorage::new(seed);
        let old = create(&disk, "current");
        old.write_at(0, b"old").unwrap();
        old.sync().unwrap();
        disk.sync_dir().unwrap();
        let new = create(&disk, "temporary");
        new.write_at(0, b"new").unwrap();
        new.sync().unwrap();
        disk.rename("temporary", "current").unwrap();
        let disk = disk.crash();
        let current = disk.contents("current").unwrap();
        assert!(current == b"old" || (current == b"new" && disk.files().len() == 1), "seed {seed}");
        outcomes.insert((current, disk.files().len()));
    }
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
}

#[test]
fn a_killed_process_loses_nothing_but_makes_nothing_durable() {
    for seed in 0..100 {
        let disk = SimStorage::new(seed);
        let file = create(&disk, "f");
        file.allocate(0, 4096).unwrap();
        file.window(0, 4096, Pages::OnDemand).unwrap().copy_in(0, b"record");
        let lock = disk.lock().unwrap();
        let killed = disk.kill();
        assert!(disk.is_gone() && file.read_at(0, &mut [0]).is_err(), "old handles are dead");
        assert_eq!(&killed.contents("f").unwrap()[..6], b"record");
        drop(killed.lock().unwrap());
        drop((lock, file));
        if seed == 0 {
            let vanished = (0..100).any(|s| killed.crashed_copy(s).contents("f").is_none());
            assert!(vanished, "the name was never synced");
        }
    }
}

#[test]
fn from_the_crash_point_on_every_call_fails_until_the_restart() {
    let disk = SimStorage::new(5);
    let file = create(&disk, "f");
    disk.sync_dir().unwrap();
    file.write_at(0, b"one").unwrap();
    let mut window = {
        file.allocate(0, 4096).unwrap();
        file.window(0, 4096, Pages::OnDemand).unwrap()
    };
    assert_eq!(disk.op_count(), 4);
    disk.crash_at(5);
    file.sync().unwrap();
    assert!(file.write_at(0, b"two").is_err());
    assert!(disk.is_gone());
    let text = file.sync().unwrap_err().to_string();
    assert!(text.contains("the device is gone"), "{text}");
    assert!(file.read_at(0, &mut [0]).is_err() && file.len().is_err() && disk.list().is_err());
    assert!(disk.open("f", OpenMode::Existing, Caching::Buffered).is_err() && disk.lock().is_err());
    window.copy_in(100, b"lost");
    assert_eq!(disk.op_count(), 6, "operations on a dead device do not count");
    let disk = disk.crash();
    assert_eq!(disk.op_count(), 0);
    let bytes = disk.contents("f").unwrap();
    assert!(&bytes[..3] == b"one" || &bytes[..3] == b"two");
    assert!(bytes[100..].iter().all(|&b| b == 0));
    disk.open("f", OpenMode::Existing, Caching::Buffered).unwrap().sync().unwrap();
}

/// A small workload; returns the trace and what a crash leaves.
fn workload(seed: u64, crash_at: u64) -> (u64, Option<Vec<u8>>) {
    let disk = SimStorage::new(seed);
    disk.crash_at(crash_at);
    let mut rng = Rng::new(99);
    let mut run = || -> Result<(), Error> {
        let file = disk.open("f", OpenMode::CreateNew, Caching::Buffered)?;
        disk.sync_dir()?;
        for _ in 0..50 {
            let len = rng.index(3000);
            file.write_at(rng.below(20_000), &rng.bytes(len))?;
            if rng.chance(0.2) {
                file.sync()?;
            }
        }
        Ok(())
    };
    let ended = run().is_err();
    assert_eq!(ended, disk.is_gone());
    let trace = disk.trace_hash();
    (trace, disk.crash().contents("f"))
}

#[test]
fn the_same_seed_replays_trace_and_crash_and_another_seed_does_not() {
    for crash_at in 0..60 {
        assert_eq!(workload(7, crash_at), workload(7, crash_at));
    }
    assert_ne!(workload(7, 40).1, workload(8, 40).1);
}

#[test]
fn a_crashed_copy_leaves_the_disk_undisturbed() {
    let disk = SimStorage::new(3);
    let file = create(&disk, "f");
    file.write_at(0, b"alive").unwrap();
    let lock = disk.lock().unwrap();
    for seed in 0..20 {
        let copy = disk.crashed_copy(seed);
        drop(copy.lock().unwrap());
    }
    drop(lock);
    file.write_at(5, b"!").unwrap();
    assert_eq!(disk.contents("f").unwrap(), b"alive!");
}
