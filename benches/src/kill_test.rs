//! Kills a loading process at random moments and checks that nothing it acknowledged is lost.
//!
//! Three processes. The *writer* inserts records in the order of their numbers and, after each commit has returned, writes how many
//! it has into a pipe: that is the acknowledgement, and nothing is counted that did not come through the pipe. The *parent*
//! kills it with SIGKILL at a random moment. The *verifier* reopens, timed, runs `Db::check`, reads everything in order and
//! a sample by key, and says what it found. After every other round the verifier is killed too instead of closing, so that a
//! recovery also meets what a recovery has left.
//!
//! Invariant `kill.prefix`: after a kill the database holds the records `0..m` for some `m`, at least as many as were acknowledged
//! and at most one commit more, each with its value.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use betree::{Db, Durability};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::args::KillTestArgs;
use crate::record::{Batch, FIRST_VERSION, Random, Records};
use crate::report::count;

const KEYSPACE: &str = "records";
/// Records read by key in each round, beside the scan that reads all.
const SAMPLE: u64 = 2000;
/// Most time added after the chosen number of records was acknowledged, so that the moment is not tied to an acknowledgement.
const JITTER_MICROS: u64 = 30_000;

/// What the writer and the verifier are to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct KillSpec {
    dir: PathBuf,
    /// For the writer the first record to insert, for the verifier how many were acknowledged.
    from: u64,
    /// For the writer how many to have at the end, for the verifier how many there may be at most.
    to: u64,
    /// Whether the writer, once through, waits for its end with the database open instead of closing it.
    wait: bool,
    batch: u64,
    value_bytes: usize,
    memory: u64,
    seed: u64,
}

impl KillSpec {
    fn records(&self) -> Records {
        Records::new(self.seed, self.value_bytes)
    }

    fn open(&self) -> Result<Db> {
        Ok(Db::builder().memory(self.memory as usize).durability(Durability::Buffered).open(&self.dir)?)
    }
}

/// What the verifier found.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Verdict {
    reopen_seconds: f64,
    present: u64,
    problems: Vec<String>,
}

/// One line of the report.
#[derive(Debug)]
struct Round {
    acknowledged: u64,
    verdict: Verdict,
}

/// Runs the test; true if nothing was lost, every check was clean and every reopening was fast enough.
///
/// # Errors
/// If the directory is not empty or a process cannot be run.
pub fn run(args: &KillTestArgs) -> Result<bool> {
    ensure!(args.records > 0, "there is nothing to insert");
    fs::create_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    ensure!(fs::read_dir(&args.dir)?.next().is_none(), "{} is not empty", args.dir.display());
    let spec = KillSpec {
        dir: args.dir.clone(),
        from: 0,
        to: args.records,
        wait: false,
        batch: args.batch,
        value_bytes: args.value_bytes,
        memory: args.memory,
        seed: args.seed,
    };
    println!("seed {}", args.seed);
    let bar = progress_bar(args.records);
    let rounds = run_rounds(args, &spec, &bar);
    bar.finish_and_clear();
    let rounds = rounds?;
    let passed = print_table(args, &rounds);
    if passed && !args.keep {
        fs::remove_dir_all(&args.dir)?;
    }
    Ok(passed)
}

fn run_rounds(args: &KillTestArgs, spec: &KillSpec, bar: &ProgressBar) -> Result<Vec<Round>> {
    let mut random = Random::new(args.seed);
    let mut rounds = Vec::new();
    let mut present = 0;
    for number in 0..=args.kills {
        let kills_left = args.kills - number;
        let target = (kills_left > 0).then(|| {
            let usual = ((args.records - present) / (kills_left + 1)).max(1);
            present + usual / 2 + random.below(usual)
        });
        let jitter = Duration::from_micros(random.below(JITTER_MICROS));
        bar.set_message(format!("round {number}"));
        let writer = KillSpec { from: present, wait: target.is_some(), ..spec.clone() };
        let acknowledged = load_and_kill(&writer, target.map(|t| (t, jitter)), bar)?.max(present);
        ensure!(
            target.is_some() || acknowledged == args.records,
            "the last load ended at record {acknowledged}"
        );
        let verifier = KillSpec {
            from: acknowledged,
            to: (acknowledged + args.batch).min(args.records),
            ..spec.clone()
        };
        let verdict = verify(&verifier, number % 2 == 1 && kills_left > 0)?;
        present = verdict.present;
        let failed = !verdict.problems.is_empty();
        rounds.push(Round { acknowledged, verdict });
        if failed {
            break;
        }
    }
    Ok(rounds)
}

