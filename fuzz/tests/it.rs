//! The engine against the oracle: model runs, crash simulation, faults, corruption, killed processes.
//!
//! Every test prints its seed when it fails; part of the seeds are fresh in every run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use betree_fuzz::Shape;
use betree_fuzz::allocation::{Counting, measured};
use betree_fuzz::corrupt::{self, Class, Kind, Summary, Victim};
use betree_fuzz::faults::{self, Trouble};
use betree_fuzz::model::{Run, in_directory, on_simulated_disk};
use betree_fuzz::simulate::{self, Plan};
use betree_fuzz::targets;
use betree_testkit::{Rng, SimStorage};

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
fn the_same_seed_goes_the_same_way() {
    // Only the identity of the database, which salts its checksums, is fresh each time.
    let plan = Plan::share(300, 40, 0);
    assert_eq!(held(simulate::run(5, &plan)), held(simulate::run(5, &plan)));
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
