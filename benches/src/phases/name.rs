//! The names of the phases, and what is true of each by its name alone.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::engine::Purpose;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PhaseName {
    /// Random inserts into an empty database.
    Load,
    /// What a stopped load has left, in key order; not measured.
    Complete,
    /// Everything read in order and compared; the same as full-scan, right after the load.
    Verify,
    /// Random reads of present keys, one thread, cold at the start.
    Get,
    /// The same with several threads.
    GetThreads,
    /// Random reads of absent keys.
    Miss,
    /// Reads of present keys with Zipf's frequencies.
    Zipf,
    /// Random reads of present keys, many per call.
    MultiGet,
    /// Short scans from random present keys.
    Scan,
    /// Everything in key order.
    FullScan,
    /// Half reads, half updates, with Zipf's frequencies.
    YcsbA,
    /// Every record is written anew, as many times as asked for.
    Overwrite,
    /// Half of the records are deleted, in random order.
    Delete,
    /// Half puts of new records, half deletes of them.
    PutDelete,
    // New ones at the end: the choice of what is read depends on the place in this list.
    /// 95 % reads, 5 % updates, with Zipf's frequencies.
    YcsbB,
    /// Reads only, with Zipf's frequencies.
    YcsbC,
    /// 95 % reads of the newest records, 5 % inserts.
    YcsbD,
    /// 95 % short scans, 5 % inserts.
    YcsbE,
    /// Half reads, half reads followed by an update of the same record.
    YcsbF,
    /// Nine tenths of the records are deleted by ranges of keys.
    DeleteRange,
    /// The engine merges everything it has into its final form.
    Settle,
    /// Inserts as fast as they go, alone and then beside random reads.
    IngestGets,
    /// Random reads of present keys by single asynchronous calls, many in flight.
    AsyncGet,
    /// Reads of present keys with Zipf's frequencies, many per call.
    MultiGetZipf,
    /// YCSB A by one thread with many reads in flight.
    AsyncYcsbA,
}

impl PhaseName {
    /// All of them.
    pub const ALL: [PhaseName; 25] = [
        PhaseName::Load,
        PhaseName::Complete,
        PhaseName::Verify,
        PhaseName::Get,
        PhaseName::GetThreads,
        PhaseName::Miss,
        PhaseName::Zipf,
        PhaseName::MultiGet,
        PhaseName::Scan,
        PhaseName::FullScan,
        PhaseName::YcsbA,
        PhaseName::Overwrite,
        PhaseName::Delete,
        PhaseName::PutDelete,
        PhaseName::YcsbB,
        PhaseName::YcsbC,
        PhaseName::YcsbD,
        PhaseName::YcsbE,
        PhaseName::YcsbF,
        PhaseName::DeleteRange,
        PhaseName::Settle,
        PhaseName::IngestGets,
        PhaseName::AsyncGet,
        PhaseName::MultiGetZipf,
        PhaseName::AsyncYcsbA,
    ];

    /// The name used on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseName::Load => "load",
            PhaseName::Complete => "complete",
            PhaseName::Verify => "verify",
            PhaseName::Get => "get",
            PhaseName::GetThreads => "get-threads",
            PhaseName::Miss => "miss",
            PhaseName::Zipf => "zipf",
            PhaseName::MultiGet => "multi-get",
            PhaseName::Scan => "scan",
            PhaseName::FullScan => "full-scan",
            PhaseName::YcsbA => "ycsb-a",
            PhaseName::Overwrite => "overwrite",
            PhaseName::Delete => "delete",
            PhaseName::PutDelete => "put-delete",
            PhaseName::YcsbB => "ycsb-b",
            PhaseName::YcsbC => "ycsb-c",
            PhaseName::YcsbD => "ycsb-d",
            PhaseName::YcsbE => "ycsb-e",
            PhaseName::YcsbF => "ycsb-f",
            PhaseName::DeleteRange => "delete-range",
            PhaseName::Settle => "settle",
            PhaseName::IngestGets => "ingest-gets",
            PhaseName::AsyncGet => "async-get",
            PhaseName::MultiGetZipf => "multi-get-zipf",
            PhaseName::AsyncYcsbA => "async-ycsb-a",
        }
    }

    /// Whether it changes records that are there.
    pub fn is_churn(self) -> bool {
        matches!(
            self,
            PhaseName::Overwrite | PhaseName::Delete | PhaseName::PutDelete | PhaseName::DeleteRange
        )
    }

    /// Whether it is one of the workloads of YCSB.
    pub fn is_ycsb(self) -> bool {
        matches!(
            self,
            PhaseName::YcsbA
                | PhaseName::YcsbB
                | PhaseName::YcsbC
                | PhaseName::YcsbD
                | PhaseName::YcsbE
                | PhaseName::YcsbF
        )
    }

    /// Whether it can follow delete-range: most phases need to know a record that is there by its number alone.
    pub fn runs_on_slices(self) -> bool {
        matches!(self, PhaseName::FullScan | PhaseName::Verify | PhaseName::Settle)
    }

    /// Whether the phase leaves the database changed, so that closing and writing back belong to what it costs.
    pub fn writes(self) -> bool {
        matches!(
            self,
            PhaseName::Load
                | PhaseName::Complete
                | PhaseName::Settle
                | PhaseName::IngestGets
                | PhaseName::AsyncYcsbA
        ) || self.is_churn()
            || (self.is_ycsb() && self != PhaseName::YcsbC)
    }

    /// Whether the engine is left idle for a while after it.
    pub(super) fn rests(self) -> bool {
        self == PhaseName::Load || self.is_churn()
    }

    pub(super) fn purpose(self) -> Purpose {
        match self {
            PhaseName::Scan | PhaseName::FullScan | PhaseName::Verify | PhaseName::YcsbE => Purpose::Scans,
            _ => Purpose::Points,
        }
    }
}

impl fmt::Display for PhaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PhaseName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        PhaseName::ALL.into_iter().find(|p| p.as_str() == name).ok_or_else(|| {
            let names: Vec<_> = PhaseName::ALL.iter().map(|p| p.as_str()).collect();
            format!("no phase {name:?}; there are {}", names.join(", "))
        })
    }
}
