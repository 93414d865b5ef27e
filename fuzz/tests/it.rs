//! The engine against the oracle: model runs, crash simulation, faults, corruption, killed processes.
//!
//! Every test prints its seed when it fails; part of the seeds are fresh in every run.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use betree_fuzz::corrupt::{Summary, Victim};
use betree_fuzz::faults::{self, Trouble};
use betree_fuzz::model::{Run, in_directory, on_simulated_disk};
use betree_fuzz::simulate::{self, Plan};
use betree_fuzz::{Shape, campaign};
use betree_testkit::{NAMED_STATES, Rng, SimStorage};

/// Seeds that are the same in every run, then some that are not; those are printed.
fn seeds(fixed: u64, fresh: u64) -> impl Iterator<Item = u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let first = Rng::new(now).next_u64() >> 16;
    println!("fresh seeds {first}..{}", first + fresh);
    (0..fixed).chain(first..first + fresh)
}

fn held<T>(result: Result<T, String>) -> T {
    result.unwrap_or_else(|text| panic!("{text}"))
}

#[test]
fn random_operations_give_the_oracles_answers_under_any_options() {
    let mut highest = 0;
    for seed in seeds(12, 12) {
        let run = Run { ops: 1500, threads: 0, check_always: false };
        highest = highest.max(held(on_simulated_disk(seed, run)));
    }
    assert!(highest >= 3, "the trees stay too low to show anything: height {highest}");
}

#[test]
fn every_invariant_holds_after_every_step() {
    for seed in seeds(6, 6) {
        held(on_simulated_disk(seed, Run { ops: 300, threads: 0, check_always: true }));
    }
}

#[test]
fn random_operations_give_the_oracles_answers_with_background_threads() {
    for seed in seeds(3, 3) {
        held(on_simulated_disk(seed, Run { ops: 1000, threads: 2, check_always: false }));
    }
}

#[test]
fn random_operations_give_the_oracles_answers_on_a_real_disk() {
    for seed in seeds(2, 2) {
        let directory = tempfile::tempdir().unwrap();
        let threads = (seed % 2 * 2) as usize;
        held(in_directory(seed, Run { ops: 400, threads, check_always: false }, directory.path()));
    }
}

#[test]
fn a_crash_at_any_operation_of_the_disk_leaves_a_prefix_with_everything_durable() {
    for seed in seeds(2, 2) {
        // Other seeds take other shares; ten in a row cover every operation's place.
        held(simulate::run(seed, &Plan::share(1000, 10, seed % 10)));
    }
    for seed in seeds(1, 1) {
        let summary = held(simulate::run(seed, &Plan::thorough(150)));
        assert!(summary.power_losses >= summary.disk_ops, "{summary:?}");
    }
}

#[test]
fn a_power_cut_in_the_middle_of_any_operation_is_survived() {
    for seed in seeds(2, 1) {
        assert!(held(simulate::power_cuts(seed, 300, 11)) > 10);
    }
}

#[test]
fn the_same_seed_goes_the_same_way_operation_by_operation() {
    let mut traces = BTreeSet::new();
    for seed in seeds(6, 2) {
        // Summaries contain the hash over everything that the disks were told.
        let summary = held(campaign::run(seed, 500));
        assert_eq!(summary, held(campaign::run(seed, 500)));
        traces.insert(summary.trace);
    }
    assert_eq!(traces.len(), 8, "other seeds go other ways");
    for seed in seeds(2, 0) {
        let plan = Plan::share(300, 40, 0);
        let summary = held(simulate::run(seed, &plan));
        assert_eq!(summary, held(simulate::run(seed, &plan)));
        assert!(traces.insert(summary.trace));
    }
}

#[test]
fn a_database_lives_through_crashes_and_faults_and_every_named_state() {
    let mut total = betree_fuzz::Summary::default();
    for seed in seeds(10, 2) {
        total.add(&held(campaign::run(seed, 2000)));
    }
    // Some states are rare: inner nodes are flushed into in the highest trees only.
    for seed in 1000..1060 {
        if NAMED_STATES.iter().all(|name| total.crashed_at.contains_key(name)) {
            break;
        }
        total.add(&held(campaign::run(seed, 2000)));
    }
    println!("{total}");
    for name in NAMED_STATES {
        assert!(total.reached.contains_key(name), "{name} was not reached");
        assert!(total.crashed_at.contains_key(name), "nothing crashed at {name}");
    }
    assert!(total.power_losses > 100 && total.kills > 50 && total.again > 100 && total.third > 10, "{total}");
    assert!(total.lives > 40 && total.lost > 0 && total.faults.len() > 6 && total.errors > 0, "{total}");
}

