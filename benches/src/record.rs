//! The records of the comparison: a key and a value for every record number, both derivable, so that nothing has to be
//! remembered to verify what an engine returns.
//!
//! Invariants: `record.key_bijective` (two record numbers never share a key, and a key tells its number), so the numbers
//! from `n` on are keys that are absent after a load of `n` records, spread over the same range as the present ones.
//! Called by every phase, by the kill test and by the Criterion benches; takes no locks.

use serde::{Deserialize, Serialize};

/// Length of a key.
pub const KEY_LEN: usize = 16;
/// A key.
pub type Key = [u8; KEY_LEN];

/// The version that the first insert of a record writes; overwrites write higher ones.
pub const FIRST_VERSION: u64 = 0;
/// Bytes at the start of a value that hold its version.
const VERSION_LEN: usize = 8;

const MULTIPLIER_1: u64 = 0xbf58_476d_1ce4_e5b9;
const MULTIPLIER_2: u64 = 0x94d0_49bb_1331_11eb;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection of the 64-bit numbers that leaves no order behind (the finaliser of SplitMix64).
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(MULTIPLIER_1);
    x = (x ^ (x >> 27)).wrapping_mul(MULTIPLIER_2);
    x ^ (x >> 31)
}

/// The inverse of [`mix`].
pub const fn unmix(mut x: u64) -> u64 {
    const INVERSE_1: u64 = inverse(MULTIPLIER_1);
    const INVERSE_2: u64 = inverse(MULTIPLIER_2);
    x = undo_shift(x, 31).wrapping_mul(INVERSE_2);
    x = undo_shift(x, 27).wrapping_mul(INVERSE_1);
    undo_shift(x, 30)
}

/// Solves `y ^ (y >> shift) == x` for `y`.
const fn undo_shift(x: u64, shift: u32) -> u64 {
    let mut y = x;
    let mut known = shift;
    while known < 64 {
        y = x ^ (y >> shift);
        known += shift;
    }
    y
}

/// The inverse of an odd number modulo 2^64: each Newton step doubles the bits that are right, starting from three.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut step = 0;
    while step < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        step += 1;
    }
    x
}

