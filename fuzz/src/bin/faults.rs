//! Fault runs and corruption as a program: `faults --seeds A..B --ops M`, `faults --flip SEED --ops M`. Exit status 0 only if all held.

use betree_fuzz::corrupt::{Summary, Victim};
use betree_fuzz::faults::{Trouble, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|w| w == name).and_then(|i| words.get(i + 1));
    let ops = value("--ops").and_then(|v| v.parse().ok()).unwrap_or(400);
    let mut failed = 0;
    if let Some(seed) = value("--flip").and_then(|v| v.parse().ok()) {
        let victim = match Victim::new(seed, ops) {
            Ok(victim) => victim,
            Err(text) => {
                println!("FAILED {text}");
                return ExitCode::FAILURE;
            }
        };
        let mut summary = Summary::default();
        for (file, offset) in victim.places() {
            if let Err(text) = victim.flip(&file, offset, (offset % 8) as u8, &mut summary) {
                failed += 1;
                println!("FAILED {text}");
            }
        }
        println!("{summary:?}, {failed} failed");
    }
    let seeds = value("--seeds").and_then(|v| v.split_once(".."));
    if let Some((Ok(first), Ok(end))) = seeds.map(|(a, b)| (a.parse::<u64>(), b.parse::<u64>())) {
        for trouble in Trouble::ALL {
            let (mut errors, mut lives, mut batches) = (0, 0, 0);
            for seed in first..end {
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
