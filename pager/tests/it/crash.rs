//! Crashes and faults on the simulated disk: at every operation, in recovery again, with lying and full devices.

use std::sync::Arc;

use betree_pager::{BLOCK, Epoch, Error, Extent, FILE_NAME, Options, Pager, Result};
use betree_testkit::{FaultKind, SimStorage};

use crate::common::{assert_stamp, fill, read, small};

/// What a checkpoint reaches.
struct Tree {
    runs: Vec<Run>,
}

/// Pages of one stamp and their checksums.
struct Run {
    extent: Arc<Extent>,
    stamp: u64,
    checksums: Vec<u32>,
}

impl Tree {
    /// Writes the runs of an epoch; one in two survives from the tree before.
    fn after(pager: &Pager, before: &Tree, epoch: Epoch) -> Result<Self> {
        let mut runs: Vec<Run> = Vec::new();
        for old in before.runs.iter().skip(1).step_by(2) {
            let extent = Arc::clone(&old.extent);
            runs.push(Run { extent, stamp: old.stamp, checksums: old.checksums.clone() });
        }
        // Sizes that make the file grow, its tail come free, and ranges large enough to punch appear.
        for (i, blocks) in [3, 1, 20 + epoch.0 as usize % 3 * 15].into_iter().enumerate() {
            let stamp = epoch.0 * 10 + i as u64;
            let extent = Arc::new(pager.allocate(blocks * BLOCK)?);
            let checksums = fill(pager, &extent, stamp)?;
            runs.push(Run { extent, stamp, checksums });
        }
        Ok(Self { runs })
    }

    fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for run in &self.runs {
            out.extend(run.extent.offset().to_le_bytes());
            out.extend(run.extent.len().to_le_bytes());
            out.extend(run.stamp.to_le_bytes());
            run.checksums.iter().for_each(|checksum| out.extend(checksum.to_le_bytes()));
        }
        out
    }

    fn recover(pager: &Pager, mut payload: &[u8]) -> Result<Self> {
        let mut runs = Vec::new();
        let take = |payload: &mut &[u8], n: usize| {
            let (head, tail) = payload.split_at(n);
            *payload = tail;
            let mut le = [0; 8];
            le[..n].copy_from_slice(head);
            u64::from_le_bytes(le)
        };
        while !payload.is_empty() {
            let offset = take(&mut payload, 8);
            let len = take(&mut payload, 4) as u32;
            let stamp = take(&mut payload, 8);
            let checksums = (0..len as usize / BLOCK).map(|_| take(&mut payload, 4) as u32).collect();
            runs.push(Run { extent: Arc::new(pager.adopt(offset, len)?), stamp, checksums });
        }
        pager.finish_recovery();
        Ok(Self { runs })
    }

    fn check(&self, pager: &Pager) {
        for run in &self.runs {
            for (block, &checksum) in run.checksums.iter().enumerate() {
                let page = read(pager, &run.extent, (block * BLOCK) as u32, checksum).unwrap();
                assert_stamp(&page, run.stamp);
            }
        }
        let held: u64 = self.runs.iter().map(|run| u64::from(run.extent.len())).sum();
        let stats = pager.stats();
        assert_eq!(stats.allocated_bytes, held, "no block leaked");
        assert_eq!(stats.allocated_bytes + stats.free_bytes + (64 << 10), stats.file_bytes);
    }
}

/// Opens and reads back everything the checkpoint reaches.
fn reopen(sim: &Arc<SimStorage>) -> Result<(Pager, Tree, Epoch)> {
    let (pager, published) = Pager::open(sim.as_storage(), small())?;
    let (payload, epoch) = published.map_or((Vec::new(), Epoch(0)), |s| (s.payload, s.epoch));
    let tree = Tree::recover(&pager, &payload)?;
    Ok((pager, tree, epoch))
}

/// Opens and publishes `count` checkpoints; `acked` is the last that is known to be durable.
fn work(sim: &Arc<SimStorage>, count: u64, acked: &mut Epoch) -> Result<()> {
    let (pager, mut durable, mut epoch) = reopen(sim)?;
    *acked = epoch;
    for _ in 0..count {
        let next = Tree::after(&pager, &durable, epoch.next())?;
        pager.publish(epoch.next(), &next.payload())?;
        epoch = epoch.next();
        *acked = epoch;
        durable = next;
    }
    Ok(())
}

