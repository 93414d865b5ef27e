//! Segments read whole: checksums, order, bounds, separators, counts, filter.

use super::Checker;
use crate::device::{Window, read_meta};
use crate::hash::hash;
use crate::message::Kind;
use crate::operands;
use crate::page::PageRef;
use crate::segment::Meta;
use crate::stored::StoredSegment;

/// What the pages of a segment showed so far.
#[derive(Default)]
struct Seen {
    messages: u64,
    /// The last key, from whichever page.
    key: Vec<u8>,
    any: bool,
}

impl Checker<'_> {
    /// Reads a segment whole.
    pub(super) fn segment(&mut self, segment: &StoredSegment, run: &str) {
        self.report.segments += 1;
        let name = format!("{run} segment at offset {}", segment.offset);
        let meta = match read_meta(self.inspector, segment) {
            Ok(meta) => meta,
            Err(error) => return self.unreadable(&name, error),
        };
        if let Some(page) = meta.first_gap() {
            return self.problem(format!("segment.pages_tile_the_data: {name}: page {page}"));
        }
        let mut window = Window::default();
        let mut seen = Seen::default();
        let mut all = true;
        for index in 0..meta.pages() {
            let Some(place) = meta.place(index) else { continue };
            self.report.pages += 1;
            match window.page(self.inspector, segment, place) {
                Ok(bytes) => self.page(segment, &meta, index, bytes, &mut seen, &name),
                Err(error) => {
                    all = false;
                    self.unreadable(&format!("{name} page {index}"), error);
                }
            }
        }
        self.report.messages += seen.messages;
        if all && seen.messages != u64::from(segment.messages) || meta.messages() != segment.messages {
            self.problem(format!(
                "segment.count: {name}: {} in the node, {} in the meta block, {} in the pages",
                segment.messages,
                meta.messages(),
                seen.messages
            ));
        }
    }

    fn page(
        &mut self,
        segment: &StoredSegment,
        meta: &Meta,
        index: usize,
        bytes: &[u8],
        seen: &mut Seen,
        name: &str,
    ) {
        let Some(page) = PageRef::new(bytes) else {
            return self.problem(format!("page.sealed: {name} page {index}: the header does not decode"));
        };
        if index > 0 && seen.any && meta.separator(index) <= &seen.key[..] {
            self.problem(format!("segment.separators: {name} page {index}: not above the page before"));
        }
        let mut key = Vec::new();
        for at in 0..page.count() {
            let Some(entry) = page.key_into(at, &mut key) else {
                return self.problem(format!(
                    "page.kind_is_point: {name} page {index} entry {at}: it does not decode"
                ));
            };
            let well_formed = match entry.kind {
                Kind::Delete => entry.value.is_empty(),
                Kind::Merge => operands::decode(entry.value).is_some(),
                Kind::Put | Kind::RangeDelete => true,
            };
            seen.messages += 1;
            let checks = [
                (well_formed, "page.sealed: an operand list or a Delete is malformed"),
                (!seen.any || seen.key < key, "page.keys_ascend: not above the key before"),
                (*segment.min <= *key && *key <= *segment.max, "segment.keys_in_bounds: outside"),
                (index == 0 || meta.separator(index) <= &key[..], "segment.separators: above the key"),
                (meta.page_of(&key) == index, "segment.separators: searches end at another page"),
                (meta.may_contain(hash(&key)), "filter.no_false_negative: a key is answered absent"),
            ];
            for (_, what) in checks.iter().filter(|(holds, _)| !holds) {
                let (invariant, detail) = what.split_once(": ").unwrap_or((what, ""));
                self.problem(format!("{invariant}: {name} page {index} entry {at}: {detail}"));
            }
            seen.any = true;
            std::mem::swap(&mut seen.key, &mut key);
        }
    }
}
