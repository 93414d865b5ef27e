//! Fault runs and corruption as a program. Exit status 0 only if all held.
//!
//! `faults --seeds A..B --ops M` makes the disk fail; `faults --corrupt A..B [--kind KIND]` damages every place of small databases of
//! every kind; `faults --flip SEED` is the same for one seed. A case that takes longer than a minute counts as a hang and ends the program.

use betree_fuzz::allocation::Counting;
use betree_fuzz::corrupt::{Kind, Summary, Victim};
use betree_fuzz::faults::{Trouble, run};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Cases finished.
static CASES: AtomicU64 = AtomicU64::new(0);
/// A case takes well below a millisecond.
const HANG: Duration = Duration::from_secs(60);

fn range(text: &str) -> Option<Range<u64>> {
    let (first, end) = text.split_once("..")?;
    Some(first.parse().ok()?..end.parse().ok()?)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|w| w == name).and_then(|i| words.get(i + 1));
    let ops = value("--ops").and_then(|v| v.parse().ok()).unwrap_or(400);
    let mut failed = 0;
    let flip = value("--flip").and_then(|v| v.parse().ok()).map(|seed: u64| seed..seed + 1);
    if let Some(seeds) = flip.or_else(|| value("--corrupt").and_then(|v| range(v))) {
        failed += corrupt(seeds, value("--kind").map(String::as_str));
    }
    if let Some(seeds) = value("--seeds").and_then(|v| range(v)) {
        for trouble in Trouble::ALL {
            let (mut errors, mut lives, mut batches) = (0, 0, 0);
            for seed in seeds.clone() {
                match run(seed, ops, trouble) {
                    Ok(s) => {
                        (errors, lives, batches) = (errors + s.errors, lives + s.lives, batches + s.batches)
                    }
                    Err(text) => {
                        failed += 1;
                        println!("FAILED {text}");
                    }
                }
            }
            println!("{trouble:?}: {errors} errors, {lives} lives, {batches} batches");
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Damages every place of the databases of these seeds; how many cases failed.
fn corrupt(seeds: Range<u64>, kind: Option<&str>) -> u64 {
    std::thread::spawn(watch);
    // A panic is caught and reported with its case.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut failed, mut total) = (0, Summary::default());
    let started = Instant::now();
    for seed in seeds {
        for victim in Kind::ALL.into_iter().filter(|k| kind.is_none_or(|name| format!("{k:?}") == name)) {
            let begun = Instant::now();
            let mut summary = Summary::default();
            let victim = match Victim::new(victim, seed) {
                Ok(victim) => victim,
                Err(text) => {
                    failed += 1;
                    println!("FAILED {text}");
                    continue;
                }
            };
            println!("seed {seed}: {}", victim.describe());
            let mut failures = 0;
            for damage in victim.damages(seed) {
                if let Err(text) = victim.suffer(&damage, &mut summary) {
                    failures += 1;
                    // A bug shows in many places; some of them will do.
                    if failures <= 20 {
                        println!("FAILED {text}");
                    }
                }
                CASES.fetch_add(1, Ordering::Relaxed);
            }
            let cases: u64 = summary.by_class.values().map(|counts| counts.cases).sum();
            println!("  {cases} cases, {failures} failed, {:.1} s", begun.elapsed().as_secs_f64());
            failed += failures;
            total.add(&summary);
        }
    }
    println!(
        "{:<18} {:<24} {:>9} {:>9} {:>9} {:>9}",
        "damage", "hit", "cases", "found", "harmless", "log cut"
    );
    for ((class, structure), counts) in &total.by_class {
        println!(
            "{:<18} {structure:<24} {:>9} {:>9} {:>9} {:>9}",
            format!("{class:?}"),
            counts.cases,
            counts.found,
            counts.harmless,
            counts.cut
        );
    }
    let cases: u64 = total.by_class.values().map(|counts| counts.cases).sum();
    println!(
        "{cases} cases, {failed} failed, {} went on after it, longest request {} bytes, most held {} bytes, {:.1} s",
        total.went_on,
        total.largest_request,
        total.most_held,
        started.elapsed().as_secs_f64()
    );
    failed
}

/// Ends the program when no case ends.
fn watch() {
    let (mut before, mut since) = (0, Instant::now());
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = CASES.load(Ordering::Relaxed);
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() > HANG {
            println!("FAILED case {now} hangs");
            std::process::exit(1);
        }
    }
}
