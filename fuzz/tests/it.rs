//! The engine against the oracle: model runs, the bank auditor, crash simulation, faults, corruption, killed processes.
//!
//! Every test prints its seed when it fails; part of the seeds are fresh in every run.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use betree_fuzz::allocation::{Counting, measured};
use betree_fuzz::audit::{self, Ground, Totals};
use betree_fuzz::corrupt::{self, Class, Kind, Summary, Victim};
use betree_fuzz::faults::{self, Trouble};
use betree_fuzz::kills;
use betree_fuzz::model::{Run, in_directory, on_simulated_disk};
use betree_fuzz::salvage::{DATA, Healed, Patient, Wound};
use betree_fuzz::simulate::{self, Plan};
use betree_fuzz::{Shape, campaign, targets};
use betree_testkit::{NAMED_STATES, Rng, SimStorage};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

/// A bank of a few seconds; everything that is to go on in it did.
fn audited(ground: &Ground) -> Totals {
    let seed = seeds(0, 1).next().unwrap();
    let totals = held(audit::run(seed, ground, Duration::from_secs(3)));
    println!("{totals:?}");
    assert!(totals.transfers > 0 && totals.snapshots > 0 && totals.live_audits > 0, "{totals:?}");
    assert!(totals.flushed_bytes > 0 && totals.checkpoints > 0 && totals.drops > 0, "{totals:?}");
    totals
}

#[test]
fn no_money_is_ever_missing_while_everything_goes_on_at_once_on_a_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    audited(&Ground::Directory(directory.path().to_path_buf()));
}

#[test]
fn no_money_is_ever_missing_while_everything_goes_on_at_once_with_portable_io() {
    let directory = tempfile::tempdir().unwrap();
    audited(&Ground::Portable(directory.path().to_path_buf()));
}

#[test]
fn no_money_is_missing_after_power_cuts_at_random_moments_under_several_writers() {
    assert!(audited(&Ground::Simulated).crashes > 0);
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
        let (mut errors, mut made_room) = (0, 0);
        for seed in seeds(10, 5) {
            let summary = held(faults::run(seed, 500, trouble));
            errors += summary.errors + summary.corruption;
            made_room += summary.made_room;
        }
        assert!(made_room > 0 || trouble != Trouble::FullDevice, "nothing was deleted on a full device");
        assert!(errors > 0, "{trouble:?} did not show");
    }
}

#[test]
fn on_a_full_device_one_batch_may_delete_everything_in_all_keyspaces() {
    // What each memtable costs at least was together more than the deletes' part of the reserve.
    held(faults::run(2052, 500, Trouble::FullDevice));
}

#[test]
fn damage_anywhere_in_any_kind_of_database_is_found_or_harmless_or_cuts_the_log_where_the_format_says() {
    for seed in seeds(1, 1) {
        let mut summary = Summary::default();
        for kind in Kind::ALL {
            let victim = held(Victim::new(kind, seed));
            assert!(kind != Kind::Deep || victim.height >= 3, "a tree of height {}", victim.height);
            let empty = matches!(kind, Kind::Checkpointed | Kind::Closed);
            assert!(!empty || victim.replayed() == 0, "{}", victim.describe());
            let full = matches!(kind, Kind::Deep | Kind::Young);
            assert!(!full || victim.replayed() > 0, "{}", victim.describe());
            summary.add(&held(corrupt::sample(&victim, seed, 150, 8)));
        }
        for class in Class::ALL {
            let counts = summary.of(class);
            assert!(counts.cases > 0, "{class:?} was not done: {summary:?}");
        }
        let flips = summary.of(Class::Flip);
        assert!(flips.found > 0 && flips.harmless > 0 && flips.cut > 0, "{summary:?}");
        assert!(summary.went_on > 0 && summary.largest_request > 0, "{summary:?}");
    }
}

/// The longest single request to the allocator that a target may make for an input of the corpus.
const LARGEST_REQUEST: usize = 4 << 20;

