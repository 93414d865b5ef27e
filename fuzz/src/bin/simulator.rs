//! The crash simulator as a program: `simulator --seeds A..B --ops M [--threads N]`. Exit status 0 only if every seed held.
//!
//! A failing seed prints itself, the violated invariant, the crash point and the last operations.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use betree_fuzz::simulate::{Plan, run};

struct Arguments {
    first: u64,
    end: u64,
    ops: usize,
    threads: usize,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { first: 0, end: 10, ops: 1000, threads: 2 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{word} {text}: {e}"));
        match &word[..] {
            "--seeds" => {
                let (first, end) = value.split_once("..").ok_or("--seeds is FIRST..END")?;
                (parsed.first, parsed.end) = (number(first)?, number(end)?);
            }
            "--ops" => parsed.ops = number(&value)? as usize,
            "--threads" => parsed.threads = number(&value)?.max(1) as usize,
            _ => {
                return Err(format!("unknown argument {word}; known are --seeds A..B, --ops M, --threads N"));
            }
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let (next, failed) = (AtomicU64::new(arguments.first), AtomicU64::new(0));
    let (losses, kills, again) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= arguments.end {
                        return;
                    }
                    match run(seed, &Plan::thorough(arguments.ops)) {
                        Ok(s) => {
                            losses.fetch_add(s.power_losses, Relaxed);
                            kills.fetch_add(s.kills, Relaxed);
                            again.fetch_add(s.again, Relaxed);
                            println!(
                                "seed {seed}: {} batches, {} disk operations, {} power losses, {} kills, {} crashes in recovery, {} unsynced batches lost, height {}, {} checkpoints: held",
                                s.batches, s.disk_ops, s.power_losses, s.kills, s.again, s.lost, s.height, s.checkpoints
                            );
                        }
                        Err(text) => {
                            failed.fetch_add(1, Relaxed);
                            println!("FAILED {text}");
                        }
                    }
                }
            });
        }
    });
    let seeds = arguments.end.saturating_sub(arguments.first);
    println!(
        "{seeds} seeds, {} failed; {} power losses, {} kills, {} crashes in recovery; {:.1} s",
        failed.load(Relaxed),
        losses.load(Relaxed),
        kills.load(Relaxed),
        again.load(Relaxed),
        started.elapsed().as_secs_f64()
    );
    if failed.load(Relaxed) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
