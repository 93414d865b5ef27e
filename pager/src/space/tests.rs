//! Unit tests of who owns the file's blocks, on a simulated file.

use betree_storage::{Caching, OpenMode};
use betree_testkit::SimStorage;

use super::*;

const STEP: u64 = 16;

/// A fresh space that grows by [`STEP`] blocks, on an empty simulated file.
fn space(reserve_blocks: u64) -> (Arc<SimStorage>, Space) {
    let sim = SimStorage::new(1);
    let file = sim.as_storage().open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
    file.allocate(0, AREA).unwrap();
    let space = Space::new(file, AREA, STEP * BLOCK_U64, reserve_blocks * BLOCK_U64, false);
    (sim, space)
}

#[test]
fn the_file_is_never_cut_below_the_length_a_durable_superblock_records() {
    let (sim, space) = space(0);
    let low = space.allocate(1, Claim::Ordinary).unwrap();
    let high = space.allocate(100, Claim::Ordinary).unwrap();
    let recorded = space.pin_length();
    assert_eq!(recorded, high.end() * BLOCK_U64);
    // Dropped by another thread while the superblock that needs the length is being written.
    space.release(high);
    space.unpin_to(recorded);
    space.give_back(Keep::Share, |_| ());
    assert!(sim.files()["f"] >= recorded);
    let recorded = space.pin_length();
    assert_eq!(recorded, low.end() * BLOCK_U64);
    space.give_back(Keep::Share, |_| ());
    assert!(sim.files()["f"] >= high.end() * BLOCK_U64, "the older superblock is still the durable one");
    space.unpin_to(recorded);
    space.give_back(Keep::Share, |_| ());
    assert!(sim.files()["f"] < high.end() * BLOCK_U64);
}

#[test]
fn growth_falls_back_to_what_is_needed_and_a_failed_one_changes_nothing() {
    let (sim, space) = space(0);
    sim.set_capacity(Some(sim.used_bytes() + 5 * BLOCK_U64));
    let first = space.allocate(4, Claim::Ordinary).unwrap();
    let before = space.usage();
    assert!(space.allocate(3, Claim::Ordinary).unwrap_err().is_no_space());
    assert_eq!(space.usage(), before);
    space.release(first);
    assert_eq!(space.allocate(4, Claim::Ordinary).unwrap().start, FIRST);
}

#[test]
fn the_reserve_survives_the_cut_and_is_filled_up_again() {
    let (_sim, space) = space(3 * STEP);
    let extent = space.allocate(1, Claim::Ordinary).unwrap();
    let taken = space.allocate(2 * STEP, Claim::Reserved).unwrap();
    space.pin_length();
    space.give_back(Keep::Share, |_| ());
    let (_, _, backed, _) = space.usage();
    assert!(backed >= 3 * STEP * BLOCK_U64);
    space.release(taken);
    space.release(extent);
    space.unpin_to(AREA);
    space.give_back(Keep::Share, |_| ());
    let (file, owned, backed, unbacked) = space.usage();
    assert!(backed >= 3 * STEP * BLOCK_U64 && owned == 0 && unbacked == 0);
    assert!(file <= AREA + 4 * STEP * BLOCK_U64);
}

#[test]
fn what_was_promised_is_there_whatever_others_ask_for_and_the_last_quarter_of_the_reserve_as_well() {
    let (sim, space) = space(8);
    sim.set_capacity(Some(sim.used_bytes() + 40 * BLOCK_U64));
    space.promise(10 * BLOCK_U64 - 1).unwrap();
    let mut ordinary = Vec::new();
    while let Ok(range) = space.allocate(1, Claim::Ordinary) {
        ordinary.push(range);
    }
    assert_eq!(ordinary.len(), 40 - 10 - 8);
    assert!(space.promise(1).is_ok() && space.promise(1).unwrap_err().is_no_space());
    let rewritten: Vec<_> = (0..6).map(|_| space.allocate(1, Claim::Rewrite).unwrap()).collect();
    assert!(space.allocate(1, Claim::Rewrite).unwrap_err().is_no_space());
    for _ in 0..10 {
        space.allocate(1, Claim::Promised).unwrap();
    }
    assert!(space.allocate(1, Claim::Promised).unwrap_err().is_no_space());
    space.allocate(2, Claim::Reserved).unwrap();
    assert!(space.allocate(1, Claim::Reserved).unwrap_err().is_no_space());
    space.release_promise(10 * BLOCK_U64);
    rewritten.into_iter().for_each(|range| space.release(range));
    assert!(space.promise(1).unwrap_err().is_no_space(), "the reserve is not whole");
    ordinary.drain(..3).for_each(|range| space.release(range));
    space.promise(1).unwrap();
}

