//! Laying out data pages. Called by the writer of runs.
//!
//! An entry is written once, in its final form, on two guesses. The page's prefix is taken to be as long as the last page's would have been at best. Should a key
//! not begin with it, it is shortened, which moves the entries; that happens where the keys' first bytes change, once in many pages. And the
//! page is taken to be even until an entry has other lengths, or another kind, than those before; then all of it is laid out again as listed. If that would not
//! leave room for the entry, the page ends before it.

use super::{EVEN, HEADER, LISTED, TYPE_DATA, common_prefix};
use crate::message::{Kind, MessageRef, get_varint};

/// Collects entries in key order and lays them out as one page.
pub(crate) struct PageBuilder {
    page_bytes: usize,
    /// Room for a header, the prefix, the entries.
    page: Vec<u8>,
    /// What the page was before it was laid out again; kept for its memory.
    old: Vec<u8>,
    count: usize,
    /// What all entries have, while the page is even.
    even: Option<Lengths>,
    /// Where each entry begins, once it is not.
    offsets: Vec<u16>,
    first: Vec<u8>,
    /// Bytes of the prefix.
    prefix: usize,
    /// What the next page's prefix will be like.
    guess: usize,
}

/// The length fields of an entry.
#[derive(Copy, Clone, PartialEq, Eq)]
struct Lengths {
    /// Length of the key's suffix, and kind.
    head: usize,
    value: usize,
}

impl Lengths {
    #[inline]
    fn new(suffix: usize, kind: Kind, value: usize) -> Lengths {
        Lengths { head: suffix << 2 | kind as usize, value }
    }

    #[inline]
    fn suffix(self) -> usize {
        self.head >> 2
    }

    /// Of suffix and value.
    #[inline]
    fn stride(self) -> usize {
        self.suffix() + self.value
    }