#[test]
fn fuzz_targets_hold_for_every_input_of_the_kept_corpus() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in targets::ALL {
        let mut inputs: Vec<_> =
            std::fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name}: no input is kept");
        for input in inputs {
            let bytes = std::fs::read(&input).unwrap();
            println!("{}", input.display());
            let ((), measure) = measured(|| target(&bytes));
            assert!(measure.largest <= LARGEST_REQUEST, "{}: {measure:?}", input.display());
            // And for inputs near to it.
            let mut rng = Rng::new(bytes.len() as u64);
            for _ in 0..if name == "ops" { 0 } else { 4 } {
                let mut near = bytes.clone();
                if let Some(at) = (!near.is_empty()).then(|| rng.index(near.len())) {
                    near[at] ^= 1 << rng.below(8);
                    near.truncate(rng.index(near.len()) + 1 + near.len() / 2);
                }
                target(&near);
            }
        }
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
fn a_killed_process_with_several_writers_loses_nothing_it_acknowledged_not_even_when_killed_while_opening() {
    let directory = tempfile::tempdir().unwrap();
    let totals = held(kills::run(&kills::Plan {
        program: env!("CARGO_BIN_EXE_kill-loop").into(),
        directory: directory.path().to_path_buf(),
        seed: seeds(0, 1).next().unwrap(),
        kills: 60,
        check_every: 5,
        talk: false,
    }));
    assert!(totals.batches > 0 && totals.before_the_first_write > 0 && totals.checks > 0, "{totals:?}");
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

#[test]
fn an_undamaged_database_is_salvaged_completely_and_checked_without_a_change() {
    for seed in seeds(4, 4) {
        for closed in [true, false] {
            let mut healed = Healed::default();
            let patient = held(Patient::new(seed, 500, closed));
            let report = held(patient.treat(&[], &mut healed)).expect("there is something to start from");
            assert!(report.is_complete() && report.damages == 0, "seed {seed}: {report:?}");
            assert_eq!((healed.lost, healed.complete), (0, 1), "seed {seed}");
        }
    }
}

#[test]
fn every_damaged_page_of_the_data_file_costs_no_more_than_the_report_says() {
    for seed in seeds(2, 1) {
        let patient = held(Patient::new(seed, 400, seed % 2 == 0));
        let mut rng = Rng::new(seed);
        for (page_type, structure) in [(1, "data page"), (2, "meta block"), (3, "node"), (4, "catalog")] {
            let mut healed = Healed::default();
            let mut blocks = patient.blocks(page_type);
            rng.shuffle(&mut blocks);
            let mut named = 0;
            for block in blocks.into_iter().take(60) {
                let wound = Wound::Bytes(DATA.into(), block + 4 + rng.below(500), rng.between(1, 90));
                let report = held(patient.treat(&[wound], &mut healed));
                named += u64::from(report.is_some_and(|r| r.damage.iter().any(|d| d.structure == structure)));
            }
            assert!(named + healed.hopeless > 0, "seed {seed}: no {structure} was ever reported: {healed:?}");
            assert!(healed.saved > healed.lost || page_type == 4, "seed {seed}: {structure}: {healed:?}");
        }
    }
}

#[test]
fn damaged_superblocks_in_any_combination_leave_something_to_salvage() {
    for seed in seeds(2, 1) {
        let patient = held(Patient::new(seed, 300, true));
        for lost in 0..16u64 {
            let slots: Vec<u64> = (0..4).filter(|slot| lost >> slot & 1 == 1).collect();
            let mut healed = Healed::default();
            let report = held(patient.treat(&Patient::slots(&slots), &mut healed));
            let report = report.unwrap_or_else(|| panic!("seed {seed}: slots {slots:?}: nothing"));
            let named = report.damage.iter().filter(|d| d.structure == "superblock").count();
            assert_eq!(named, slots.len(), "seed {seed}");
            // The catalog is found by its page type even without any superblock.
            assert_eq!(healed.lost, 0, "seed {seed}: slots {slots:?}: {report:?}");
        }
    }
}

#[test]
fn damaged_and_missing_log_files_cost_no_more_than_the_report_says() {
    for seed in seeds(3, 2) {
        let patient = held(Patient::new(seed, 300, false));
        let mut rng = Rng::new(seed);
        let mut healed = Healed::default();
        for (name, bytes) in patient.files().iter().filter(|(name, _)| name.starts_with("log")) {
            let len = bytes.len() as u64;
            held(patient.treat(&[Wound::Gone(name.clone())], &mut healed));
            held(patient.treat(&[Wound::Cut(name.clone(), rng.below(len))], &mut healed));
            held(patient.treat(&[Wound::Bytes(name.clone(), 0, 64)], &mut healed));
            for _ in 0..6 {
                let at = rng.below(len);
                held(patient.treat(&[Wound::Bytes(name.clone(), at, 1)], &mut healed));
            }
        }
        assert!(healed.salvages > 0 && healed.hopeless == 0, "seed {seed}: {healed:?}");
    }
}

#[test]
fn random_damage_never_costs_more_than_the_report_says() {
    for seed in seeds(6, 6) {
        let patient = held(Patient::new(seed, 300, seed % 2 == 0));
        let mut rng = Rng::new(seed);
        let mut healed = Healed::default();
        for _ in 0..20 {
            let wounds = patient.random_wounds(&mut rng);
            held(patient.treat(&wounds, &mut healed));
        }
        println!("seed {seed}: {healed:?}");
    }
}
