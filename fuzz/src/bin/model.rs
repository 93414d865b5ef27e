//! Model runs as a program: `model --seeds A..B --ops M [--threads N] [--check true]`. Exit status 0 only if every seed held.

use betree_fuzz::model::{Run, on_simulated_disk};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|w| w == name).and_then(|i| words.get(i + 1));
    let seeds = value("--seeds")
        .and_then(|v| v.split_once(".."))
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (Some((first, end)), Some(ops)) = (seeds, value("--ops").and_then(|v| v.parse().ok())) else {
        eprintln!("model --seeds A..B --ops M [--threads N] [--check true]");
        return ExitCode::from(2);
    };
    let threads = value("--threads").and_then(|v| v.parse().ok()).unwrap_or(0);
    let check_always = value("--check").is_some_and(|v| v == "true");
    let (mut failed, mut heights) = (0, [0u32; 16]);
    for seed in first..end {
        let seed: u64 = seed;
        match on_simulated_disk(seed, Run { ops, threads, check_always }) {
            Ok(height) => heights[(height as usize).min(15)] += 1,
            Err(text) => {
                failed += 1;
                println!("FAILED {text}");
            }
        }
    }
    println!("{failed} of {} seeds failed; runs by height of the tree: {heights:?}", end - first);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
