//! The command line's arguments.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::engine::{CommitDurability, EngineName};
use crate::phases::PhaseName;
use crate::record::KeyOrder;

/// Compares betree with other engines, and checks what a killed process leaves.
#[derive(Debug, Parser)]
#[command(name = "betree-bench", version, about)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs every engine through the same phases under the same memory limit, and writes report.md, results.jsonl and plots.
    Compare(CompareArgs),
    /// Kills a loading process at random moments and checks that every acknowledged record is there.
    KillTest(KillTestArgs),
    /// One phase of one engine, as the child of `compare`.
    #[command(hide = true)]
    RunOne {
        /// The phase, as JSON.
        spec: String,
    },
    /// The process that is killed, as the child of `kill-test`.
    #[command(hide = true)]
    KillWriter {
        /// What to write, as JSON.
        spec: String,
    },
    /// The process that checks, as the child of `kill-test`.
    #[command(hide = true)]
    KillVerifier {
        /// What to expect, as JSON.
        spec: String,
    },
}

/// Arguments of `compare`.
#[derive(Debug, Clone, clap::Args)]
pub struct CompareArgs {
    /// The engines, in the order in which they run; one named twice runs twice (A,B,A,B).
    #[arg(long, value_delimiter = ',', default_value = "betree,redb,lmdb,sqlite")]
    pub engines: Vec<EngineName>,
    /// Records to insert.
    #[arg(long, default_value_t = 20_000_000, value_parser = parse_count)]
    pub records: u64,
    /// Limit for heap and page cache together, for each engine alike. `0`: none.
    #[arg(long, default_value = "512MiB", value_parser = parse_bytes)]
    pub memory: u64,
    /// Directory for the report, and for the databases while they are measured.
    #[arg(long, default_value = "bench-results")]
    pub out: PathBuf,
    /// Records per commit of betree and the LSM trees.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: u64,
    /// Records per commit of the B-trees.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub batch_btree: u64,
    /// Seconds after which a load or a full scan is stopped; the average rate up to then counts.
    #[arg(long, default_value_t = 240)]
    pub max_seconds: u64,
    /// Operations of each phase of reads; scans are a tenth of it.
    #[arg(long, default_value_t = 100_000, value_parser = parse_count)]
    pub reads: u64,
    /// Seconds after which a phase of reads is stopped.
    #[arg(long, default_value_t = 60)]
    pub read_seconds: u64,
    /// Bytes of a value, half of them compressible.
    #[arg(long, default_value_t = 100)]
    pub value_bytes: usize,
    /// Seed of keys, values and the choice of what is read.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Order of the keys in which records are inserted.
    #[arg(long, value_enum, default_value_t)]
    pub order: KeyOrder,
    /// What a commit promises, for each engine alike.
    #[arg(long, value_enum, default_value_t)]
    pub durability: CommitDurability,
    /// How often the phase overwrite writes every record anew.
    #[arg(long, default_value_t = 1)]
    pub rounds: u64,
    /// Threads of the phase get-threads.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub threads: u64,
    /// Threads of the phases ycsb-a to ycsb-f: each runs once with each of these numbers.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=256))]
    pub ycsb_threads: Vec<u64>,
    /// Threads that insert.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub load_threads: u64,
    /// Seconds that an engine stays open and idle, unmeasured, after load, overwrite, delete, put-delete and delete-range. Space is then
    /// taken before and after.
    #[arg(long, default_value_t = 0)]
    pub rest_seconds: u64,
    /// The phases after the load, in this order: verify, get, get-threads, miss, zipf, multi-get, scan, full-scan, ycsb-a, ycsb-b, ycsb-c,
    /// ycsb-d, ycsb-e, ycsb-f, async-get, multi-get-zipf, async-ycsb-a, ingest-gets, overwrite, delete, put-delete, settle, delete-range.
    /// One named twice runs twice; what is read after settle has rows of its own in the report. After delete-range only full-scan, verify and
    /// settle can follow.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "get,get-threads,miss,zipf,multi-get,scan,full-scan,ycsb-a"
    )]
    pub phases: Vec<PhaseName>,
    /// Checks the whole database right after the load, before anything else: count, order and every value.
    #[arg(long)]
    pub verify: bool,
    /// Reads what a stopped load has left instead of completing it in key order, outside the measurement, before the reads.
    #[arg(long)]
    pub no_complete: bool,
    /// The budget given to betree's options; by default three quarters of --memory.
    #[arg(long, value_parser = parse_bytes)]
    pub betree_memory: Option<u64>,
    /// Leaves the page cache as it is between the phases.
    #[arg(long)]
    pub warm: bool,
    /// Keeps the databases in OUT/db.
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `kill-test`.
#[derive(Debug, Clone, clap::Args)]
pub struct KillTestArgs {
    /// Directory for the database. Must be empty or absent.
    #[arg(long)]
    pub dir: PathBuf,
    /// Records to insert in total.
    #[arg(long, default_value_t = 2_000_000, value_parser = parse_count)]
    pub records: u64,
    /// How often the loading process is killed.
    #[arg(long, default_value_t = 10)]
    pub kills: u64,
    /// Records per commit.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 100)]
    pub value_bytes: usize,
    /// The budget given to betree's options.
    #[arg(long, default_value = "256MiB", value_parser = parse_bytes)]
    pub memory: u64,
    /// Longest time that reopening may take, in seconds.
    #[arg(long, default_value_t = 5.0)]
    pub max_reopen_seconds: f64,
    /// Seed of the records and of the moments.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leaves the database in place.
    #[arg(long)]
    pub keep: bool,
}

/// A number of bytes with an optional unit: `512MiB`, `1g`, `4096`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_scaled(
        text,
        &[
            ("kib", 1 << 10),
            ("mib", 1 << 20),
            ("gib", 1 << 30),
            ("k", 1 << 10),
            ("m", 1 << 20),
            ("g", 1 << 30),
        ],
    )
}

/// A count with an optional unit: `20M`, `500k`, `20_000_000`.
fn parse_count(text: &str) -> Result<u64, String> {
    parse_scaled(text, &[("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000)])
}

fn parse_scaled(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let lower = text.trim().replace('_', "").to_ascii_lowercase();
    let (digits, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)))
        .unwrap_or((&lower, 1));
    let number: u64 =
        digits.trim().parse().map_err(|_| format!("{text:?} is not a number with an optional unit"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_phase() {
        let mut command = Args::command();
        let help = command.find_subcommand_mut("compare").unwrap().render_long_help().to_string();
        let words: Vec<_> = help.split(|c: char| !c.is_ascii_lowercase() && c != '-').collect();
        for phase in PhaseName::ALL {
            assert!(phase == PhaseName::Complete || words.contains(&phase.as_str()), "{phase}");
        }
    }

    #[test]
    fn sizes_and_counts_take_units() {
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("1g"), Ok(1 << 30));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_count("20M"), Ok(20_000_000));
        assert_eq!(parse_count("1_000"), Ok(1000));
        assert!(parse_bytes("lots").is_err());
        assert!(parse_bytes("99999999999g").is_err());
    }

    #[test]
    fn the_documented_command_is_understood() {
        let line =
            "betree-bench compare --engines betree,redb,lmdb,sqlite --records 1000 --memory 512MiB --out x";
        let Command::Compare(args) = Args::parse_from(line.split(' ')).command else {
            panic!("another command")
        };
        assert_eq!(
            (args.engines.len(), args.records, args.memory, args.batch, args.batch_btree),
            (4, 1000, 512 << 20, 1, 100)
        );
    }
}
