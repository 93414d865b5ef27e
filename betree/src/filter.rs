//! Blocked Bloom filter: all probes of a key fall into one 64-byte cache line (Putze, Sanders, Singler: "Cache-, Hash-
//! and Space-Efficient Bloom Filters", 2007). Built by the segment writer, asked by point reads, lies in a segment's meta block.
//!
//! ```text
//! filter := line*            line := 16 × u32 little-endian
//! ```
//! Line of a hash: high 32 bits × number of lines / 2^32. Probe i sets bit (low32 × SALT[i]) >> 23 of the line's 512.
//! Invariant `filter.no_false_negative`: a key that was added is never answered absent.

/// Bytes of a line.
pub(crate) const LINE: usize = 64;

const SALT: [u32; 7] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947];

/// Bytes of a filter for `keys` keys at `bits_per_key`; 0 bits means no filter.
pub(crate) fn filter_len(keys: usize, bits_per_key: usize) -> usize {
    (keys * bits_per_key).div_ceil(LINE * 8) * LINE
}

/// A filter that has fewer bits per key is hardly worth asking.
const LEAST_BITS: usize = 8;

/// Bits per key with which filters of so many keys take no more than `room` bytes: at most `most`, and not fewer than [`LEAST_BITS`] if that is not fewer.
pub(crate) fn bits_within(room: u64, keys: u64, most: usize) -> usize {
    let fitting = room.saturating_mul(8) / keys.max(1);
    usize::try_from(fitting).unwrap_or(most).clamp(LEAST_BITS.min(most), most)
}

fn line_of(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

fn probes(hash: u64) -> impl Iterator<Item = usize> {
    let low = hash as u32;
    SALT.into_iter().map(move |salt| (low.wrapping_mul(salt) >> 23) as usize)
}

/// Adds a hash to a filter of a whole number of lines.
pub(crate) fn add(filter: &mut [u8], hash: u64) {
    let at = line_of(hash, filter.len() / LINE) * LINE;
    let line = &mut filter[at..at + LINE];
    for bit in probes(hash) {
        line[bit / 8] |= 1 << (bit % 8);
    }
}

/// Asks the processor for the line of the hash.
#[inline]
pub(crate) fn prefetch(filter: &[u8], hash: u64) {
    if let Some(line) = filter.get(line_of(hash, filter.len() / LINE) * LINE..) {
        betree_storage::prefetch::bytes(line.as_ptr(), 1);
    }
}

/// Whether the key of `hash` may have been added. An empty filter says yes.
pub(crate) fn may_contain(filter: &[u8], hash: u64) -> bool {
    if filter.len() < LINE {
        return true;
    }
    let at = line_of(hash, filter.len() / LINE) * LINE;
    let line = &filter[at..at + LINE];
    probes(hash).all(|bit| line[bit / 8] & (1 << (bit % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash;

    #[test]
    fn filters_of_more_keys_than_there_is_room_for_have_fewer_bits() {
        let room = 184 << 20;
        assert_eq!(bits_within(room, 0, 24), 24);
        assert_eq!(bits_within(room, 20_000_000, 24), 24);
        assert_eq!(bits_within(room, 100_000_000, 24), 15);
        assert_eq!(bits_within(room, u64::MAX, 24), 8);
        assert_eq!(bits_within(0, 1, 24), 8);
        assert_eq!(bits_within(0, 1, 5), 5);
        assert_eq!(bits_within(room, 1, 0), 0);
    }

    #[test]
    fn added_keys_are_found_and_less_than_one_percent_of_others() {
        let keys = 10_000u64;
        let mut filter = vec![0; filter_len(keys as usize, 12)];
        (0..keys).for_each(|k| add(&mut filter, hash(&k.to_be_bytes())));
        assert!((0..keys).all(|k| may_contain(&filter, hash(&k.to_be_bytes()))));
        let wrong = (keys..keys * 11).filter(|k| may_contain(&filter, hash(&k.to_be_bytes()))).count();
        assert!(wrong < 800, "{wrong} false positives in 100,000");
    }
}