/// Starts the writer, kills it some time after it has acknowledged `target` records, and returns how many it
/// acknowledged. Without a target it is left to finish.
fn load_and_kill(spec: &KillSpec, target: Option<(u64, Duration)>, bar: &ProgressBar) -> Result<u64> {
    let mut child = spawn("kill-writer", spec)?;
    let mut pipe = child.stdout.take().context("the writer has no output")?;
    let (reached, wait) = std::sync::mpsc::channel::<()>();
    let killer = thread::spawn(move || -> Result<Child> {
        // An end without a message means that the pipe is closed: the writer is through, or dead.
        if wait.recv().is_ok()
            && let Some((_, jitter)) = target
        {
            thread::sleep(jitter);
            child.kill()?;
        }
        Ok(child)
    });
    let mut signal = target.map(|(records, _)| (records, reached));
    let mut acknowledged = 0;
    let mut buffer = vec![0; 64 << 10];
    let mut partial = 0;
    loop {
        let read = pipe.read(&mut buffer[partial..])?;
        if read == 0 {
            break;
        }
        let filled = partial + read;
        let (words, rest) = buffer[..filled].as_chunks::<8>();
        if let Some(word) = words.last() {
            acknowledged = u64::from_le_bytes(*word);
            bar.set_position(acknowledged);
        }
        partial = rest.len();
        buffer.copy_within(filled - partial..filled, 0);
        if signal.as_ref().is_some_and(|(records, _)| acknowledged >= *records)
            && let Some((_, reached)) = signal.take()
        {
            // The receiver is gone only if killing failed, which the join below tells.
            let _ = reached.send(());
        }
    }
    drop(signal);
    let mut child = killer.join().map_err(|_| anyhow!("the killing thread panicked"))??;
    let status = child.wait()?;
    // One that was to be killed never ends by itself: through with its records, it waits.
    ensure!(
        if target.is_some() { status.signal() == Some(Signal::SIGKILL as i32) } else { status.success() },
        "the writer failed ({status}) after {acknowledged} acknowledged records"
    );
    Ok(acknowledged)
}

/// Reopens in another process; `kill` ends that one without closing.
fn verify(spec: &KillSpec, kill: bool) -> Result<Verdict> {
    let mut child = spawn("kill-verifier", spec)?;
    let release: ChildStdin = child.stdin.take().context("the verifier has no input")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the verifier has no output")?).read_line(&mut line)?;
    if kill {
        child.kill()?;
    }
    drop(release);
    let status = child.wait()?;
    if line.is_empty() {
        bail!("the verifier failed ({status})");
    }
    let mut verdict: Verdict = serde_json::from_str(&line).context("the verdict")?;
    if !kill && !status.success() {
        verdict.problems.push(format!("closing failed ({status})"));
    }
    Ok(verdict)
}

fn spawn(command: &str, spec: &KillSpec) -> Result<Child> {
    Command::new(std::env::current_exe()?)
        .arg(command)
        .arg(serde_json::to_string(spec)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command}"))
}

