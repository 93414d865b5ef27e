//! Operand lists: the value of a Merge message that stands for several operands of its key, and what folds them.
//!
//! Encoding, oldest operand first: `count varint`, then per operand `len varint | bytes`. Written by memtable cursors
//! and by merges of runs, folded by reads. No state, no locks.

use std::borrow::Cow;

use crate::message::{get_varint, put_varint};
use crate::operator::MergeOperator;

/// Appends the list of `operands`, oldest first.
pub(crate) fn encode(out: &mut Vec<u8>, operands: &[&[u8]]) {
    put_varint(out, operands.len() as u64);
    for operand in operands {
        put_varint(out, operand.len() as u64);
        out.extend_from_slice(operand);
    }
}

/// The operands of a list, oldest first; `None` if it is malformed.
pub(crate) fn decode(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let count = usize::try_from(get_varint(&mut bytes)?).ok()?;
    // An operand takes at least its length byte.
    if count > bytes.len() {
        return None;
    }
    let mut operands = Vec::with_capacity(count);
    for _ in 0..count {
        let len = usize::try_from(get_varint(&mut bytes)?).ok()?;
        let (operand, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        operands.push(operand);
    }
    bytes.is_empty().then_some(operands)
}

/// The list with the effect of `older` followed by `newer` (both lists); `None` if either is malformed.
pub(crate) fn combine(
    operator: &dyn MergeOperator,
    key: &[u8],
    older_list: &[u8],
    newer_list: &[u8],
) -> Option<Vec<u8>> {
    let mut operands = decode(older_list)?;
    operands.append(&mut decode(newer_list)?);
    Some(shorten(operator, key, &operands))
}

/// The value after folding `list` onto `base`; `None` if the list is malformed.
pub(crate) fn fold(
    operator: &dyn MergeOperator,
    key: &[u8],
    base: Option<&[u8]>,
    list: &[u8],
) -> Option<Vec<u8>> {
    Some(operator.full_merge(key, base, &decode(list)?))
}

/// The list of `operands` (oldest first), neighbours made one where the operator can.
pub(crate) fn shorten(operator: &dyn MergeOperator, key: &[u8], operands: &[&[u8]]) -> Vec<u8> {
    // Pairs of equal weight first, as a binary counter adds: for operators that concatenate, n operands cost
    // n·log n bytes instead of n².
    let mut stack: Vec<(u32, Cow<'_, [u8]>)> = Vec::new();
    for operand in operands {
        let (mut weight, mut newer) = (0, Cow::Borrowed(*operand));
        while let Some((_, older)) = stack.pop_if(|(w, _)| *w == weight) {
            let Some(both) = operator.partial_merge(key, &older, &newer) else {
                stack.push((weight, older));
                break;
            };
            (weight, newer) = (weight + 1, Cow::Owned(both));
        }
        stack.push((weight, newer));
    }
    // What is left has falling weights, or neighbours that were refused; newest first from here.
    let mut out: Vec<Cow<'_, [u8]>> = Vec::with_capacity(stack.len());
    while let Some((_, older)) = stack.pop() {
        match out.last().and_then(|newer| operator.partial_merge(key, &older, newer)) {
            Some(both) => {
                out.pop();
                out.push(Cow::Owned(both));
            }
            None => out.push(older),
        }
    }
    let oldest_first: Vec<&[u8]> = out.iter().rev().map(AsRef::as_ref).collect();
    let mut list = Vec::new();
    encode(&mut list, &oldest_first);
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::{AddI64, Append};

    /// Appends, but joins only operands whose lengths add up to at most 5.
    #[derive(Debug)]
    struct Picky;

    impl MergeOperator for Picky {
        fn name(&self) -> &str {
            "picky"
        }

        fn full_merge(&self, key: &[u8], base: Option<&[u8]>, operands: &[&[u8]]) -> Vec<u8> {
            Append.full_merge(key, base, operands)
        }

        fn partial_merge(&self, _key: &[u8], older: &[u8], newer: &[u8]) -> Option<Vec<u8>> {
            (older.len() + newer.len() <= 5).then(|| [older, newer].concat())
        }
    }

    fn list(operands: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, operands);
        out
    }

    #[test]
    fn lists_round_trip_and_malformed_ones_are_refused() {
        let long = vec![7; 300];
        let operands: [&[u8]; 4] = [b"", b"one", &long, b""];
        let bytes = list(&operands);
        assert_eq!(decode(&bytes).unwrap(), operands);
        assert!((0..bytes.len()).all(|cut| decode(&bytes[..cut]).is_none()));
        assert_eq!(decode(&[bytes, vec![0]].concat()), None);
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0]), None);
        assert_eq!(decode(&[0]), Some(vec![]));
    }

    #[test]
    fn shortened_lists_keep_order_and_effect() {
        for count in 0..40usize {
            let operands: Vec<Vec<u8>> = (0..count).map(|i| vec![i as u8; i * 7 % 4]).collect();
            let operands: Vec<&[u8]> = operands.iter().map(Vec::as_slice).collect();
            for operator in [&Picky as &dyn MergeOperator, &Append] {
                let short = shorten(operator, b"k", &operands);
                let folded = fold(operator, b"k", Some(b"base"), &short).unwrap();
                assert_eq!(folded, Append.full_merge(b"k", Some(b"base"), &operands));
                assert!(decode(&short).unwrap().len() <= count);
            }
            assert_eq!(decode(&shorten(&Append, b"k", &operands)).unwrap().len(), count.min(1));
        }
    }

    #[test]
    fn combined_lists_have_the_effect_of_both() {
        let (a, b) = (list(&[&1i64.to_le_bytes(), &2i64.to_le_bytes()]), list(&[&4i64.to_le_bytes()]));
        let both = combine(&AddI64, b"k", &a, &b).unwrap();
        assert_eq!(both, list(&[&7i64.to_le_bytes()]));
        assert_eq!(
            fold(&AddI64, b"k", Some(&10i64.to_le_bytes()), &both),
            Some(17i64.to_le_bytes().to_vec())
        );
        let both = combine(&Picky, b"k", &list(&[b"abc"]), &list(&[b"def", b"g"])).unwrap();
        assert_eq!(both, list(&[b"abc", b"defg"]));
        assert_eq!(combine(&Picky, b"k", &[9], &b), None);
        assert_eq!(fold(&Picky, b"k", None, &[9]), None);
    }
}
