//! The numbers that order things: newtypes, so that none stands in for another.

use std::fmt;

/// The order of messages: every message of every committed batch has its own, growing by one.
///
/// `Seqno(0)` is before every message.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seqno(pub u64);

impl fmt::Display for Seqno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a keyspace in the log and in the superblock; never given to another keyspace again.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct KeyspaceId(pub u32);

/// Longest key in bytes.
pub const MAX_KEY_LEN: usize = 64 * 1024 - 1;

/// Longest value (or merge operand) in bytes.
pub const MAX_VALUE_LEN: usize = 1 << 30;
