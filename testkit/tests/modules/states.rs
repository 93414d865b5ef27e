//! Named states, the clock and identities: what the engine sees of them and what a run can do at them.

use std::time::Duration;

use betree_storage::{Caching, OpenMode, Storage};
use betree_testkit::{Cause, CopyPlan, FaultKind, SimStorage, Spread};

#[test]
fn the_power_goes_at_the_planned_arrival_at_a_named_state() {
    let disk = SimStorage::new(1);
    let file = disk.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    disk.crash_at_state("memtable-frozen", 2);
    disk.reached("memtable-frozen");
    disk.reached("leaf-compacted");
    file.write_at(0, b"x").unwrap();
    assert!(!disk.is_gone());
    disk.reached("memtable-frozen");
    assert!(disk.is_gone() && file.write_at(0, b"x").is_err());
    let disk = disk.crash();
    let counts: Vec<_> = disk.arrivals().into_iter().collect();
    assert_eq!(counts, [("leaf-compacted", 1), ("memtable-frozen", 2)]);
    disk.reached("memtable-frozen");
    assert!(!disk.is_gone(), "the plan is forgotten with the crash");
    assert_eq!(disk.arrivals_in_all(), 4);
}

#[test]
fn a_copy_kept_at_a_named_state_has_what_was_written_before_it() {
    let disk = SimStorage::new(2);
    let file = disk.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    let plan = CopyPlan { states_every: 1, spread: Spread::Even(0), ..CopyPlan::default() };
    disk.keep_copies(plan);
    for i in 1..=4 {
        file.write_at(0, &[i; 512]).unwrap();
        disk.reached("leaf-compacted");
    }
    let copies = disk.take_copies();
    assert_eq!(copies.len(), 4);
    for (i, copy) in (1..).zip(&copies) {
        assert_eq!(copy.state, Some("leaf-compacted"));
        if copy.cause == Cause::Kill {
            assert_eq!(copy.disk.contents("f").unwrap(), [i; 512]);
        }
    }
    for cause in [Cause::Kill, Cause::PowerLoss] {
        assert_eq!(copies.iter().filter(|copy| copy.cause == cause).count(), 2);
    }
    file.write_at(0, b"the disk itself goes on").unwrap();
}

#[test]
fn random_copies_are_a_sample_and_the_same_for_the_same_seed() {
    let sample = |seed| {
        let disk = SimStorage::new(seed);
        let file = disk.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
        let spread = Spread::Random;
        disk.keep_copies(CopyPlan { power_loss_every: 10, kill_every: 30, states_every: 1, spread });
        for _ in 0..3000 {
            file.write_at(0, b"x").unwrap();
            disk.reached("memtable-frozen");
        }
        disk.take_copies().into_iter().map(|c| (c.index, c.cause, c.state)).collect::<Vec<_>>()
    };
    let (a, b) = (sample(1), sample(2));
    assert_eq!(a, sample(1));
    assert_ne!(a, b);
    let count = |cause| a.iter().filter(|c| c.1 == cause && c.2.is_none()).count();
    assert!((200..400).contains(&count(Cause::PowerLoss)), "{}", count(Cause::PowerLoss));
    assert!((60..140).contains(&count(Cause::Kill)), "{}", count(Cause::Kill));
    // The first arrival always, later ones ever more rarely.
    let named: Vec<_> = a.iter().filter(|c| c.2.is_some()).collect();
    assert!(named[0].0 == 2 && named.len() < 40, "{named:?}");
}

#[test]
#[should_panic(expected = "not in the table of named states")]
fn a_state_without_a_row_in_the_table_is_a_programming_error() {
    SimStorage::new(3).reached("somewhere");
}

#[test]
fn identities_come_from_the_seed_and_the_clock_moves_with_operations_and_pauses_only() {
    let (a, b, other) = (SimStorage::new(4), SimStorage::new(4), SimStorage::new(5));
    let drawn = a.entropy();
    assert_eq!(drawn, b.entropy());
    assert!(drawn != a.entropy() && drawn != other.entropy());
    let before = a.now();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(a.now(), before);
    a.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    let after = a.now();
    assert!(after > before);
    a.pause(Duration::from_secs(3600));
    assert_eq!(a.now(), after + Duration::from_secs(3600));
    assert!(a.crash().now() >= after, "the clock goes on through crashes");
}

#[test]
fn a_copy_counts_its_own_losses_only() {
    let disk = SimStorage::new(6);
    let file = disk.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    disk.inject(FaultKind::WriteError, "f", 0);
    file.write_at(0, b"x").unwrap_err();
    disk.keep_copies(CopyPlan { kill_every: 1, spread: Spread::Even(0), ..CopyPlan::default() });
    file.write_at(0, b"x").unwrap();
    let copies = disk.take_copies();
    assert!(copies[0].disk.injected().is_empty());
    assert_eq!(disk.injected()[&FaultKind::WriteError], 1);
}
