//! A look into a database that no server has open: get, range, prefix, stats.

use std::io::{self, BufWriter, Write};
use std::ops::Bound;
use std::path::PathBuf;
use std::process::ExitCode;

use betree::{Db, Keyspace};
use clap::Args;

use crate::store::{Space, Store, now_ms};

/// Which database.
#[derive(Debug, Args)]
pub struct Place {
    /// The database directory.
    #[arg(long, default_value = "betree-data")]
    dir: PathBuf,
}

/// `kvserver get`
#[derive(Debug, Args)]
pub struct Get {
    #[command(flatten)]
    place: Place,
    /// The numbered database.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..16))]
    db: u8,
    /// The key.
    key: String,
}

/// What a walk prints.
#[derive(Debug, Args)]
struct Walk {
    /// The numbered database.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..16))]
    db: u8,
    /// Print at most so many.
    #[arg(long)]
    limit: Option<usize>,
    /// From the end.
    #[arg(long)]
    rev: bool,
    /// Keys without values.
    #[arg(long)]
    keys_only: bool,
}

/// `kvserver range`
#[derive(Debug, Args)]
pub struct Range {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    walk: Walk,
    /// The lower end.
    #[arg(allow_hyphen_values = true)]
    start: String,
    /// The upper end.
    end: String,
}

/// `kvserver prefix`
#[derive(Debug, Args)]
pub struct Prefix {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    walk: Walk,
    /// The prefix.
    prefix: String,
}

fn open(place: &Place) -> Result<Db, String> {
    Db::builder().create_if_missing(false).open(&place.dir).map_err(|e| e.to_string())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Prints the engine's counters.
pub fn stats(place: &Place) -> Result<ExitCode, String> {
    let db = open(place)?;
    println!("{}", serde_json::to_string_pretty(&db.stats()).map_err(text)?);
    db.close().map_err(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a value; exit code 1 if there is none.
pub fn get(get: &Get) -> Result<ExitCode, String> {
    let store = Store::new(open(&get.place)?).map_err(text)?;
    let key = get.key.as_bytes();
    let gone = store.expired(get.db, key, now_ms()).map_err(text)?;
    let value = store.read(get.db, Space::Data, key).map_err(text)?.filter(|_| !gone);
    let mut out = io::stdout().lock();
    let code = match value {
        None => ExitCode::FAILURE,
        Some(value) => {
            out.write_all(&value).and_then(|()| out.write_all(b"\n")).map_err(text)?;
            ExitCode::SUCCESS
        }
    };
    store.engine.close().map_err(text)?;
    Ok(code)
}

fn end(text: &str) -> Bound<Vec<u8>> {
    match text.as_bytes() {
        b"-" | b"+" => Bound::Unbounded,
        [b'(', key @ ..] => Bound::Excluded(key.to_vec()),
        [b'[', key @ ..] => Bound::Included(key.to_vec()),
        key => Bound::Included(key.to_vec()),
    }
}

/// Prints a range.
pub fn range(range: &Range) -> Result<ExitCode, String> {
    let ends = (end(&range.start), end(&range.end));
    print(&range.place, &range.walk, |keyspace| keyspace.range(ends))
}

/// Prints what lies below a prefix.
pub fn prefix(prefix: &Prefix) -> Result<ExitCode, String> {
    print(&prefix.place, &prefix.walk, |keyspace| keyspace.prefix(prefix.prefix.as_bytes()))
}

fn print(
    place: &Place,
    walk: &Walk,
    iter: impl FnOnce(&Keyspace) -> betree::Iter,
) -> Result<ExitCode, String> {
    let store = Store::new(open(place)?).map_err(text)?;
    let now = now_ms();
    let mut out = BufWriter::new(io::stdout().lock());
    if let Some(keyspace) = store.keyspace(walk.db, Space::Data) {
        let mut iter = iter(keyspace);
        let mut left = walk.limit.unwrap_or(usize::MAX);
        while left > 0 {
            let next = if walk.rev { iter.next_back() } else { iter.next() };
            let Some((key, value)) = next.transpose().map_err(text)? else { break };
            if store.expired(walk.db, &key, now).map_err(text)? {
                continue;
            }
            let line = if walk.keys_only { key.to_vec() } else { [&key[..], b"\t", &value].concat() };
            match out.write_all(&line).and_then(|()| out.write_all(b"\n")) {
                // The reader has seen enough (`| head`).
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
                other => other.map_err(text)?,
            }
            left -= 1;
        }
    }
    match out.flush() {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(text(e)),
        _ => {}
    }
    store.engine.close().map_err(text)?;
    Ok(ExitCode::SUCCESS)
}
