//! Data pages: what decodes is searched as a linear scan would, and is laid out again to the same entries.

use betree::fuzzing::{Entry, build_pages, page_entries, page_search};

/// The bytes are a page as they are (`page type` set), and, read another way, entries for a builder.
pub fn page(bytes: &[u8]) {
    if let Some((&first, rest)) = bytes.split_first() {
        if first % 2 == 0 {
            decode(rest);
        } else {
            build(rest);
        }
    }
}

fn is_sorted(entries: &[Entry]) -> bool {
    entries.windows(2).all(|pair| pair[0].1 < pair[1].1)
}

fn scan(entries: &[Entry], key: &[u8]) -> Result<usize, usize> {
    let below = entries.iter().filter(|entry| entry.1[..] < *key).count();
    if entries.iter().any(|entry| entry.1 == key) { Ok(below) } else { Err(below) }
}

fn probes(entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut probes = vec![Vec::new(), vec![0xff; 8]];
    for (_, key, _) in entries.iter().take(64) {
        probes.push(key.clone());
        probes.push([&key[..], &[0]].concat());
        probes.push(key[..key.len() / 2].to_vec());
        if let Some((last, front)) = key.split_last() {
            probes.push([front, &[last.wrapping_sub(1)]].concat());
        }
    }
    probes
}

fn decode(bytes: &[u8]) {
    let mut page = bytes.to_vec();
    if let Some(kind) = page.get_mut(4) {
        *kind = 1;
    }
    let entries = page_entries(&page);
    // Searching a page that lies may find nothing or anything, but ends.
    for key in probes(entries.as_deref().unwrap_or_default()) {
        let found = page_search(&page, &key);
        if let Some(entries) = entries.as_deref().filter(|entries| is_sorted(entries)) {
            assert_eq!(found, Some(scan(entries, &key)), "search of {key:?} is no linear scan");
        }
    }
    let Some(entries) = entries else { return };
    assert!(entries.iter().all(|entry| entry.0 < 3), "a range delete in a page");
    if is_sorted(&entries) {
        rebuilt(&entries, 4096);
    }
}

/// Lays the entries out and reads them back.
fn rebuilt(entries: &[Entry], page_bytes: usize) {
    let mut back = Vec::new();
    for page in build_pages(entries, page_bytes) {
        assert!(page.len() % 4096 == 0 && page.len() >= page_bytes, "a page of {} bytes", page.len());
        let found = page_entries(&page).expect("what was built decodes");
        assert!(page.len() == page_bytes || found.len() == 1, "a long page has one entry");
        for key in probes(&found) {
            assert_eq!(page_search(&page, &key), Some(scan(&found, &key)));
        }
        back.extend(found);
    }
    assert!(back == entries, "entries do not come back from their pages");
}

fn build(bytes: &[u8]) {
    let mut source = super::Source(bytes);
    let page_bytes = [4096, 8192, 65_536][source.below(3)];
    let mut entries: Vec<Entry> = Vec::new();
    let mut key = Vec::new();
    while !source.is_over() && entries.len() < 3000 {
        key.truncate(source.below(24));
        let len = source.below(8);
        key.extend(source.bytes(len));
        let kind = (source.u8() % 3).min(2);
        let len = if source.u8() == 255 { usize::from(source.u16()) * 4 } else { source.below(40) };
        let mut value = source.bytes(len.min(64));
        value.resize(len, kind);
        entries.push((kind, key.clone(), value));
    }
    entries.sort_by(|a, b| a.1.cmp(&b.1));
    entries.dedup_by(|a, b| a.1 == b.1);
    rebuilt(&entries, page_bytes);
}
