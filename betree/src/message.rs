//! Messages and their encoding in batches.
//!
//! One encoding serves the write batch in memory and the payload of a log record, so that a batch is encoded once; only
//! its header, which is known when it is committed, is put before it then:
//!
//! ```text
//! batch   := count | first Seqno | message*                            (all numbers are varints)
//! message := keyspace << 2 | kind | klen | vlen | key | value          (keyspace and kind are one number)
//! ```
//!
//! `kind` is 0 Put, 1 Delete (no value), 2 Merge (value = operand), 3 RangeDelete (key = start, value = end, exclusive).
//! The n-th message of a batch has the Seqno first + n. Called by the batch, the commit path and recovery.

use crate::types::{KeyspaceId, MAX_KEY_LEN, MAX_VALUE_LEN, Seqno};

/// What a message asks for.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The key has this value.
    Put = 0,
    /// The key is absent.
    Delete = 1,
    /// The operand is folded onto what lies below.
    Merge = 2,
    /// Every key in `key..value` is absent.
    RangeDelete = 3,
}

impl Kind {
    /// Whether the message only takes away.
    pub(crate) fn is_delete(self) -> bool {
        matches!(self, Kind::Delete | Kind::RangeDelete)
    }

    pub(crate) fn from_u8(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::Put,
            1 => Kind::Delete,
            2 => Kind::Merge,
            3 => Kind::RangeDelete,
            _ => return None,
        })
    }
}

/// A borrowed message. For a RangeDelete `key..value` is the range; for a Delete `value` is empty.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct MessageRef<'a> {
    pub kind: Kind,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// Most bytes of a batch's header.
const HEADER_MAX: usize = 5 + 10;
/// Most bytes of a message before its key.
const MESSAGE_HEAD_MAX: usize = 5 + 3 + 5;

/// Varints on the stack.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Head {
    bytes: [u8; HEADER_MAX + MESSAGE_HEAD_MAX],
    len: usize,
}

impl Head {
    /// The header of a batch of `count` messages.
    #[inline]
    pub(crate) fn of_batch(first: Seqno, count: u32) -> Head {
        let mut head = Head { bytes: [0; HEADER_MAX + MESSAGE_HEAD_MAX], len: 0 };
        head.put(u64::from(count));
        head.put(first.0);
        head
    }

    /// Adds what stands before the key of a message.
    #[inline]
    pub(crate) fn message(&mut self, keyspace: KeyspaceId, message: MessageRef<'_>) {
        self.put(tag(keyspace, message.kind));
        self.put(message.key.len() as u64);
        self.put(message.value.len() as u64);
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    fn put(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes[self.len] = value as u8 | 0x80;
            self.len += 1;
            value >>= 7;
        }
        self.bytes[self.len] = value as u8;
        self.len += 1;
    }
}

/// Keyspace and kind in one number: one byte for the first 32 keyspaces.
fn tag(keyspace: KeyspaceId, kind: Kind) -> u64 {
    u64::from(keyspace.0) << 2 | kind as u64
}

/// Appends one message to an encoded batch.
pub(crate) fn encode_message(out: &mut Vec<u8>, keyspace: KeyspaceId, message: MessageRef<'_>) {
    put_varint(out, tag(keyspace, message.kind));
    put_varint(out, message.key.len() as u64);
    put_varint(out, message.value.len() as u64);
    out.extend_from_slice(message.key);
    out.extend_from_slice(message.value);
}

/// Takes the header off the front of a logged batch: its first Seqno and the number of messages.
pub(crate) fn take_batch_header(batch: &mut &[u8]) -> Option<(Seqno, u32)> {
    let count = u32::try_from(get_varint(batch)?).ok()?;
    Some((Seqno(get_varint(batch)?), count))
}

/// The messages of an encoded batch, in order. Ends early with `None` in [`Messages::next`] on malformed bytes;
/// [`Messages::finished`] tells the difference.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
    ok: bool,
}