#[test]
fn a_promise_that_was_redeemed_in_vain_is_made_again_before_others_can_have_the_space() {
    let (sim, space) = space(0);
    sim.set_capacity(Some(sim.used_bytes() + 20 * BLOCK_U64));
    space.promise(12 * BLOCK_U64).unwrap();
    let extent = space.allocate(10, Claim::Promised).unwrap();
    space.release_promise(10 * BLOCK_U64);
    // What is owned is not promised beside that.
    let others: Vec<_> = (0..8).map(|_| space.allocate(1, Claim::Ordinary).unwrap()).collect();
    assert!(space.allocate(1, Claim::Ordinary).unwrap_err().is_no_space());

    space.renew_promise(10 * BLOCK_U64);
    space.release(extent);
    assert!(space.allocate(1, Claim::Ordinary).unwrap_err().is_no_space());
    assert!(space.promise(1).unwrap_err().is_no_space());
    space.allocate(10, Claim::Promised).unwrap();
    for _ in 0..2 {
        space.allocate(1, Claim::Promised).unwrap();
    }
    space.release_promise(12 * BLOCK_U64);
    others.into_iter().for_each(|range| space.release(range));
    for _ in 0..8 {
        space.allocate(1, Claim::Ordinary).unwrap();
    }
}

#[test]
fn while_a_file_is_written_to_a_32nd_stays_for_what_comes_next() {
    let (sim, space) = space(0);
    let mut all: Vec<_> = (0..200).map(|_| space.allocate(STEP, Claim::Ordinary).unwrap()).collect();
    let kept = all.split_off(100);
    space.pin_length();
    let used = sim.used_bytes();
    all.into_iter().for_each(|range| space.release(range));
    space.give_back(Keep::Share, |_| ());
    let (_, owned, backed, unbacked) = space.usage();
    assert_eq!(owned, 100 * STEP * BLOCK_U64);
    assert!((owned / 32..owned / 32 + 2 * STEP * BLOCK_U64).contains(&backed), "{backed}");
    assert!(unbacked >= 94 * STEP * BLOCK_U64 && sim.used_bytes() + unbacked <= used);
    assert_eq!(kept.len(), 100);
}

#[test]
fn others_get_everything_back_but_reserve_and_promise() {
    let (sim, space) = space(STEP);
    let all: Vec<_> = (0..20).map(|_| space.allocate(STEP, Claim::Ordinary).unwrap()).collect();
    let last = space.allocate(1, Claim::Ordinary).unwrap();
    space.promise(STEP * BLOCK_U64).unwrap();
    let used = sim.used_bytes();
    all.into_iter().for_each(|range| space.release(range));
    space.give_back(Keep::Least, |_| ());
    let (_, owned, backed, unbacked) = space.usage();
    assert_eq!(owned, last.len * BLOCK_U64);
    let kept = 2 * STEP * BLOCK_U64..4 * STEP * BLOCK_U64;
    assert!(kept.contains(&backed), "{backed}");
    assert!(unbacked >= 17 * STEP * BLOCK_U64 && sim.used_bytes() + 16 * STEP * BLOCK_U64 < used);
}

#[test]
fn at_rest_all_goes_back_but_an_eighth_of_what_is_in_use() {
    let (sim, space) = space(STEP);
    let piece = STEP;
    let mut all: Vec<_> = (0..40).map(|_| space.allocate(piece, Claim::Ordinary).unwrap()).collect();
    let kept: Vec<_> = all.iter().step_by(2).copied().collect();
    all.retain(|range| !kept.contains(range));
    all.into_iter().for_each(|range| space.release(range));
    space.pin_length();
    let used = sim.used_bytes();
    while space.give_back(Keep::Little, |_| ()) > 0 {}
    let (_, owned, backed, _) = space.usage();
    assert_eq!(owned, 20 * piece * BLOCK_U64);
    let least = STEP * BLOCK_U64;
    let most = (owned / 8).max(2 * STEP * BLOCK_U64) + piece * BLOCK_U64;
    assert!((least..=most).contains(&backed), "{backed}");
    assert!(sim.used_bytes() + 15 * piece * BLOCK_U64 < used, "{} {used}", sim.used_bytes());
}

#[test]
fn threads_that_allocate_and_drop_at_once_never_share_a_block() {
    let (_sim, space) = space(STEP);
    let owners = Mutex::new(BTreeMap::<u64, u64>::new());
    std::thread::scope(|scope| {
        for thread in 1..=4u64 {
            let (space, owners) = (&space, &owners);
            scope.spawn(move || {
                let mut held = Vec::new();
                for step in 0..2000u64 {
                    let range = space.allocate(1 + (step * thread) % 7, Claim::Ordinary).unwrap();
                    {
                        let mut owners = owners.lock();
                        let below = owners.range(..range.end()).next_back();
                        assert!(below.is_none_or(|(start, len)| start + len <= range.start));
                        owners.insert(range.start, range.len);
                    }
                    held.push(range);
                    if step % 3 == 0 || held.len() > 50 {
                        let range = held.swap_remove((step * 7) as usize % held.len());
                        owners.lock().remove(&range.start);
                        space.release(range);
                    }
                    if step % 500 == 0 && thread == 1 {
                        let recorded = space.pin_length();
                        space.unpin_to(recorded);
                        space.give_back(Keep::Share, |_| ());
                    }
                }
            });
        }
    });
    let (file, owned, backed, unbacked) = space.usage();
    assert_eq!(owned, owners.lock().values().sum::<u64>() * BLOCK_U64);
    assert_eq!(AREA + owned + backed + unbacked, file);
}