/// A stream of pseudo-random numbers, the same for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts a stream.
    pub fn new(seed: u64) -> Self {
        Random(mix(seed ^ GOLDEN))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`, or 0 if that is 0. The bias is below 2^-32 for the bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// In which order of their keys records are numbered, and so inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KeyOrder {
    /// In none.
    #[default]
    Random,
    /// Each key above all before it.
    Ascending,
    /// Each key below all before it.
    Descending,
}

/// Derives keys and values for a seed and a length of values.
#[derive(Debug, Clone, Copy)]
pub struct Records {
    seed: u64,
    value_len: usize,
    order: KeyOrder,
}

impl Records {
    /// Records with values of `value_len` bytes.
    pub fn new(seed: u64, value_len: usize) -> Self {
        Records { seed: mix(seed.wrapping_add(GOLDEN)), value_len, order: KeyOrder::Random }
    }

    /// The same with keys in another order.
    pub fn in_order(self, order: KeyOrder) -> Self {
        Records { order, ..self }
    }

    /// Length of every value.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// Bytes of key and value together.
    pub fn record_len(&self) -> u64 {
        (KEY_LEN + self.value_len) as u64
    }

    /// The key of record `number`.
    pub fn key(&self, number: u64) -> Key {
        let head = self.rank(number);
        let mut key = [0; KEY_LEN];
        key[..8].copy_from_slice(&head.to_be_bytes());
        key[8..].copy_from_slice(&self.tail(head).to_be_bytes());
        key
    }

    /// The number of the record with this key, or `None` if no record has it.
    pub fn number(&self, key: &[u8]) -> Option<u64> {
        let head = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
        let tail = u64::from_be_bytes(key.get(8..KEY_LEN)?.try_into().ok()?);
        (key.len() == KEY_LEN && tail == self.tail(head)).then(|| self.number_of_rank(head))
    }

    /// Where record `number` comes in key order: keys are ordered as these numbers are.
    pub fn rank(&self, number: u64) -> u64 {
        match self.order {
            KeyOrder::Random => mix(number ^ self.seed),
            KeyOrder::Ascending => number,
            KeyOrder::Descending => !number,
        }
    }

    /// The record number with this [`Records::rank`].
    pub fn number_of_rank(&self, rank: u64) -> u64 {
        match self.order {
            KeyOrder::Random => unmix(rank) ^ self.seed,
            KeyOrder::Ascending => rank,
            KeyOrder::Descending => !rank,
        }
    }

    /// The lowest [`Records::rank`] that a record with a number below `n` can have, and how many ranks there are from it on.
    pub fn rank_span(&self, n: u64) -> (u64, u64) {
        match self.order {
            KeyOrder::Random => (0, u64::MAX),
            KeyOrder::Ascending => (0, n),
            KeyOrder::Descending => (!n.saturating_sub(1), n),
        }
    }

    fn tail(&self, head: u64) -> u64 {
        mix(head.rotate_left(23) ^ self.seed.wrapping_mul(GOLDEN))
    }

    /// Appends the value of record `number` to `out`.
    ///
    /// Half of it is noise and half is one byte repeated, so that a compressor gets about 2:1.
    pub fn append_value(&self, number: u64, version: u64, out: &mut Vec<u8>) {
        let (noise, mut random) = self.noise(number, version);
        let start = out.len();
        out.extend_from_slice(&version.to_le_bytes()[..VERSION_LEN.min(self.value_len)]);
        let mut left = noise;
        while left >= 8 {
            out.extend_from_slice(&random.next_u64().to_le_bytes());
            left -= 8;
        }
        out.extend_from_slice(&random.next_u64().to_le_bytes()[..left]);
        let filler = random.next_u64() as u8;
        out.resize(start + self.value_len, filler);
    }

    /// Whether `value` is one that was written for record `number`, of whichever version, byte for byte.
    pub fn value_matches(&self, number: u64, value: &[u8]) -> bool {
        if value.len() != self.value_len {
            return false;
        }
        let (version, rest) = value.split_at(VERSION_LEN.min(value.len()));
        let (noise, mut random) = self.noise(number, word(version));
        let (noise, filling) = rest.split_at(noise);
        // Differences are gathered instead of looked at one by one: this check is part of what every engine's reads take.
        let mut words = noise.chunks_exact(8);
        let mut different = 0;
        for chunk in &mut words {
            different |= word(chunk) ^ random.next_u64();
        }
        let last = random.next_u64().to_le_bytes();
        let filler = random.next_u64() as u8;
        let filled = [filler; 8];
        let mut fillers = filling.chunks_exact(8);
        for chunk in &mut fillers {
            different |= word(chunk) ^ u64::from_le_bytes(filled);
        }
        let (noise, filling) = (words.remainder(), fillers.remainder());
        different == 0 && *noise == last[..noise.len()] && *filling == filled[..filling.len()]
    }

    /// Bytes of noise behind the version, and where they come from.
    fn noise(&self, number: u64, version: u64) -> (usize, Random) {
        let version_len = VERSION_LEN.min(self.value_len);
        let noise = (self.value_len / 2).max(version_len) - version_len;
        (noise, Random::new(number ^ version.rotate_left(32) ^ self.seed.rotate_left(17)))
    }
}

/// Up to eight bytes as a number.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    if let Some(word) = bytes.first_chunk() {
        return u64::from_le_bytes(*word);
    }
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// Records that are written together, in memory that is used again.
#[derive(Debug)]
pub struct Batch {
    keys: Vec<Key>,
    values: Vec<u8>,
    value_len: usize,
}

impl Batch {
    /// An empty batch for values of `value_len` bytes.
    pub fn new(value_len: usize) -> Self {
        Batch { keys: Vec::new(), values: Vec::new(), value_len }
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    /// Adds record `number`.
    pub fn push(&mut self, records: &Records, number: u64, version: u64) {
        self.keys.push(records.key(number));
        records.append_value(number, version, &mut self.values);
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys and values, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &[u8])> {
        let len = self.value_len;
        self.keys.iter().enumerate().map(move |(i, key)| (key, &self.values[i * len..(i + 1) * len]))
    }
}

/// Ranks from 1 to `n` with frequencies proportional to `1 / rank^exponent`.
///
/// Rejection-inversion after Hörmann and Derflinger (1996): no table, so no pause before the phase starts.
#[derive(Debug, Clone, Copy)]
pub struct Zipf {
    n: f64,
    exponent: f64,
    h_first: f64,
    h_last: f64,
    accept: f64,
}

impl Zipf {
    /// A distribution over `n` ranks; `exponent` is above 0 and not 1.
    pub fn new(n: u64, exponent: f64) -> Self {
        let mut zipf = Zipf { n: n.max(1) as f64, exponent, h_first: 0.0, h_last: 0.0, accept: 0.0 };
        zipf.h_first = zipf.integral(1.5) - 1.0;
        zipf.h_last = zipf.integral(zipf.n + 0.5);
        zipf.accept = 2.0 - zipf.integral_inverse(zipf.integral(2.5) - 2f64.powf(-exponent));
        zipf
    }

    /// The next rank.
    pub fn sample(&self, random: &mut Random) -> u64 {
        loop {
            let u = self.h_last + random.unit() * (self.h_first - self.h_last);
            let x = self.integral_inverse(u);
            let rank = x.round().clamp(1.0, self.n);
            if rank - x <= self.accept || u >= self.integral(rank + 0.5) - rank.powf(-self.exponent) {
                return rank as u64;
            }
        }
    }

    /// The next record of as many as there are ranks: the popular ones are spread over the order of insertion.
    pub fn record(&self, random: &mut Random) -> u64 {
        mix(self.sample(random)) % self.n as u64
    }

    fn integral(&self, x: f64) -> f64 {
        x.powf(1.0 - self.exponent) / (1.0 - self.exponent)
    }

    fn integral_inverse(&self, x: f64) -> f64 {
        ((1.0 - self.exponent) * x).powf(1.0 / (1.0 - self.exponent))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn mixing_is_undone_by_unmixing() {
        let mut random = Random::new(7);
        for x in
            (0..1000).chain([u64::MAX, u64::MAX - 1, 1 << 63]).chain((0..10_000).map(|_| random.next_u64()))
        {
            assert_eq!(unmix(mix(x)), x);
            assert_eq!(mix(unmix(x)), x);
        }
    }

    #[test]
    fn every_key_tells_its_number_and_no_two_are_equal() {
        let records = Records::new(42, 100);
        let mut seen = HashSet::new();
        for number in (0..100_000).chain([u64::MAX, 1 << 40]) {
            let key = records.key(number);
            assert_eq!(records.number(&key), Some(number));
            assert!(seen.insert(key));
        }
    }

    #[test]
    fn a_changed_key_belongs_to_no_record() {
        let records = Records::new(42, 100);
        let key = records.key(5);
        for byte in 0..KEY_LEN {
            let mut changed = key;
            changed[byte] ^= 1;
            assert_eq!(records.number(&changed), None, "byte {byte}");
        }
        assert_eq!(records.number(&key[..15]), None);
        assert_eq!(records.number(b""), None);
    }

    #[test]
    fn keys_come_in_no_order() {
        let records = Records::new(1, 100);
        let rising = (0..10_000).filter(|&n| records.key(n) < records.key(n + 1)).count();
        assert!((4_500..5_500).contains(&rising), "{rising} of 10000 neighbours rise");
    }

    #[test]
    fn ranks_are_ordered_as_keys_are() {
        let records = Records::new(8, 100);
        for number in 0..1000 {
            let (a, b) = (number, number * 7 + 1);
            assert_eq!(records.rank(a).cmp(&records.rank(b)), records.key(a).cmp(&records.key(b)));
            assert_eq!(records.number_of_rank(records.rank(a)), a);
        }
    }

    #[test]
    fn ranks_lie_in_their_span() {
        for order in [KeyOrder::Random, KeyOrder::Ascending, KeyOrder::Descending] {
            let records = Records::new(8, 100).in_order(order);
            let (low, count) = records.rank_span(500);
            assert!((0..500).all(|number| records.rank(number).wrapping_sub(low) < count), "{order:?}");
        }
    }

    #[test]
    fn values_of_every_length_match_their_record_and_no_other() {
        for len in [0, 1, 7, 8, 9, 15, 16, 17, 100, 1000] {
            let records = Records::new(3, len);
            for version in [FIRST_VERSION, 1, 255] {
                let mut value = Vec::new();
                records.append_value(9, version, &mut value);
                assert_eq!(value.len(), len);
                assert!(records.value_matches(9, &value), "length {len}");
                if len > 16 {
                    assert!(!records.value_matches(10, &value), "length {len}");
                }
            }
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_in_a_value_is_noticed() {
        let records = Records::new(3, 100);
        let mut value = Vec::new();
        records.append_value(77, FIRST_VERSION, &mut value);
        for byte in 0..value.len() {
            value[byte] ^= 0x10;
            assert!(!records.value_matches(77, &value), "byte {byte}");
            value[byte] ^= 0x10;
        }
        assert!(!records.value_matches(77, &value[..99]));
    }

    #[test]
    fn records_come_in_the_order_asked_for_and_are_known_by_their_keys() {
        for (order, rising) in [(KeyOrder::Ascending, true), (KeyOrder::Descending, false)] {
            let records = Records::new(3, 100).in_order(order);
            for n in 0..1000 {
                assert_eq!(records.number(&records.key(n)), Some(n));
                assert_eq!(records.key(n) < records.key(n + 1), rising);
            }
        }
    }

    #[test]
    fn values_are_half_compressible() {
        let records = Records::new(3, 100);
        let mut value = Vec::new();
        records.append_value(1, FIRST_VERSION, &mut value);
        assert!(value[50..].iter().all(|&b| b == value[50]));
        assert!(value[8..50].iter().collect::<HashSet<_>>().len() > 20);
    }

    #[test]
    fn a_batch_gives_back_what_was_pushed_after_being_cleared() {
        let records = Records::new(3, 10);
        let mut batch = Batch::new(10);
        batch.push(&records, 1, FIRST_VERSION);
        batch.clear();
        assert!(batch.is_empty());
        batch.push(&records, 2, FIRST_VERSION);
        batch.push(&records, 3, FIRST_VERSION);
        let numbers: Vec<_> = batch.iter().map(|(key, _)| records.number(key).unwrap()).collect();
        assert_eq!(numbers, [2, 3]);
        assert!(batch.iter().all(|(key, value)| records.value_matches(records.number(key).unwrap(), value)));
    }

    #[test]
    fn zipf_ranks_are_as_frequent_as_the_law_says() {
        let (n, draws) = (1000u64, 200_000);
        let zipf = Zipf::new(n, 0.99);
        let mut random = Random::new(11);
        let mut counts = vec![0u32; n as usize + 1];
        for _ in 0..draws {
            counts[zipf.sample(&mut random) as usize] += 1;
        }
        let zeta: f64 = (1..=n).map(|k| (k as f64).powf(-0.99)).sum();
        for rank in [1usize, 2, 3, 10, 100] {
            let expected = f64::from(draws) * (rank as f64).powf(-0.99) / zeta;
            let got = f64::from(counts[rank]);
            assert!((got - expected).abs() < 6.0 * expected.sqrt(), "rank {rank}: {got} for {expected}");
        }
        assert_eq!(counts[0], 0);
    }
}
