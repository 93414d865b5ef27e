//! The bank auditor as a program: `auditor [--seconds N] [--seed S] [--ground G]`. Exit status 0 only if all money was always there.
//!
//! Runs of about four seconds each, in turn on a real disk through io_uring, on a real disk through plain reads and writes, and on a
//! simulated disk whose power is cut; `--ground` 0, 1 or 2 keeps to one of the three. `--seed` begins with that seed; `TMPDIR` says where the real disk is.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use betree_fuzz::audit::{Ground, Totals, run};
use betree_testkit::Rng;

/// How long one database lives: options are drawn anew for each.
const LIFE: Duration = Duration::from_secs(4);

fn arguments() -> Result<(u64, u64, Option<u64>), String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let (mut seconds, mut seed, mut only) = (60, Rng::new(now).next_u64() >> 16, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = value.parse::<u64>().map_err(|e| format!("{word} {value}: {e}"))?;
        match &word[..] {
            "--seconds" => seconds = number,
            "--seed" => seed = number,
            "--ground" if number < 3 => only = Some(number),
            _ => {
                return Err(format!(
                    "unknown argument {word}; known are --seconds N, --seed S, --ground 0|1|2"
                ));
            }
        }
    }
    Ok((seconds, seed, only))
}

fn life(seed: u64, which: u64, length: Duration) -> Result<Totals, String> {
    let scratch = std::env::temp_dir().join(format!("betree-auditor-{}-{seed}", std::process::id()));
    let ground = match which {
        0 => Ground::Directory(scratch.clone()),
        1 => Ground::Portable(scratch.clone()),
        _ => Ground::Simulated,
    };
    let result = run(seed, &ground, length);
    if which < 2 && result.is_ok() {
        std::fs::remove_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    }
    result
}

fn main() -> ExitCode {
    let (seconds, first, only) = match arguments() {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let whole = Duration::from_secs(seconds);
    let (mut sum, mut lives) = (Totals::default(), 0);
    while started.elapsed() < whole {
        let seed = first + lives;
        let which = only.unwrap_or(lives % 3);
        println!("seed {seed} on {}", ["a disk", "a disk, portable I/O", "a simulated disk"][which as usize]);
        match life(seed, which, LIFE.min(whole - started.elapsed())) {
            Ok(totals) => {
                println!("  {totals:?}");
                sum = sum.plus(totals);
            }
            Err(text) => {
                println!("FAILED {text}");
                return ExitCode::FAILURE;
            }
        }
        lives += 1;
    }
    println!("{lives} databases in {:.1} s, nothing missing: {sum:?}", started.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}
