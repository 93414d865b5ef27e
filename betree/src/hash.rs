//! The 64-bit key hash of filters. Part of the on-disk format: it may never change within a format version.
//!
//! Folded 64×64→128-bit multiplication over 16-byte steps, in the manner of wyhash (Wang Yi, "wyhash", 2019).

const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0xbf58_476d_1ce4_e5b9;
const K2: u64 = 0x94d0_49bb_1331_11eb;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// The hash of `key`.
pub(crate) fn hash(key: &[u8]) -> u64 {
    let mut state = K0 ^ (key.len() as u64);
    let mut rest = key;
    while rest.len() >= 16 {
        let (step, tail) = rest.split_at(16);
        state = fold(word(&step[..8]) ^ K1, word(&step[8..]) ^ state);
        rest = tail;
    }
    let (a, b) = if rest.len() > 8 { (word(&rest[..8]), word(&rest[8..])) } else { (word(rest), 0) };
    fold(fold(a ^ K1, b ^ state), K2 ^ (key.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_known_keys_never_changes() {
        let long: Vec<u8> = (0..=255).collect();
        let got: Vec<u64> =
            [&b""[..], b"a", b"12345678", b"0123456789abcdef", &long].iter().map(|k| hash(k)).collect();
        assert_eq!(got, GOLDEN);
    }

    const GOLDEN: [u64; 5] = [
        7367176444009658977,
        4385781670004949327,
        3969165754365547808,
        17157296382422954258,
        12952079492060689577,
    ];

    #[test]
    fn hashes_of_counting_keys_do_not_collide() {
        let mut seen: Vec<u64> = (0..100_000u64).map(|i| hash(&i.to_be_bytes())).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100_000);
    }
}