/// Opens after a crash and checks that nothing acknowledged is missing.
fn check_after_crash(sim: &Arc<SimStorage>, acked: Epoch) -> Epoch {
    let (pager, tree, epoch) = reopen(sim).unwrap();
    assert!(epoch == acked || epoch == acked.next(), "acknowledged {acked:?}, found {epoch:?}");
    tree.check(&pager);
    epoch
}

const CHECKPOINTS: u64 = 6;

fn operations() -> u64 {
    let sim = SimStorage::new(1);
    work(&sim, CHECKPOINTS, &mut Epoch(0)).unwrap();
    sim.op_count()
}

/// Works until the device is gone. The last operations give space back; that they fail is no error.
fn interrupted(sim: &Arc<SimStorage>, acked: &mut Epoch) {
    let _ = work(sim, CHECKPOINTS, acked);
    assert!(sim.is_gone());
}

#[test]
fn power_loss_at_every_operation_leaves_the_last_or_the_next_checkpoint() {
    for at in 0..operations() {
        for seed in [at, at ^ 0xdead_0000, at ^ 0xbeef_0000] {
            println!("crash at {at}, seed {seed:#x}");
            let sim = SimStorage::new(seed);
            sim.crash_at(at);
            let mut acked = Epoch(0);
            interrupted(&sim, &mut acked);
            let sim = sim.crash();
            let found = check_after_crash(&sim, acked);
            work(&sim, 3, &mut acked).unwrap();
            assert_eq!(acked.0, found.0 + 3);
            check_after_crash(&sim.crash(), acked);
        }
    }
}

#[test]
fn a_second_power_loss_at_every_operation_of_recovery_changes_nothing() {
    let total = operations();
    for at in (0..total).step_by(3) {
        for second in 0..8 {
            println!("crash at {at}, then at {second}");
            let sim = SimStorage::new(at << 8 | second);
            sim.crash_at(at);
            let mut acked = Epoch(0);
            interrupted(&sim, &mut acked);
            let sim = sim.crash();
            sim.crash_at(second);
            let _ = reopen(&sim);
            check_after_crash(&sim.crash(), acked);
        }
    }
}

#[test]
fn what_a_killed_process_left_unsynced_is_made_durable_before_anybody_builds_on_it() {
    for at in 0..operations() {
        println!("kill at {at}, then power loss");
        let sim = SimStorage::new(at);
        sim.crash_at(at);
        let mut acked = Epoch(0);
        interrupted(&sim, &mut acked);
        let sim = sim.kill();
        let seen = check_after_crash(&sim, acked);
        // Overwrites what only older checkpoints reach, then loses power before publishing.
        let (pager, tree, _) = reopen(&sim).unwrap();
        let next = Tree::after(&pager, &tree, seen.next()).unwrap();
        let sim = sim.crash();
        assert_eq!(check_after_crash(&sim, seen), seen);
        drop((next, tree, pager));
    }
}

#[test]
fn a_failed_sync_poisons_writing_while_reads_go_on() {
    for failing in 0..2 {
        let sim = SimStorage::new(failing);
        let mut acked = Epoch(0);
        work(&sim, 3, &mut acked).unwrap();
        let (pager, tree, epoch) = reopen(&sim).unwrap();
        let next = Tree::after(&pager, &tree, epoch.next()).unwrap();
        sim.inject(FaultKind::SyncError, FILE_NAME, failing);
        let error = pager.publish(epoch.next(), &next.payload()).unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{error}");
        let first = error.to_string();
        assert_eq!(pager.allocate(BLOCK).unwrap_err().to_string(), first);
        assert_eq!(pager.publish(epoch.next(), b"").unwrap_err().to_string(), first);
        assert_eq!(fill(&pager, &tree.runs[0].extent, 1).unwrap_err().to_string(), first);
        assert_eq!(pager.poisoned().unwrap().to_string(), first);
        for run in &tree.runs {
            assert_stamp(&read(&pager, &run.extent, 0, run.checksums[0]).unwrap(), run.stamp);
        }
        check_after_crash(&sim.crashed_copy(5), epoch);
        // With the process alone gone, what the failed sync lost may still be seen; it must not be built on.
        let seen = check_after_crash(&sim.kill(), epoch);
        assert!(failing == 1 || seen == epoch);
    }
}