impl<'a> Messages<'a> {
    /// Over the bytes after the header.
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Messages { rest: body, ok: true }
    }

    /// Whether every byte was a well-formed message.
    pub(crate) fn finished(&self) -> bool {
        self.ok && self.rest.is_empty()
    }

    fn decode(&mut self) -> Option<(KeyspaceId, MessageRef<'a>)> {
        let mut rest = self.rest;
        let tag = get_varint(&mut rest)?;
        let kind = Kind::from_u8((tag & 3) as u8)?;
        let keyspace = u32::try_from(tag >> 2).ok()?;
        let klen = usize::try_from(get_varint(&mut rest)?).ok()?;
        let vlen = usize::try_from(get_varint(&mut rest)?).ok()?;
        if klen > MAX_KEY_LEN || vlen > MAX_VALUE_LEN || klen + vlen > rest.len() {
            return None;
        }
        let (key, rest) = rest.split_at(klen);
        let (value, rest) = rest.split_at(vlen);
        self.rest = rest;
        Some((KeyspaceId(keyspace), MessageRef { kind, key, value }))
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = (KeyspaceId, MessageRef<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if !self.ok || self.rest.is_empty() {
            return None;
        }
        let message = self.decode();
        self.ok = message.is_some();
        message
    }
}

/// Appends `value` as a LEB128 varint (at most 10 bytes).
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a LEB128 varint off the front of `bytes`; `None` if it is cut off or does not fit 64 bits.
pub(crate) fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_decodes_to_the_messages_that_were_encoded() {
        let mut batch = Vec::new();
        let messages = [
            MessageRef { kind: Kind::Put, key: b"", value: b"v" },
            MessageRef { kind: Kind::Delete, key: &[0xff; 300], value: b"" },
            MessageRef { kind: Kind::Merge, key: b"k", value: &[7; 70_000] },
            MessageRef { kind: Kind::RangeDelete, key: b"a", value: b"b" },
        ];
        let mut ends = vec![batch.len()];
        for (i, m) in messages.iter().enumerate() {
            encode_message(&mut batch, KeyspaceId(i as u32 * 100), *m);
            ends.push(batch.len());
        }
        let logged = [Head::of_batch(Seqno(u64::MAX), u32::MAX).bytes(), &batch].concat();
        let mut body = &logged[..];
        assert_eq!(take_batch_header(&mut body), Some((Seqno(u64::MAX), u32::MAX)));
        assert_eq!(body, batch);
        let mut decoded = Messages::new(&batch);
        for (i, m) in messages.iter().enumerate() {
            assert_eq!(decoded.next(), Some((KeyspaceId(i as u32 * 100), *m)));
        }
        assert!(decoded.next().is_none() && decoded.finished());
        for cut in 1..batch.len().min(400) {
            let mut cut_off = Messages::new(&batch[..cut]);
            cut_off.by_ref().for_each(drop);
            assert_eq!(cut_off.finished(), ends.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn one_message_is_encoded_on_the_stack_as_in_a_batch() {
        for (id, vlen) in [(0, 0), (31, 127), (32, 128), (u32::MAX, 1 << 20)] {
            let message = MessageRef { kind: Kind::Merge, key: b"key", value: &vec![1; vlen] };
            let mut encoded = Vec::new();
            encode_message(&mut encoded, KeyspaceId(id), message);
            let mut head = Head::of_batch(Seqno(300), 1);
            head.message(KeyspaceId(id), message);
            let header = Head::of_batch(Seqno(300), 1);
            assert_eq!(
                [head.bytes(), message.key, message.value].concat(),
                [header.bytes(), &encoded].concat()
            );
        }
    }

    #[test]
    fn varints_round_trip_and_overlong_ones_are_refused() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(get_varint(&mut &out[..]), Some(value));
        }
        assert_eq!(get_varint(&mut &[0xff; 11][..]), None);
        assert_eq!(get_varint(&mut &[0x80][..]), None);
    }
}
