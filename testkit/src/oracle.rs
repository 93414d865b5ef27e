//! The oracle: what an ordered store with several keyspaces must contain, after every prefix of its history.
//!
//! A few `BTreeMap`s and the list of committed batches. Every prefix has a digest of its content, kept as it grows, so that
//! a recovered content finds the prefix it equals without a replay.
//!
//! Invariant: `digests[k]` is the digest of the content after the first k batches. Used by model tests and crash
//! simulations; knows no engine. No locks.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::rng::mix;

/// How a keyspace folds operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// It does not.
    None,
    /// Wrapping 64-bit addition, little-endian; another length counts as 0.
    AddI64,
    /// Operands are appended.
    Append,
}

impl Fold {
    fn merge(self, base: Option<&Vec<u8>>, operand: &[u8]) -> Vec<u8> {
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_le_bytes);
        match self {
            Self::None => panic!("the keyspace folds no operands"),
            Self::AddI64 => {
                base.map_or(0, |b| number(b)).wrapping_add(number(operand)).to_le_bytes().to_vec()
            }
            Self::Append => [base.map_or(&[][..], |b| &b[..]), operand].concat(),
        }
    }
}

/// What one message of a batch does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key has this value.
    Put(Vec<u8>, Vec<u8>),
    /// The key is absent.
    Delete(Vec<u8>),
    /// The operand is folded onto the key's value.
    Merge(Vec<u8>, Vec<u8>),
    /// Every key from the first to below the second is absent.
    RangeDelete(Vec<u8>, Vec<u8>),
    /// The keyspace exists, empty.
    Create,
    /// The keyspace is gone.
    Drop,
}

/// A change of one keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Index of the keyspace.
    pub keyspace: usize,
    /// What happens to it.
    pub change: Change,
}

/// The records of one keyspace.
pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keyspaces and their records; `None` where a keyspace does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// By index.
    pub keyspaces: Vec<Option<Records>>,
}

fn digest_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    mix(hash ^ bytes.len() as u64)
}

fn digest_record(keyspace: usize, key: &[u8], value: &[u8]) -> u64 {
    digest_bytes(digest_bytes(mix(keyspace as u64 + 1), key), value)
}

fn digest_existence(keyspace: usize) -> u64 {
    mix(!(keyspace as u64))
}

/// The digest of a content, taken record by record in any order: [`Content::digest`] without the content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// The keyspace with this index exists.
    pub fn keyspace(&mut self, index: usize) {
        self.0 ^= digest_existence(index);
    }

    /// It has this record.
    pub fn record(&mut self, keyspace: usize, key: &[u8], value: &[u8]) {
        self.0 ^= digest_record(keyspace, key, value);
    }

    /// The digest of what was told.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

impl Content {
    /// A digest that two contents share only if they are equal (but for a chance of about 2⁻⁶⁴).
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        for (i, records) in self.keyspaces.iter().enumerate() {
            let Some(records) = records else { continue };
            digest.keyspace(i);
            records.iter().for_each(|(key, value)| digest.record(i, key, value));
        }
        digest.value()
    }

    /// The first few differences, in words.
    #[must_use]
    pub fn differences(&self, expected: &Self) -> String {
        let mut lines = Vec::new();
        for (i, (got, want)) in self.keyspaces.iter().zip(&expected.keyspaces).enumerate() {
            let empty = Records::new();
            if got.is_some() != want.is_some() {
                lines.push(format!("keyspace {i} exists: {} (expected {})", got.is_some(), want.is_some()));
            }
            let (got, want) = (got.as_ref().unwrap_or(&empty), want.as_ref().unwrap_or(&empty));
            for key in got.keys().chain(want.keys().filter(|k| !got.contains_key(*k))) {
                let (a, b) = (got.get(key), want.get(key));
                if a != b {
                    lines.push(format!(
                        "keyspace {i} key {} is {} (expected {})",
                        show(key),
                        shown(a),
                        shown(b)
                    ));
                }
            }
        }
        let count = lines.len();
        lines.truncate(5);
        format!("{count} differences: {}", lines.join("; "))
    }

    fn apply(&mut self, folds: &[Fold], edit: &Edit) -> u64 {
        let i = edit.keyspace;
        let slot = &mut self.keyspaces[i];
        let before = |records: &Records, key: &[u8]| records.get(key).map_or(0, |v| digest_record(i, key, v));
        match &edit.change {
            Change::Create => {
                if slot.is_some() {
                    return 0;
                }
                *slot = Some(Records::new());
                return digest_existence(i);
            }
            Change::Drop => {
                let Some(records) = slot.take() else { return 0 };
                let all = records.iter().map(|(k, v)| digest_record(i, k, v));
                return all.fold(digest_existence(i), |a, b| a ^ b);
            }
            _ => {}
        }
        let records = slot.as_mut().expect("the keyspace exists");
        match &edit.change {
            Change::Put(key, value) => {
                let old = before(records, key);
                records.insert(key.clone(), value.clone());
                old ^ digest_record(i, key, value)
            }
            Change::Delete(key) => {
                let old = before(records, key);
                records.remove(key);
                old
            }
            Change::Merge(key, operand) => {
                let old = before(records, key);
                let value = folds[i].merge(records.get(key), operand);
                let new = digest_record(i, key, &value);
                records.insert(key.clone(), value);
                old ^ new
            }
            Change::RangeDelete(start, end) => {
                if start >= end {
                    return 0;
                }
                let keys: Vec<_> =
                    records.range(start.clone()..end.clone()).map(|(k, _)| k.clone()).collect();
                keys.iter().fold(0, |digest, key| {
                    let old = before(records, key);
                    records.remove(key);
                    digest ^ old
                })
            }
            Change::Create | Change::Drop => 0,
        }
    }
}