/// The writer: inserts and acknowledges until it is through or killed.
///
/// # Errors
/// What the database says.
pub fn run_writer(spec: &str) -> Result<()> {
    let spec: KillSpec = serde_json::from_str(spec)?;
    let records = spec.records();
    let db = spec.open()?;
    let keyspace = db.keyspace(KEYSPACE)?;
    let mut write = db.batch();
    let mut batch = Batch::new(spec.value_bytes);
    // Standard output's own buffering would hold acknowledgements back, or split them.
    let mut pipe = fs::File::options().write(true).open("/proc/self/fd/1")?;
    pipe.write_all(&spec.from.to_le_bytes())?;
    let mut number = spec.from;
    while number < spec.to {
        let end = (number + spec.batch).min(spec.to);
        batch.clear();
        for n in number..end {
            batch.push(&records, n, FIRST_VERSION);
        }
        if batch.len() == 1 {
            for (key, value) in batch.iter() {
                keyspace.insert(key, value)?;
            }
        } else {
            for (key, value) in batch.iter() {
                write.insert(&keyspace, key, value)?;
            }
            db.write_with(&mut write, Durability::Buffered)?;
        }
        pipe.write_all(&end.to_le_bytes())?;
        number = end;
    }
    if spec.wait {
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    Ok(db.close()?)
}

/// The verifier: reopens, checks, says what it found, and closes when it is let go.
///
/// # Errors
/// If reopening fails; what is wrong inside is in the verdict.
pub fn run_verifier(spec: &str) -> Result<()> {
    let spec: KillSpec = serde_json::from_str(spec)?;
    let records = spec.records();
    let opening = Instant::now();
    let db = spec.open()?;
    let keyspace = db.keyspace(KEYSPACE)?;
    // Reopened is what answers: the first read is part of it.
    keyspace.get(records.key(0))?;
    let reopen_seconds = opening.elapsed().as_secs_f64();

    let mut problems = db.check()?.problems;
    let mut seen = Seen::new(records, spec.to);
    for row in keyspace.iter() {
        let (key, value) = row?;
        seen.row(&key, &value, &mut problems);
    }
    let present = seen.verdict(spec.from, &mut problems);
    let mut random = Random::new(spec.seed ^ spec.from);
    for _ in 0..SAMPLE.min(present) {
        let number = random.below(present);
        match keyspace.get(records.key(number))? {
            Some(value) if records.value_matches(number, &value) => {}
            Some(_) => problems.push(format!("get: record {number} has a wrong value")),
            None => problems.push(format!("get: record {number} is missing")),
        }
    }
    problems.truncate(20);
    let mut line = serde_json::to_vec(&Verdict { reopen_seconds, present, problems })?;
    line.push(b'\n');
    std::io::stdout().write_all(&line)?;
    std::io::stdout().flush()?;
    // Until the parent lets go of the pipe, or kills.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(keyspace);
    Ok(db.close()?)
}

/// Which records a scan has shown.
struct Seen {
    records: Records,
    limit: u64,
    bits: Vec<u64>,
    rows: u64,
    previous: Option<Vec<u8>>,
}

impl Seen {
    fn new(records: Records, limit: u64) -> Self {
        Seen { records, limit, bits: vec![0; limit.div_ceil(64) as usize], rows: 0, previous: None }
    }

    fn row(&mut self, key: &[u8], value: &[u8], problems: &mut Vec<String>) {
        self.rows += 1;
        if self.previous.as_deref().is_some_and(|previous| previous >= key) {
            problems.push(format!("scan: keys do not rise at row {}", self.rows));
        }
        let previous = self.previous.get_or_insert_default();
        previous.clear();
        previous.extend_from_slice(key);
        match self.records.number(key) {
            Some(number) if number < self.limit => {
                self.bits[(number / 64) as usize] |= 1 << (number % 64);
                if !self.records.value_matches(number, value) {
                    problems.push(format!("scan: record {number} has a wrong value"));
                }
            }
            Some(number) => problems.push(format!("scan: record {number} was never written")),
            None => problems.push(format!("scan: row {} has a key that was never written", self.rows)),
        }
    }

    /// The length of the prefix that is there; everything else about it that is wrong goes to `problems`.
    fn verdict(&self, acknowledged: u64, problems: &mut Vec<String>) -> u64 {
        let has = |number: u64| self.bits[(number / 64) as usize] >> (number % 64) & 1 == 1;
        let present = (0..self.limit).find(|&n| !has(n)).unwrap_or(self.limit);
        let lost: Vec<u64> = (0..acknowledged).filter(|&n| !has(n)).collect();
        if let Some(first) = lost.first() {
            problems.push(format!("{} acknowledged records are lost, the first is {first}", lost.len()));
        } else if self.rows != present {
            problems.push(format!("{} rows, but the prefix has {present} records", self.rows));
        }
        present
    }
}

fn print_table(args: &KillTestArgs, rounds: &[Round]) -> bool {
    println!("\n| round | acknowledged | present | reopened in, ms | problems |\n|---:|---:|---:|---:|---|");
    let mut passed = rounds.len() as u64 == args.kills + 1;
    for (i, round) in rounds.iter().enumerate() {
        let Verdict { reopen_seconds, present, problems } = &round.verdict;
        let slow = *reopen_seconds > args.max_reopen_seconds;
        let mut words = problems.join("; ");
        if slow {
            words.push_str(" reopened too slowly");
        }
        passed &= problems.is_empty() && !slow;
        let end = if i as u64 == args.kills { " (closed)" } else { "" };
        println!(
            "| {}{end} | {} | {present} | {:.1} | {} |",
            i + 1,
            round.acknowledged,
            reopen_seconds * 1e3,
            if words.is_empty() { "none" } else { words.trim() }
        );
    }
    let total = rounds.last().map_or(0, |r| r.verdict.present);
    println!(
        "\n{}: {} kills, {} records at the end in {}",
        if passed { "Nothing was lost" } else { "FAILED" },
        (rounds.len() as u64).min(args.kills),
        count(total as f64),
        Path::display(&args.dir)
    );
    passed
}

fn progress_bar(records: u64) -> ProgressBar {
    let bar = ProgressBar::new(records);
    // The template is a constant that indicatif accepts; the default style would do as well.
    if let Ok(style) = ProgressStyle::with_template("{msg:10} {bar:40} {human_pos:>12}/{human_len} {elapsed}")
    {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(numbers: impl IntoIterator<Item = u64>, limit: u64, acknowledged: u64) -> (u64, Vec<String>) {
        let records = Records::new(4, 20);
        let mut rows: Vec<_> = numbers.into_iter().map(|n| (records.key(n), n)).collect();
        rows.sort_unstable();
        let (mut seen, mut problems) = (Seen::new(records, limit), Vec::new());
        for (key, number) in rows {
            let mut value = Vec::new();
            records.append_value(number, FIRST_VERSION, &mut value);
            seen.row(&key, &value, &mut problems);
        }
        let present = seen.verdict(acknowledged, &mut problems);
        (present, problems)
    }

    #[test]
    fn everything_acknowledged_and_one_commit_more_is_no_problem() {
        assert_eq!(seen(0..100, 101, 100), (100, vec![]));
        assert_eq!(seen(0..101, 101, 100), (101, vec![]));
        assert_eq!(seen([], 1, 0), (0, vec![]));
    }

    #[test]
    fn a_lost_record_is_counted_and_named() {
        let (present, problems) = seen((0..100).filter(|n| n % 50 != 7), 101, 100);
        assert_eq!(
            (present, problems),
            (7, vec!["2 acknowledged records are lost, the first is 7".to_string()])
        );
    }

    #[test]
    fn a_gap_behind_the_acknowledged_ones_is_a_problem() {
        let (_, problems) = seen((0..100).chain([105]), 110, 100);
        assert_eq!(problems, ["101 rows, but the prefix has 100 records"]);
    }

    #[test]
    fn a_record_that_was_never_written_is_a_problem() {
        let (_, problems) = seen((0..100).chain([500]), 101, 100);
        assert!(problems[0].contains("record 500 was never written"), "{problems:?}");
    }
}
