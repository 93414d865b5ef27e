//! Functions over bytes for fuzz targets and corruption runs, by the feature `fuzzing`, which is off unless asked for.
//!
//! Not part of the API: they change with the codecs. Called by the crate `betree-fuzz` only. They state nothing themselves; what must
//! hold of the answers is stated there. No locks.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use betree_pager::{Extent, PageKind, Pager};
use betree_storage::Storage;

use crate::checkpoint::Catalog;
use crate::hash::hash;
use crate::message::{Head, Kind, MessageRef, Messages, encode_message, take_batch_header};
use crate::node::{Node, Target};
use crate::node_codec::{self, NodePointer, NodeReader};
use crate::page::{PageBuilder, PageRef};
use crate::remember;
use crate::rows::Row;
use crate::segment::Meta;
use crate::spans::Spans;
use crate::types::{KeyspaceId, Seqno};
use crate::{Db, Error, Result, operands};

/// Lets rows be cached although all pages fit in memory, so that a small database has them, too.
pub fn cache_rows_anyway(db: &Db) {
    db.shared().memory.rows_anyway.store(true, Relaxed);
}

/// Which bytes of the data file the trees of an open database and its last checkpoint take up.
#[must_use]
pub fn layout(db: &Db) -> Vec<(Range<u64>, &'static str)> {
    let shared = db.shared();
    let mut out = Vec::new();
    let durable = shared.checkpoint.lock();
    if let Some(catalog) = &durable.catalog {
        out.push((catalog.offset()..catalog.offset() + u64::from(catalog.len()), "catalog"));
    }
    for block in durable.rows.iter() {
        let start = block.extent.offset();
        out.push((start..start + u64::from(block.len), "rows"));
    }
    drop(durable);
    for state in shared.states() {
        let root = state.view().root.clone();
        places(&root, &mut out);
        root.visit_segments(&mut |segment| {
            let start = segment.extent.offset();
            let data = start + u64::from(segment.data_len);
            out.push((start..data, "data pages"));
            out.push((data..data + u64::from(segment.meta_len), "meta block"));
        });
    }
    out
}

fn places(node: &Arc<Node>, out: &mut Vec<(Range<u64>, &'static str)>) {
    if let Some(place) = node.place.get() {
        let start = place.extent.offset();
        out.push((start..start + u64::from(place.len), "node"));
    }
    for child in &node.children {
        if let Target::Node(below) = &child.target {
            places(below, out);
        }
    }
}

/// Kind, key and value of a message, as bytes.
pub type Entry = (u8, Vec<u8>, Vec<u8>);

/// The entries of a data page, with whole keys. `None`: the page, or one of its entries, does not decode.
#[must_use]
pub fn page_entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let page = PageRef::new(bytes)?;
    let mut key = Vec::new();
    (0..page.count())
        .map(|i| {
            let entry = page.key_into(i, &mut key)?;
            Some((entry.kind as u8, key.clone(), entry.value.to_vec()))
        })
        .collect()
}

/// Where a key lies in a data page, or how many entries are below it. `None`: the page does not decode.
#[must_use]
pub fn page_search(bytes: &[u8], key: &[u8]) -> Option<std::result::Result<usize, usize>> {
    PageRef::new(bytes)?.search(key)
}

/// Lays entries out in data pages.
///
/// # Panics
/// On a kind that is none.
#[must_use]
pub fn build_pages(entries: &[Entry], page_bytes: usize) -> Vec<Vec<u8>> {
    let mut builder = PageBuilder::new(page_bytes);
    let mut pages = Vec::new();
    let mut finish = |builder: &mut PageBuilder| {
        let mut page = vec![0xee; builder.page_len()];
        builder.finish(&mut page);
        pages.push(page);
    };
    for (kind, key, value) in entries {
        let Some(kind) = Kind::from_u8(*kind) else { panic!("{kind} is no kind") };
        let message = MessageRef { kind, key, value };
        if !builder.push(message) {
            finish(&mut builder);
            assert!(builder.push(message), "an empty page takes any entry");
        }
    }
    if !builder.is_empty() {
        finish(&mut builder);
    }
    pages
}

/// What a meta block says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaView {
    /// Place, length and checksum of each data page; `None` where the block lies.
    pub places: Vec<Option<(u32, u32, u32)>>,
    /// The separator of each data page.
    pub separators: Vec<Vec<u8>>,
    /// Which page each of the keys asked for would be in.
    pub pages: Vec<usize>,
    /// Whether the filter may contain it.
    pub may_contain: Vec<bool>,
}