#[test]
fn a_failing_disk_gives_errors_and_never_wrong_answers() {
    for trouble in Trouble::ALL {
        let mut errors = 0;
        for seed in seeds(10, 5) {
            let summary = held(faults::run(seed, 500, trouble));
            errors += summary.errors + summary.corruption;
        }
        assert!(errors > 0, "{trouble:?} did not show");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_or_harmless() {
    for seed in seeds(2, 1) {
        let victim = held(Victim::new(seed, 60));
        let mut places = victim.places();
        let mut rng = Rng::new(seed);
        rng.shuffle(&mut places);
        let mut summary = Summary::default();
        for (file, offset) in places.iter().take(700) {
            held(victim.flip(file, *offset, rng.below(8) as u8, &mut summary));
        }
        assert!(summary.found > 0, "{summary:?}");
    }
}

/// What must be there if exactly the batches up to `last` were applied.
fn check_acknowledged(path: &std::path::Path, acknowledged: u64) -> u64 {
    let db = betree::Db::builder().memory(4 << 20).open(path).unwrap();
    let records = db.keyspace("records").unwrap();
    let number = |key: &str| records.get(key).unwrap().map(|v| u64::from_le_bytes(v[..].try_into().unwrap()));
    let last = number("last").unwrap_or(0);
    assert!(last >= acknowledged, "batch {acknowledged} was acknowledged, {last} is the last there");
    let sums = db.keyspace("sums").unwrap();
    let count = sums.get("count").unwrap().map_or(0, |v| i64::from_le_bytes(v[..].try_into().unwrap()));
    assert_eq!(count, last as i64, "every batch counts once");
    let found: Vec<u64> = records
        .prefix("i")
        .map(|record| u64::from_le_bytes(record.unwrap().1[..].try_into().unwrap()))
        .collect();
    let expected: Vec<u64> = (last.saturating_sub(2999).max(1)..=last).filter(|i| *i > 0).collect();
    assert_eq!(found, expected);
    let report = db.check().unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    last
}

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let seed = seeds(0, 1).next().unwrap();
    let mut rng = Rng::new(seed);
    let mut before = 0;
    for kill in 0..20 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_acknowledger"))
            .arg(directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = rng.below(2500);
        let mut acknowledged = before;
        for line in lines.by_ref().take(wanted as usize) {
            acknowledged = line.unwrap().parse().unwrap();
        }
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts as well; a line cut off by its death does not.
        for line in lines.map_while(Result::ok) {
            acknowledged = line.parse().ok().filter(|n| *n > acknowledged).unwrap_or(acknowledged);
        }
        let last = check_acknowledged(directory.path(), acknowledged);
        assert!(last <= acknowledged + 1, "kill {kill} of seed {seed}: {last} after {acknowledged}");
        before = last;
    }
    assert!(before > 0);
}

#[test]
fn a_keyspace_that_another_thread_creates_is_durable_before_it_is_handed_out() {
    let disk = SimStorage::new(1);
    let mut options = Shape::tiny(&mut Rng::new(1)).options;
    options.durability = betree::Durability::Sync;
    let db = betree::Db::builder().options(options.clone()).open_on(disk.as_storage()).unwrap();
    for round in 0..50 {
        let name = format!("space {round}");
        std::thread::scope(|scope| {
            let creator = scope.spawn(|| db.keyspace(&name).unwrap());
            while !db.keyspaces().contains(&name) {
                std::hint::spin_loop();
            }
            db.keyspace(&name).unwrap().insert("key", "value").unwrap();
            let after_power_loss = disk.crashed_copy(round);
            let recovered = betree::Db::builder()
                .options(options.clone())
                .open_on(after_power_loss.as_storage())
                .unwrap();
            let value = recovered.keyspace(&name).unwrap().get("key").unwrap();
            assert_eq!(value.as_deref(), Some(&b"value"[..]), "a synced write is gone in round {round}");
            creator.join().unwrap();
        });
    }
}
