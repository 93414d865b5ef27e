//! The crash simulator as a program. Exit status 0 only if every seed held.
//!
//! ```text
//! simulator --seeds A..B --ops M     the campaign: each seed a run of several lives, crashed at a sample of its operations
//! simulator --seconds N --ops M      the same with fresh seeds (or from --seeds A.. on) until the time is over
//! simulator --thorough …             one life per seed, crashed at every operation of the disk
//! simulator --threads N              how many seeds at once; 2 if not said
//! ```
//!
//! A failing seed prints itself, the violated invariant, the crash point, the last operations, and the command that replays it.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use betree_fuzz::simulate::{self, Plan};
use betree_fuzz::{Summary, campaign};
use betree_testkit::Rng;

const USAGE: &str = "known are --seeds A..B, --ops M, --seconds N, --threads N, --thorough";
/// How often the campaign says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Arguments {
    first: u64,
    end: u64,
    ops: usize,
    seconds: Option<u64>,
    threads: usize,
    thorough: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { first: 0, end: 10, ops: 1000, seconds: None, threads: 2, thorough: false };
    let mut seeds = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--thorough" {
            parsed.thorough = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value; {USAGE}"))?;
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{word} {text}: {e}"));
        match &word[..] {
            "--seeds" => {
                let (first, end) = value.split_once("..").ok_or("--seeds is FIRST..END")?;
                seeds = Some((number(first)?, if end.is_empty() { None } else { Some(number(end)?) }));
            }
            "--ops" => parsed.ops = number(&value)? as usize,
            "--seconds" => parsed.seconds = Some(number(&value)?),
            "--threads" => parsed.threads = number(&value)?.max(1) as usize,
            _ => return Err(format!("unknown argument {word}; {USAGE}")),
        }
    }
    match (seeds, parsed.seconds) {
        (Some((first, Some(end))), _) => (parsed.first, parsed.end) = (first, end),
        (Some((first, None)), Some(_)) => (parsed.first, parsed.end) = (first, u64::MAX),
        (Some((_, None)), None) => return Err("--seeds without an end needs --seconds".into()),
        (None, Some(_)) => (parsed.first, parsed.end) = (fresh_seed(), u64::MAX),
        (None, None) => {}
    }
    Ok(parsed)
}

/// 48 bits: room for counting on.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    Rng::new(now ^ u64::from(std::process::id()).rotate_left(40)).next_u64() >> 16
}

fn run(seed: u64, arguments: &Arguments) -> Result<Summary, String> {
    if arguments.thorough {
        simulate::run(seed, &Plan::thorough(arguments.ops))
    } else {
        campaign::run(seed, arguments.ops)
    }
}

fn replay(seed: u64, arguments: &Arguments) -> String {
    let mode = if arguments.thorough { " --thorough" } else { "" };
    format!(
        "cargo run --release -p betree-fuzz --bin simulator -- --seeds {seed}..{} --ops {}{mode}",
        seed + 1,
        arguments.ops
    )
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
    let until = arguments.seconds.map(|seconds| started + Duration::from_secs(seconds));
    println!(
        "{} from seed {} on, {} operations each, {} threads",
        if arguments.thorough { "every crash point" } else { "campaign" },
        arguments.first,
        arguments.ops,
        arguments.threads
    );
    let (next, done, failed) = (AtomicU64::new(arguments.first), AtomicU64::new(0), AtomicU64::new(0));
    let total = Mutex::new(Summary::default());
    let said = Mutex::new(started);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= arguments.end || until.is_some_and(|until| Instant::now() >= until) {
                        return;
                    }
                    match run(seed, &arguments) {
                        Ok(summary) => {
                            if arguments.thorough {
                                println!("seed {seed} held: {} batches, {} disk operations, {} power losses, {} kills, {} crashes during recovery, height {}", summary.batches, summary.disk_ops, summary.power_losses, summary.kills, summary.again, summary.height);
                            }
                            total.lock().unwrap_or_else(PoisonError::into_inner).add(&summary);
                        }
                        Err(text) => {
                            println!("FAILED {text}\n  replay: {}", replay(seed, &arguments));
                            // Enough to work on; the rest would say the same.
                            stop.store(failed.fetch_add(1, Relaxed) + 1 >= 20, Relaxed);
                        }
                    }
                    let done = done.fetch_add(1, Relaxed) + 1;
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    if said.elapsed() >= PROGRESS {
                        *said = Instant::now();
                        println!("{done} seeds, {} failed, {:.0} s", failed.load(Relaxed), started.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    let (done, failed) = (done.load(Relaxed), failed.load(Relaxed));
    println!("{}", total.lock().unwrap_or_else(PoisonError::into_inner));
    println!(
        "{done} seeds from {} on, {failed} failures; {:.1} s",
        arguments.first,
        started.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