#[test]
fn a_superblock_write_that_fails_poisons_and_leaves_one_of_the_two_checkpoints() {
    for copy in 0..2 {
        let sim = SimStorage::new(copy);
        let mut acked = Epoch(0);
        work(&sim, 2, &mut acked).unwrap();
        let (pager, tree, epoch) = reopen(&sim).unwrap();
        sim.inject(FaultKind::WriteError, FILE_NAME, copy);
        assert!(matches!(pager.publish(epoch.next(), &tree.payload()), Err(Error::Poisoned { .. })));
        assert!(matches!(pager.allocate(1), Err(Error::Poisoned { .. })));
        check_after_crash(&sim.crash(), epoch);
    }
}

#[test]
fn a_lost_or_misdirected_superblock_copy_is_survived() {
    for kind in [FaultKind::LostWrite, FaultKind::FlippedBit] {
        for copy in 0..2 {
            let sim = SimStorage::new(copy);
            let mut acked = Epoch(0);
            work(&sim, 2, &mut acked).unwrap();
            let (pager, tree, epoch) = reopen(&sim).unwrap();
            sim.inject(kind, FILE_NAME, copy);
            pager.publish(epoch.next(), &tree.payload()).unwrap();
            drop((tree, pager));
            assert_eq!(check_after_crash(&sim.crash(), epoch.next()), epoch.next());
        }
    }
}

#[test]
fn a_flip_of_any_byte_of_the_slots_opens_the_newest_epoch() {
    let sim = SimStorage::new(3);
    let mut acked = Epoch(0);
    work(&sim, 3, &mut acked).unwrap();
    let intact = sim.contents(FILE_NAME).unwrap();
    for slot in 0..4 {
        for byte in 0..4096 {
            let at = (slot * (16 << 10) + byte) as u64;
            assert!(sim.flip_bit(FILE_NAME, at, byte as u8 % 8));
            let (pager, published) = Pager::open(sim.as_storage(), small()).unwrap();
            assert_eq!(published.unwrap().epoch, acked, "slot {slot} byte {byte}");
            drop(pager);
            if sim.contents(FILE_NAME).unwrap()[at as usize] != intact[at as usize] {
                assert!(sim.flip_bit(FILE_NAME, at, byte as u8 % 8));
            }
        }
    }
    check_after_crash(&sim.crash(), acked);
}

