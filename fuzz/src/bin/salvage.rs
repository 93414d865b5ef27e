//! Damage and salvage as a program: `salvage --seeds A..B --ops M [--wounds N]`. Exit status 0 only if every seed held.

use betree_fuzz::salvage::{Healed, Patient};
use betree_testkit::Rng;
use std::process::ExitCode;

fn one(seed: u64, ops: usize, wounds: u64, healed: &mut Healed) -> Result<(), String> {
    let patient = Patient::new(seed, ops, seed.is_multiple_of(2))?;
    patient.treat(&[], healed)?;
    let mut rng = Rng::new(seed);
    (0..wounds).try_for_each(|_| patient.treat(&patient.random_wounds(&mut rng), healed).map(drop))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|w| w == name).and_then(|i| words.get(i + 1));
    let seeds = value("--seeds")
        .and_then(|v| v.split_once(".."))
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (Some((first, end)), Some(ops)) = (seeds, value("--ops").and_then(|v| v.parse().ok())) else {
        eprintln!("salvage --seeds A..B --ops M [--wounds N]");
        return ExitCode::from(2);
    };
    let wounds = value("--wounds").and_then(|v| v.parse().ok()).unwrap_or(20);
    let (mut failed, mut healed) = (0, Healed::default());
    for seed in first..end {
        if let Err(text) = one(seed, ops, wounds, &mut healed) {
            failed += 1;
            println!("FAILED {text}");
        }
    }
    println!("{failed} of {} seeds failed; {healed:?}", end - first);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