    /// Of the two fields as they are written.
    fn written(self) -> usize {
        let varint = |value: usize| (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize;
        varint(self.head) + varint(self.value)
    }

    /// With a suffix that is longer by so much.
    fn longer(self, more: usize) -> Lengths {
        Lengths { head: self.head + (more << 2), ..self }
    }

    #[inline]
    fn put(self, out: &mut Vec<u8>) {
        if (self.head | self.value) < 0x80 {
            out.extend_from_slice(&[self.head as u8, self.value as u8]);
            return;
        }
        for mut length in [self.head, self.value] {
            while length >= 0x80 {
                out.push(length as u8 | 0x80);
                length >>= 7;
            }
            out.push(length as u8);
        }
    }

    /// Takes the fields off the front of `bytes`.
    fn take(bytes: &mut &[u8]) -> Option<Lengths> {
        Some(Lengths { head: get_varint(bytes)? as usize, value: get_varint(bytes)? as usize })
    }
}

/// Lengths, key suffix and value of the entry that begins at `at`; with `even` its lengths are these, otherwise they are there.
fn entry_at(page: &[u8], at: usize, even: Option<Lengths>) -> Option<(Lengths, &[u8], &[u8])> {
    let mut rest = page.get(at..)?;
    let lengths = match even {
        Some(lengths) => lengths,
        None => Lengths::take(&mut rest)?,
    };
    let (suffix, rest) = rest.split_at_checked(lengths.suffix())?;
    Some((lengths, suffix, rest.get(..lengths.value)?))
}

impl PageBuilder {
    pub(crate) fn new(page_bytes: usize) -> Self {
        PageBuilder {
            page_bytes,
            page: Vec::with_capacity(page_bytes),
            old: Vec::with_capacity(page_bytes),
            count: 0,
            even: None,
            offsets: Vec::with_capacity(page_bytes / 32),
            first: Vec::new(),
            prefix: 0,
            guess: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn first_key(&self) -> &[u8] {
        &self.first
    }

    /// The last entry's key replaces what is in `out`. REQUIRES an entry.
    pub(crate) fn last_key_into(&self, out: &mut Vec<u8>) {
        out.clear();
        if let Some(suffix) = self.last_suffix() {
            out.extend_from_slice(&self.first[..self.prefix]);
            out.extend_from_slice(suffix);
        }
    }

    /// Takes the entry, or answers false when the page has no room for it (an empty page takes any).
    #[inline]
    pub(crate) fn push(&mut self, message: MessageRef<'_>) -> bool {
        let (key, value) = (message.key, message.value);
        if self.count == 0 {
            self.begin(message);
        } else if !key.starts_with(&self.first[..self.prefix])
            && !self.shorten(common_prefix(&self.first, key))
        {
            return false;
        }
        let suffix = &key[self.prefix..];
        let lengths = Lengths::new(suffix.len(), message.kind, value.len());
        if self.even == Some(lengths) {
            if self.count > 0 && self.page.len() + lengths.stride() > self.page_bytes {
                return false;
            }
        } else {
            if self.count > 0 && !self.takes_listed(lengths) {
                return false;
            }
            // Of several entries all fit in a page of at most 64 KiB; a single one begins after the header in the end.
            self.offsets.push(self.page.len() as u16);
            lengths.put(&mut self.page);
        }
        self.page.extend_from_slice(suffix);
        self.page.extend_from_slice(value);
        self.count += 1;
        true
    }

    /// Begins the page of this first entry.
    fn begin(&mut self, message: MessageRef<'_>) {
        let MessageRef { kind, key, value } = message;
        self.first.clear();
        self.first.extend_from_slice(key);
        self.prefix = self.guess.min(key.len()).min(self.page_bytes / 2);
        self.page.clear();
        self.page.extend_from_slice(&[0; HEADER]);
        self.page.extend_from_slice(&key[..self.prefix]);
        let lengths = Lengths::new(key.len() - self.prefix, kind, value.len());
        // Of entries that are longer there is no second one.
        self.even = (2 * lengths.stride() < self.page_bytes).then_some(lengths);
        if self.even.is_some() {
            lengths.put(&mut self.page);
        }
    }

    /// Whether the page, laid out as listed, has room for one more entry of these lengths; then it is listed.
    #[inline]
    fn takes_listed(&mut self, lengths: Lengths) -> bool {
        let room = |laid: usize, count: usize| {
            laid + lengths.written() + lengths.stride() + 2 * (count + 1) <= self.page_bytes
        };
        match self.even {
            None => room(self.page.len(), self.count),
            Some(even) => {
                let fits = room(self.page.len() + (self.count - 1) * even.written(), self.count);
                if fits {
                    self.lay_out(self.prefix, None);
                }
                fits
            }
        }
    }

    /// Makes the prefix `to` bytes long, if the entries then fit.
    #[cold]
    fn shorten(&mut self, to: usize) -> bool {
        let longer = self.prefix - to;
        let even = self.even.map(|lengths| lengths.longer(longer));
        // Each suffix gets longer by so much, and its length field by a byte at most.
        let most = match even {
            Some(_) => self.page.len() + self.count * longer + 1,
            None => self.page.len() + self.count * (longer + 1) + 2 * self.count,
        };
        if self.count > 1 && most > self.page_bytes {
            return false;
        }
        self.lay_out(to, even);
        true
    }

    /// Lays the entries out again, with a prefix of `to` bytes, as even ones or, with `None`, listed.
    #[cold]
    fn lay_out(&mut self, to: usize, even: Option<Lengths>) {
        std::mem::swap(&mut self.page, &mut self.old);
        let start = HEADER + self.prefix + self.even.map_or(0, Lengths::written);
        let missing = &self.first[to..self.prefix];
        self.page.clear();
        self.page.extend_from_slice(&self.old[..HEADER + to]);
        if let Some(lengths) = even {
            lengths.put(&mut self.page);
        }
        for index in 0..self.count {
            let at = match self.even {
                Some(lengths) => start + index * lengths.stride(),
                None => usize::from(self.offsets[index]),
            };
            let Some((lengths, suffix, value)) = entry_at(&self.old, at, self.even) else {
                // It was laid out by this builder.
                panic!("page: entry {index} does not decode");
            };
            if even.is_none() {
                let offset = self.page.len() as u16;
                match self.offsets.get_mut(index) {
                    Some(old) => *old = offset,
                    None => self.offsets.push(offset),
                }
                lengths.longer(missing.len()).put(&mut self.page);
            }
            self.page.extend_from_slice(missing);
            self.page.extend_from_slice(suffix);
            self.page.extend_from_slice(value);
        }
        // The memory of one large entry is not kept.
        self.old.clear();
        self.old.shrink_to(self.page_bytes);
        (self.prefix, self.even) = (to, even);
    }

    /// Ends the page: the length that [`PageBuilder::finish`] lays out, which is the page size, or more for one large entry.
    pub(crate) fn page_len(&mut self) -> usize {
        if self.count == 1 && (self.prefix > 0 || self.even.is_some()) {
            // So that its offset fits however long the key is.
            self.lay_out(0, None);
        }
        (self.page.len() + 2 * self.offsets.len()).next_multiple_of(4096).max(self.page_bytes)
    }

    /// Lays the page out in `out` ([`PageBuilder::page_len`] bytes) and empties the builder. The checksum is left to the pager.
    pub(crate) fn finish(&mut self, out: &mut [u8]) {
        let end = self.page.len();
        let slots = out.len() - 2 * self.offsets.len();
        self.page[4] = TYPE_DATA;
        self.page[5] = if self.even.is_some() { EVEN } else { LISTED };
        self.page[6..8].copy_from_slice(&(self.count as u16).to_le_bytes());
        self.page[8..10].copy_from_slice(&(self.prefix as u16).to_le_bytes());
        self.page[12..16].copy_from_slice(&(end as u32).to_le_bytes());
        out[..end].copy_from_slice(&self.page);
        out[end..slots].fill(0);
        for (slot, offset) in out[slots..].chunks_exact_mut(2).zip(&self.offsets) {
            slot.copy_from_slice(&offset.to_le_bytes());
        }
        if self.count > 1
            && let Some(suffix) = self.last_suffix()
        {
            // Keys ascend, so what the first and the last one share all do.
            self.guess = self.prefix + common_prefix(&self.first[self.prefix..], suffix);
        }
        self.offsets.clear();
        (self.count, self.even) = (0, None);
    }

    fn last_suffix(&self) -> Option<&[u8]> {
        let at = match self.even {
            Some(even) => self.page.len().checked_sub(even.stride())?,
            None => usize::from(*self.offsets.last()?),
        };
        entry_at(&self.page, at, self.even).map(|(_, suffix, _)| suffix)
    }
}
