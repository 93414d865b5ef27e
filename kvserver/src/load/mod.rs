//! `kvserver load`: streams records from a file or standard input into keyspace `default`.
//!
//! Memory does not grow with the input: one line (at most 64 MiB) and one batch at a time. A bad line is counted, reported with
//! its number, and does not stop the load unless asked.

mod lines;
mod progress;
mod records;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use clap::{Args, ValueEnum};

use crate::config::{Settings, parse_size};
use crate::failure::Failure;
use crate::pending::Pending;
use crate::server::open_engine;
use crate::store::{Space, Store, expiry_key};
use progress::{Meter, Progress};
use records::Records;

/// How the input is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns with tabs between them; no quotes.
    Tsv,
    /// Columns with commas between them; quotes as in RFC 4180.
    Csv,
    /// A JSON object on each line.
    Ndjson,
    /// A Debian Contents index: a path, blanks, and a list of packages without blanks.
    Contents,
}

/// What to load, and how.
#[derive(Debug, Args)]
pub struct Options {
    /// The database directory; created if missing.
    #[arg(long, default_value = "betree-data")]
    dir: PathBuf,
    /// How the input is written.
    #[arg(long, value_enum)]
    format: Format,
    /// The key: a column's number from 1 on, or its name with --header; with ndjson a field's name. Contents: the path.
    #[arg(long)]
    key: Option<String>,
    /// The value: a column or field like --key. Otherwise the other columns as they were, or the whole JSON line.
    #[arg(long)]
    value: Option<String>,
    /// The first line names the columns (tsv, csv).
    #[arg(long)]
    header: bool,
    /// Stop at the first bad line, with exit code 1; what came before it is loaded.
    #[arg(long)]
    strict: bool,
    /// Memory for write buffers and page cache.
    #[arg(long, default_value = "512MiB", value_parser = parse_size)]
    memory: usize,
    /// The file, or - for standard input.
    file: PathBuf,
}

/// Records of one batch, and their bytes.
const BATCH_RECORDS: usize = 1000;
const BATCH_BYTES: usize = 256 << 10;
/// Bad lines that are shown.
const SHOWN: u64 = 20;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Loads.
pub fn run(options: &Options) -> Result<ExitCode, String> {
    let (input, size): (Box<dyn Read>, Option<u64>) = if options.file.as_os_str() == "-" {
        (Box::new(io::stdin().lock()), None)
    } else {
        let file = File::open(&options.file).map_err(|e| format!("{}: {e}", options.file.display()))?;
        let size = file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
        (Box::new(file), size)
    };
    let meter = Rc::new(Meter::default());
    let input = BufReader::with_capacity(256 << 10, meter.clone().count(input));
    let mut records = records::open(options, input)?;
    let settings = Settings { dir: options.dir.clone(), memory: options.memory, ..Settings::default() };
    let store = Store::new(open_engine(&settings)?).map_err(text)?;
    let mut progress = Progress::start(size, meter);
    let loaded = load(options, &store, records.as_mut(), &mut progress);
    // What was loaded before a failure stays, so the database is closed in good order either way.
    let closed = store.engine.close().map_err(text);
    let bad = loaded?;
    closed?;
    progress.finish(bad);
    Ok(ExitCode::SUCCESS)
}

/// Returns the number of bad lines.
fn load(
    options: &Options,
    store: &Store,
    records: &mut dyn Records,
    progress: &mut Progress,
) -> Result<u64, String> {
    let mut pending = Pending::new(store);
    pending.begin(false);
    let (mut bad, mut in_batch, mut bytes) = (0, 0, 0);
    let result = loop {
        let result = records.next(&mut |key, value| {
            bytes += key.len() + value.len();
            insert(store, &mut pending, key, value)
        });
        match result {
            Ok(true) => {
                in_batch += 1;
                if in_batch >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                    pending.commit(store).map_err(explain)?;
                    progress.add(in_batch as u64);
                    (in_batch, bytes) = (0, 0);
                }
            }
            Ok(false) => break Ok(()),
            Err(records::Error::Line { number, why }) => {
                bad += 1;
                if options.strict {
                    break Err(format!("line {number}: {why} (--strict: stopped)"));
                }
                if bad <= SHOWN {
                    progress.say(&format!("line {number}: {why}"));
                } else if bad == SHOWN + 1 {
                    progress.say("more bad lines are only counted");
                }
            }
            Err(records::Error::Fatal(why)) => break Err(why),
        }
    };
    pending.commit(store).map_err(explain)?;
    progress.add(in_batch as u64);
    result.map(|()| bad)
}

fn insert(store: &Store, pending: &mut Pending, key: &[u8], value: &[u8]) -> Result<(), Failure> {
    if key.len() > betree::MAX_KEY_LEN {
        return Err(betree::Error::KeyTooLong { len: key.len() }.into());
    }
    // As SET does: a time that an earlier value of the key had is not the new one's.
    pending.remove(store, 0, Space::Expires, &expiry_key(key)).or_else(ignore_too_long)?;
    pending.put(store, 0, Space::Data, key, value)
}

/// Keys too long to have a time have none.
fn ignore_too_long(failure: Failure) -> Result<(), Failure> {
    match failure {
        Failure::Engine(betree::Error::KeyTooLong { .. }) => Ok(()),
        other => Err(other),
    }
}

fn explain(failure: Failure) -> String {
    match failure {
        Failure::Request(text) => text.into_owned(),
        Failure::Engine(error) => error.to_string(),
        // Loading writes, and waits for what it reads.
        Failure::Cold => "a value is not in memory".into(),
    }
}