#[test]
fn on_a_lying_device_every_page_is_right_or_corruption() {
    let mut found = 0;
    for seed in 0..30 {
        println!("seed {seed}");
        let sim = SimStorage::new(seed);
        let (pager, _) = Pager::open(sim.as_storage(), small()).unwrap();
        let former = Arc::new(pager.allocate(64 * BLOCK).unwrap());
        fill(&pager, &former, 1).unwrap();
        for kind in [FaultKind::LostWrite, FaultKind::MisdirectedWrite, FaultKind::FlippedBit] {
            sim.set_fault_rate(kind, 0.02);
        }
        // In place of the former pages, so that a lost write leaves an older, intact page.
        let checksums = fill(&pager, &former, 2).unwrap();
        sim.clear_faults();
        for (block, &checksum) in checksums.iter().enumerate() {
            match read(&pager, &former, (block * BLOCK) as u32, checksum) {
                Ok(page) => assert_stamp(&page, 2),
                Err(error) => {
                    assert!(error.is_corruption(), "{error}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 20, "{found} bad pages");
}

#[test]
fn a_read_error_fails_that_read_only() {
    let sim = SimStorage::new(1);
    let (pager, _) = Pager::open(sim.as_storage(), small()).unwrap();
    let extent = Arc::new(pager.allocate(BLOCK).unwrap());
    let checksums = fill(&pager, &extent, 1).unwrap();
    sim.inject(FaultKind::ReadError, FILE_NAME, 0);
    let error = read(&pager, &extent, 0, checksums[0]).unwrap_err();
    assert!(matches!(error, Error::Storage(_)) && !error.is_corruption());
    assert_stamp(&read(&pager, &extent, 0, checksums[0]).unwrap(), 1);
    pager.publish(Epoch(1), b"").unwrap();
}

#[test]
fn a_full_device_is_an_error_until_extents_are_dropped() {
    let sim = SimStorage::new(1);
    let (pager, _) = Pager::open(sim.as_storage(), small()).unwrap();
    sim.set_capacity(Some(1 << 20));
    let mut held = Vec::new();
    let error = loop {
        match pager.allocate(10 * BLOCK) {
            Ok(extent) => held.push(Arc::new(extent)),
            Err(error) => break error,
        }
    };
    assert!(error.is_no_space() && matches!(error, Error::NoSpace { .. }), "{error}");
    // The last growth was less than a whole step, so nearly all of the device is used.
    assert!(held.len() >= 23, "{} extents", held.len());
    for (stamp, extent) in held.iter().enumerate() {
        fill(&pager, extent, stamp as u64).unwrap();
    }
    pager.publish(Epoch(1), b"full").unwrap();
    held.pop();
    held.remove(3);
    let again = Arc::new(pager.allocate(10 * BLOCK).unwrap());
    fill(&pager, &again, 5).unwrap();
    pager.allocate(11 * BLOCK).unwrap_err();
    pager.publish(Epoch(2), b"full").unwrap();
}

#[test]
fn the_reserve_is_for_what_makes_room() {
    let sim = SimStorage::new(1);
    let reserve = 256 << 10;
    let options = Options { reserve, ..small() };
    let (pager, _) = Pager::open(sim.as_storage(), options.clone()).unwrap();
    sim.set_capacity(Some(2 << 20));
    let mut held = Vec::new();
    while let Ok(extent) = pager.allocate(5 * BLOCK) {
        held.push(extent);
    }
    assert!(pager.stats().free_bytes >= reserve);
    let reserved: Vec<_> = (0..6).map(|_| Arc::new(pager.allocate_reserved(10 * BLOCK).unwrap())).collect();
    for extent in &reserved {
        fill(&pager, extent, 1).unwrap();
    }
    held.truncate(10);
    pager.allocate(5 * BLOCK).unwrap();

    // After reopening, the free space is not known to be backed; the next checkpoint sees to the reserve.
    drop((held, reserved));
    pager.publish(Epoch(1), b"").unwrap();
    drop(pager);
    let (pager, _) = Pager::open(sim.as_storage(), options).unwrap();
    pager.finish_recovery();
    pager.publish(Epoch(2), b"").unwrap();
    let stats = pager.stats();
    assert!(stats.free_bytes - stats.unbacked_bytes >= reserve, "{stats:?}");
}

#[test]
fn writes_to_extents_never_run_out_of_space_even_where_holes_were_punched() {
    let sim = SimStorage::new(1);
    let (pager, _) = Pager::open(sim.as_storage(), small()).unwrap();
    let middle = pager.allocate(2 << 20).unwrap();
    let _last = pager.allocate(BLOCK).unwrap();
    pager.publish(Epoch(1), b"").unwrap();
    drop(middle);
    pager.publish(Epoch(2), b"").unwrap();
    assert!(pager.stats().unbacked_bytes > 1 << 20);
    sim.set_capacity(Some(sim.used_bytes() + (256 << 10)));
    let mut held = Vec::new();
    while let Ok(extent) = pager.allocate(7 * BLOCK) {
        let extent = Arc::new(extent);
        fill(&pager, &extent, 1).unwrap();
        held.push(extent);
    }
    assert!(held.len() * 7 * BLOCK > 256 << 10);
}

#[test]
fn equal_seeds_write_equal_bytes() {
    let run = || {
        let sim = SimStorage::new(11);
        work(&sim, CHECKPOINTS, &mut Epoch(0)).unwrap();
        (sim.trace_hash(), sim.contents(FILE_NAME))
    };
    assert!(run() == run());
}