/// Bytes as a short text.
fn show(bytes: &[u8]) -> String {
    let text = bytes
        .iter()
        .take(40)
        .flat_map(|b| std::ascii::escape_default(*b))
        .map(char::from)
        .collect::<String>();
    if bytes.len() > 40 { format!("\"{text}\"… ({} bytes)", bytes.len()) } else { format!("\"{text}\"") }
}

fn shown(value: Option<&Vec<u8>>) -> String {
    value.map_or_else(|| "absent".into(), |v| show(v))
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Oracle {
    folds: Vec<Fold>,
    base: Content,
    content: Content,
    digests: Vec<u64>,
    history: Vec<Vec<Edit>>,
}

impl Oracle {
    /// No keyspace exists yet; those to come fold as told.
    #[must_use]
    pub fn new(folds: Vec<Fold>) -> Self {
        let content = Content { keyspaces: vec![None; folds.len()] };
        Self::from_content(folds, content)
    }

    /// An oracle whose history begins with this content.
    #[must_use]
    pub fn from_content(folds: Vec<Fold>, content: Content) -> Self {
        let digests = vec![content.digest()];
        Self { folds, base: content.clone(), content, digests, history: Vec::new() }
    }

    /// How the keyspaces fold.
    #[must_use]
    pub fn folds(&self) -> &[Fold] {
        &self.folds
    }

    /// Commits a batch.
    pub fn commit(&mut self, batch: &[Edit]) {
        let mut digest = self.digests[self.history.len()];
        for edit in batch {
            digest ^= self.content.apply(&self.folds, edit);
        }
        self.digests.push(digest);
        self.history.push(batch.to_vec());
    }

    /// Batches committed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.history.len()
    }

    /// The batch with this number, counted from 0.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn batch(&self, index: usize) -> &[Edit] {
        &self.history[index]
    }

    /// Whether nothing was committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.history.is_empty()
    }

    /// What is there now.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The records of a keyspace that exists.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn records(&self, keyspace: usize) -> &Records {
        self.content.keyspaces[keyspace].as_ref().expect("the keyspace exists")
    }

    /// The content after the first `count` batches.
    #[must_use]
    pub fn after(&self, count: usize) -> Content {
        let mut content = self.base.clone();
        for edit in self.history[..count].iter().flatten() {
            content.apply(&self.folds, edit);
        }
        content
    }

    /// Forgets all but the first `count` batches: the others were lost.
    pub fn cut(&mut self, count: usize) {
        if count < self.len() {
            self.content = self.after(count);
            self.history.truncate(count);
            self.digests.truncate(count + 1);
        }
    }

    /// A number of batches in `allowed` after which the content has this digest; the greatest.
    #[must_use]
    pub fn prefix_with(&self, digest: u64, allowed: RangeInclusive<usize>) -> Option<usize> {
        allowed.rev().find(|&k| self.digests.get(k) == Some(&digest))
    }

    /// Why `found` is none of the allowed prefixes: which other it is, or how it differs from the nearest bound.
    #[must_use]
    pub fn explain(&self, found: &Content, allowed: RangeInclusive<usize>) -> String {
        let (low, high) = (*allowed.start(), *allowed.end());
        match self.prefix_with(found.digest(), 0..=self.len()) {
            Some(k) if k < low => format!("only the first {k} batches are there; {low} were durable"),
            Some(k) => format!("{k} batches are there, but at most {high} were committed"),
            None => {
                let nearest =
                    (low..=high).min_by_key(|&k| count(&found.differences(&self.after(k)))).unwrap_or(low);
                format!(
                    "no prefix of {low}..={high} batches; against the nearest, {nearest}: {}",
                    found.differences(&self.after(nearest))
                )
            }
        }
    }
}

fn count(differences: &str) -> usize {
    differences.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn the_digest_of_every_prefix_is_that_of_its_content() {
        let mut rng = Rng::new(4);
        let mut oracle = Oracle::new(vec![Fold::None, Fold::Append]);
        oracle.commit(&[
            Edit { keyspace: 0, change: Change::Create },
            Edit { keyspace: 1, change: Change::Create },
        ]);
        for _ in 0..200 {
            let keyspace = rng.index(2);
            let (a, b) = (vec![rng.below(20) as u8], vec![rng.below(20) as u8]);
            let change = match rng.below(6) {
                0 => Change::Delete(a),
                1 => Change::RangeDelete(a, b),
                2 if keyspace == 1 => Change::Merge(a, b),
                3 if oracle.len().is_multiple_of(7) => {
                    oracle.commit(&[Edit { keyspace, change: Change::Drop }]);
                    Change::Create
                }
                _ => Change::Put(a, b),
            };
            oracle.commit(&[Edit { keyspace, change }]);
        }
        for k in 0..=oracle.len() {
            let content = oracle.after(k);
            assert!(oracle.prefix_with(content.digest(), k..=k).is_some(), "prefix {k}");
        }
        assert_eq!(oracle.after(oracle.len()), *oracle.content());
        let half = oracle.len() / 2;
        let content = oracle.after(half);
        oracle.cut(half);
        assert_eq!((oracle.len(), oracle.content()), (half, &content));
        assert_eq!(oracle.prefix_with(content.digest(), half..=half), Some(half));
    }
}
