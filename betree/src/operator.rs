//! Merge operators: read-modify-write without the read.
//!
//! A Merge message carries an operand; an operator folds operands onto the value below. Operators must be pure: the
//! same inputs give the same output, or replicas of a run would disagree.

use std::fmt::Debug;

/// Folds operands of Merge messages onto a value.
///
/// The name is stored with the keyspace; opening it with an operator of another name is an error.
pub trait MergeOperator: Debug + Send + Sync {
    /// A name that stays the same as long as the meaning of operands does.
    fn name(&self) -> &str;

    /// The value after folding `operands` (oldest first) onto `base` (`None`: the key is absent).
    ///
    /// Must not fail: operands that make no sense are to be treated by rule (say: ignored).
    fn full_merge(&self, key: &[u8], base: Option<&[u8]>, operands: &[&[u8]]) -> Vec<u8>;

    /// One operand with the effect of `older` followed by `newer`, or `None` if there is no such operand.
    fn partial_merge(&self, key: &[u8], older: &[u8], newer: &[u8]) -> Option<Vec<u8>> {
        let _ = (key, older, newer);
        None
    }
}

/// Built-in: signed 64-bit addition, wrapping. Values and operands are 8 bytes, little-endian; a value of another
/// length counts as 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct AddI64;

/// Built-in: operands are appended to the value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Append;

/// Built-in: the bytewise largest of value and operands stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Max;

/// Built-in: the bytewise smallest of value and operands stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Min;

fn as_i64(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_le_bytes)
}

impl MergeOperator for AddI64 {
    fn name(&self) -> &str {
        "betree.add_i64"
    }

    fn full_merge(&self, _key: &[u8], base: Option<&[u8]>, operands: &[&[u8]]) -> Vec<u8> {
        let start = base.map_or(0, as_i64);
        operands.iter().fold(start, |sum, o| sum.wrapping_add(as_i64(o))).to_le_bytes().to_vec()
    }

    fn partial_merge(&self, _key: &[u8], older: &[u8], newer: &[u8]) -> Option<Vec<u8>> {
        Some(as_i64(older).wrapping_add(as_i64(newer)).to_le_bytes().to_vec())
    }
}

impl MergeOperator for Append {
    fn name(&self) -> &str {
        "betree.append"
    }

    fn full_merge(&self, _key: &[u8], base: Option<&[u8]>, operands: &[&[u8]]) -> Vec<u8> {
        let mut out = base.unwrap_or_default().to_vec();
        operands.iter().for_each(|o| out.extend_from_slice(o));
        out
    }

    fn partial_merge(&self, _key: &[u8], older: &[u8], newer: &[u8]) -> Option<Vec<u8>> {
        Some([older, newer].concat())
    }
}

impl MergeOperator for Max {
    fn name(&self) -> &str {
        "betree.max"
    }

    fn full_merge(&self, _key: &[u8], base: Option<&[u8]>, operands: &[&[u8]]) -> Vec<u8> {
        operands.iter().copied().chain(base).max().unwrap_or_default().to_vec()
    }

    fn partial_merge(&self, _key: &[u8], older: &[u8], newer: &[u8]) -> Option<Vec<u8>> {
        Some(older.max(newer).to_vec())
    }
}

impl MergeOperator for Min {
    fn name(&self) -> &str {
        "betree.min"
    }

    fn full_merge(&self, _key: &[u8], base: Option<&[u8]>, operands: &[&[u8]]) -> Vec<u8> {
        operands.iter().copied().chain(base).min().unwrap_or_default().to_vec()
    }

    fn partial_merge(&self, _key: &[u8], older: &[u8], newer: &[u8]) -> Option<Vec<u8>> {
        Some(older.min(newer).to_vec())
    }
}
