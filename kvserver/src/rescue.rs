//! `check` and `salvage`: what is wrong with a database that no server has open, and what can be saved of it.
//!
//! Neither changes anything in the directory that it reads. Reports go to standard output, progress to standard error. Exit code 0: nothing
//! wrong, nothing lost; 1 otherwise.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use betree::{CheckReport, Damage, Db, KeyRange, Progress, SalvageReport};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::parse_size;

/// Bytes of a key that are shown.
const KEY_SHOWN: usize = 80;

/// `kvserver check`
#[derive(Debug, Args)]
pub struct Check {
    /// The database directory.
    #[arg(long, default_value = "betree-data")]
    dir: PathBuf,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

/// `kvserver salvage`
#[derive(Debug, Args)]
pub struct Salvage {
    /// The damaged database; it is not changed.
    #[arg(long)]
    dir: PathBuf,
    /// The directory of the new database: empty, or not there yet.
    #[arg(long)]
    into: PathBuf,
    /// Memory for write buffers and page cache, such as 512MiB or 4GiB.
    #[arg(long, default_value = "512MiB", value_parser = parse_size)]
    memory: usize,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

/// A bar on a terminal, nothing otherwise.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new() -> Bar {
        let template = "{msg} {bar:30} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left";
        Bar(io::stderr().is_terminal().then(|| {
            // A template that does not parse leaves the default look.
            match ProgressStyle::with_template(template) {
                Ok(style) => ProgressBar::new(0).with_style(style),
                Err(_) => ProgressBar::new(0),
            }
        }))
    }

    fn show(&self, progress: Progress) {
        if let Some(bar) = &self.0 {
            bar.set_message(progress.what);
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), String> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        // The reader has seen enough (`| head`).
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn json(report: &impl serde::Serialize) -> Result<(), String> {
    let text = serde_json::to_string_pretty(report).map_err(|e| e.to_string())?;
    print(|out| writeln!(out, "{text}"))
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Checks everything, without a change.
pub fn check(arguments: &Check) -> Result<ExitCode, String> {
    let bar = Bar::new();
    let checked = Db::builder().check_at(&arguments.dir, &mut |progress| bar.show(progress));
    drop(bar);
    let report = checked.map_err(|e| e.to_string())?;
    if arguments.json {
        json(&report)?;
    } else {
        print(|out| show_check(out, &arguments.dir.display().to_string(), &report))?;
    }
    Ok(code(report.is_clean()))
}

fn show_check(out: &mut dyn Write, dir: &str, report: &CheckReport) -> io::Result<()> {
    writeln!(
        out,
        "{dir}: {} keyspaces, {} nodes, {} leaves, {} runs, {} segments, {} pages, {} messages; \
         log: {} records in {} frames; {} of {} bytes in use",
        report.keyspaces,
        report.nodes,
        report.leaves,
        report.runs,
        report.segments,
        report.pages,
        report.messages,
        report.log_records,
        report.log_frames,
        report.live_bytes,
        report.file_bytes,
    )?;
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    for problem in &report.problems {
        writeln!(out, "problem: {problem}")?;
    }
    match report.problems.len() {
        0 => writeln!(out, "clean"),
        count => writeln!(out, "{count} problems; `kvserver salvage` reads out what is not damaged"),
    }
}

/// Reads out what verifies into a new database.
pub fn salvage(arguments: &Salvage) -> Result<ExitCode, String> {
    let bar = Bar::new();
    let builder = Db::builder().memory(arguments.memory);
    let salvaged = builder.salvage(&arguments.dir, &arguments.into, &mut |progress| bar.show(progress));
    drop(bar);
    let report = salvaged.map_err(|e| e.to_string())?;
    if arguments.json {
        json(&report)?;
    } else {
        print(|out| show_salvage(out, &report))?;
    }
    Ok(code(report.is_complete()))
}

/// A key as text, unprintable bytes escaped.
fn key(key: &[u8]) -> String {
    let shown = &key[..key.len().min(KEY_SHOWN)];
    let more = if key.len() > KEY_SHOWN { "…" } else { "" };
    format!("\"{}{more}\"", shown.escape_ascii())
}

fn range(range: &KeyRange) -> String {
    match (&range.low[..], &range.high) {
        ([], None) => "all keys".to_string(),
        (low, None) => format!("keys from {}", key(low)),
        (low, Some(high)) => format!("keys from {} to below {}", key(low), key(high)),
    }
}

fn damage(damage: &Damage) -> String {
    let mut text = format!(
        "{} at offset {}, {} bytes: {}: {}",
        damage.file, damage.offset, damage.len, damage.structure, damage.detail
    );
    if let Some(keyspace) = &damage.keyspace {
        text += &format!("; keyspace {keyspace:?}");
    }
    if let Some(keys) = &damage.range {
        text += &format!("; {}", range(keys));
    }
    match damage.messages {
        Some(count) => text + &format!("; about {count} messages lost"),
        None => text,
    }
}

fn show_salvage(out: &mut dyn Write, report: &SalvageReport) -> io::Result<()> {
    writeln!(out, "read: {}, and {} records of the log", report.source, report.log_records)?;
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    for lost in &report.damage {
        writeln!(out, "damage: {}", damage(lost))?;
    }
    if report.damages > report.damage.len() as u64 {
        writeln!(out, "damage: {} more", report.damages - report.damage.len() as u64)?;
    }
    for (name, why) in &report.left_out {
        writeln!(out, "left out: keyspace {name:?}: {why}")?;
    }
    for keyspace in &report.keyspaces {
        let (name, records, messages) = (&keyspace.name, keyspace.records, keyspace.log_messages);
        writeln!(out, "keyspace {name:?}: {records} records, {messages} messages of the log applied")?;
        if keyspace.operands_dropped > 0 {
            let count = keyspace.operands_dropped;
            writeln!(out, "  {count} merges dropped, because what they change is lost")?;
        }
        for suspect in &keyspace.suspect {
            let keys = range(suspect);
            writeln!(
                out,
                "  {keys}: some may be missing, have an older value, or be back though they were removed"
            )?;
        }
    }
    let end = if report.is_complete() { "complete: nothing is lost" } else { "not complete: see above" };
    writeln!(out, "{end}")
}
