//! What a salvage found and made: public values, and how they are collected.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::spans::Spans;

/// Most damages that a report names.
const MAX_DAMAGE: usize = 10_000;

/// Most places that are remembered as counted; more may be counted twice.
const MAX_SEEN: usize = 1 << 20;

/// A range of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRange {
    /// The least key in it.
    pub low: Vec<u8>,
    /// The first key above it; `None`: it has no end.
    pub high: Option<Vec<u8>>,
}

impl KeyRange {
    /// Whether the key lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.low <= *key && self.high.as_ref().is_none_or(|high| *key < **high)
    }
}

/// A part of the database that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// `superblock`, `catalog`, `node`, `meta block`, `data page` or `log`.
    pub structure: &'static str,
    /// The file.
    pub file: String,
    /// Where in the file.
    pub offset: u64,
    /// Bytes that could not be read there.
    pub len: u64,
    /// The keyspace, if it is known.
    pub keyspace: Option<String>,
    /// The keys whose newest messages may have been there. `None`: none, or it is not known.
    pub range: Option<KeyRange>,
    /// About how many messages were lost, if it is known.
    pub messages: Option<u64>,
    /// What is wrong, and what was done about it.
    pub detail: String,
}

/// What came of one keyspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SalvagedKeyspace {
    /// Its name.
    pub name: String,
    /// Records in the new database.
    pub records: u64,
    /// Messages of the log that were applied on top of the tree.
    pub log_messages: u64,
    /// Merge operands that were dropped, because what they are to be folded onto is lost.
    pub operands_dropped: u64,
    /// Keys here may be missing, may have an older value again, or be there again after they were removed.
    /// Everything outside is as it was.
    pub suspect: Vec<KeyRange>,
}

/// What [`crate::Builder::salvage`] found and made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SalvageReport {
    /// The checkpoint that was read.
    pub source: String,
    /// What could not be read; at most 10,000.
    pub damage: Vec<Damage>,
    /// How many damages there are, those not named included.
    pub damages: u64,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// The keyspaces of the new database.
    pub keyspaces: Vec<SalvagedKeyspace>,
    /// Keyspaces that were left out, each with the reason.
    pub left_out: Vec<(String, String)>,
    /// Whole records of the log.
    pub log_records: u64,
}

impl SalvageReport {
    /// Whether the new database has exactly what the old one had.
    pub fn is_complete(&self) -> bool {
        self.left_out.is_empty() && self.keyspaces.iter().all(|k| k.suspect.is_empty())
    }
}

/// A set of keys as ranges, the last of which may have no end.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    spans: Spans,
    tail: Option<Vec<u8>>,
}

impl Ranges {
    pub(super) fn insert(&mut self, low: &[u8], high: Option<&[u8]>) {
        match high {
            Some(high) => self.spans.insert(low, high),
            None if self.tail.as_ref().is_none_or(|tail| *low < **tail) => self.tail = Some(low.to_vec()),
            None => {}
        }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.spans.contains(key) || self.tail.as_ref().is_some_and(|tail| **tail <= *key)
    }

    fn list(&self) -> Vec<KeyRange> {
        let mut list = Vec::new();
        let mut tail = self.tail.clone();
        for (low, high) in self.spans.iter() {
            match &mut tail {
                Some(tail) if **tail <= *high => *tail = (&tail[..]).min(low).to_vec(),
                _ => list.push(KeyRange { low: low.to_vec(), high: Some(high.to_vec()) }),
            }
        }
        list.extend(tail.map(|low| KeyRange { low, high: None }));
        list
    }
}

/// Collects damages while a salvage runs; each place counts once.
#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) report: SalvageReport,
    /// Suspect keys by keyspace.
    suspect: BTreeMap<String, Ranges>,
    seen: HashSet<(&'static str, String, u64)>,
    all_suspect: bool,
}

impl Losses {
    /// Enters a damage. The keys of its range are suspect from now on.
    pub(super) fn add(&mut self, damage: Damage) {
        if let (Some(keyspace), Some(range)) = (&damage.keyspace, &damage.range) {
            self.suspect.entry(keyspace.clone()).or_default().insert(&range.low, range.high.as_deref());
        }
        let place = (damage.structure, damage.file.clone(), damage.offset);
        if self.seen.contains(&place) {
            return;
        }
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(place);
        }
        self.report.damages += 1;
        if self.report.damage.len() < MAX_DAMAGE {
            self.report.damage.push(damage);
        }
    }

    /// Damage of the data file that concerns no keyspace.
    pub(super) fn file(&mut self, structure: &'static str, offset: u64, len: u64, detail: String) {
        let file = betree_pager::FILE_NAME.to_owned();
        let (keyspace, range, messages) = (None, None, None);
        self.add(Damage { structure, file, offset, len, keyspace, range, messages, detail });
    }

    /// From now on every key of every keyspace is suspect.
    pub(super) fn all_suspect(&mut self) {
        self.all_suspect = true;
    }

    pub(super) fn is_suspect(&self, keyspace: &str, key: &[u8]) -> bool {
        self.all_suspect || self.suspect.get(keyspace).is_some_and(|ranges| ranges.contains(key))
    }

    /// The suspect keys of a keyspace, in order.
    pub(super) fn suspect_ranges(&self, keyspace: &str) -> Vec<KeyRange> {
        if self.all_suspect {
            return vec![KeyRange { low: Vec::new(), high: None }];
        }
        self.suspect.get(keyspace).map(Ranges::list).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_the_open_end_swallows_what_it_touches() {
        let mut ranges = Ranges::default();
        ranges.insert(b"b", Some(b"d"));
        ranges.insert(b"p", None);
        ranges.insert(b"m", Some(b"q"));
        ranges.insert(b"x", None);
        let range =
            |low: &[u8], high: Option<&[u8]>| KeyRange { low: low.into(), high: high.map(Into::into) };
        assert_eq!(ranges.list(), [range(b"b", Some(b"d")), range(b"m", None)]);
        assert!(ranges.contains(b"c") && ranges.contains(b"zz") && !ranges.contains(b"d"));
        assert!(ranges.list()[0].contains(b"b") && !ranges.list()[0].contains(b"d"));
    }
}