/// Reads a meta block of a segment with so many bytes of data pages, and asks it for `keys`. `None`: it does not decode.
#[must_use]
pub fn meta(
    pager: &Pager,
    extent: &Arc<Extent>,
    data_len: u32,
    bytes: &[u8],
    keys: &[&[u8]],
) -> Option<MetaView> {
    let page = pager.insert(extent, 0, bytes, PageKind::Meta);
    let meta = Meta::parse(page, extent.offset(), data_len).ok()?;
    Some(MetaView {
        places: (0..meta.pages()).map(|i| meta.place(i).map(|p| (p.at, p.len, p.crc))).collect(),
        separators: (0..meta.pages()).map(|i| meta.separator(i).to_vec()).collect(),
        pages: keys.iter().map(|key| meta.page_of(key)).collect(),
        may_contain: keys.iter().map(|key| meta.may_contain(hash(key))).collect(),
    })
}

/// Reads the tree whose root lies at `offset` of the data file, and encodes the root again.
///
/// # Errors
/// No checkpoint, and whatever does not decode.
pub fn read_node(storage: Arc<dyn Storage>, offset: u64, len: u32, crc: u32) -> Result<Vec<u8>> {
    let options = betree_pager::Options { cache_bytes: 1 << 16, create: false, ..Default::default() };
    let (pager, superblock) = Pager::open(storage, options)?;
    if superblock.is_none() {
        return Err(Error::Missing { path: "a checkpoint".into() });
    }
    let root = NodeReader::new(&pager).read(NodePointer { offset, len, crc }, None, b"", None)?;
    Ok(node_codec::encode(&root))
}

/// Decodes a catalog page and encodes it again. `None`: it does not decode.
#[must_use]
pub fn catalog(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(Catalog::decode(bytes)?.encode())
}

/// A remembered row: keyspace, Seqno, credit, key, value.
pub type RememberedRow = (u32, u64, u8, Vec<u8>, Vec<u8>);

/// The rows of a block. `None`: it does not decode.
#[must_use]
pub fn rows(block: &[u8]) -> Option<Vec<RememberedRow>> {
    let rows = remember::decode(block)?;
    Some(rows.iter().map(|r| (r.keyspace.0, r.at.0, r.credit, r.key.to_vec(), r.value.to_vec())).collect())
}

/// Lays rows out in blocks.
#[must_use]
pub fn rows_blocks(rows: &[RememberedRow]) -> Vec<Vec<u8>> {
    let mut blocks = remember::Blocks::new();
    for (keyspace, at, credit, key, value) in rows {
        blocks.push(&Row { keyspace: KeyspaceId(*keyspace), at: Seqno(*at), credit: *credit, key, value });
    }
    blocks.close();
    blocks.full
}

/// What is wrong with a block of a database whose only keyspace, 0, has everything up to `flushed` in its tree.
#[must_use]
pub fn rows_fault(block: &[u8], flushed: u64) -> Option<String> {
    remember::fault(block, &[(KeyspaceId(0), Seqno(flushed))].into())
}

/// The first Seqno of an encoded batch, and its messages with their keyspaces. `None`: it does not decode.
#[must_use]
pub fn batch(bytes: &[u8]) -> Option<(u64, Vec<(u32, Entry)>)> {
    let mut body = bytes;
    let (first, count) = take_batch_header(&mut body)?;
    let mut messages = Messages::new(body);
    let decoded: Vec<_> = messages
        .by_ref()
        .map(|(keyspace, m)| (keyspace.0, (m.kind as u8, m.key.to_vec(), m.value.to_vec())))
        .collect();
    (messages.finished() && decoded.len() == count as usize).then_some((first.0, decoded))
}

/// Encodes a batch.
///
/// # Panics
/// On a kind that is none.
#[must_use]
pub fn encode_batch(first: u64, messages: &[(u32, Entry)]) -> Vec<u8> {
    let mut out = Head::of_batch(Seqno(first), messages.len() as u32).bytes().to_vec();
    for (keyspace, (kind, key, value)) in messages {
        let Some(kind) = Kind::from_u8(*kind) else { panic!("{kind} is no kind") };
        encode_message(&mut out, KeyspaceId(*keyspace), MessageRef { kind, key, value });
    }
    out
}

/// Start and end of a span.
pub type Span = (Vec<u8>, Vec<u8>);

/// Decodes spans and encodes them again. `None`: they do not decode.
#[must_use]
pub fn spans(bytes: &[u8]) -> Option<(Vec<Span>, Vec<u8>)> {
    let spans = Spans::decode(bytes)?;
    let mut out = Vec::new();
    spans.encode(&mut out);
    Some((spans.iter().map(|(start, end)| (start.to_vec(), end.to_vec())).collect(), out))
}

/// Decodes a list of operands and encodes it again. `None`: it does not decode.
#[must_use]
pub fn operands(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
    let operands = operands::decode(bytes)?;
    let mut out = Vec::new();
    operands::encode(&mut out, &operands);
    Some((operands.into_iter().map(<[u8]>::to_vec).collect(), out))
}
