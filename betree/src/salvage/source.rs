//! Where a salvage begins: the catalogs that can still be read, the best one first.
//!
//! The superblocks point at the last two checkpoints. Where an epoch is lost with both its copies, or a catalog does not verify, the data file
//! is searched for catalogs: they are pages of a type of their own, and name the keyspaces and their roots. Without any
//! superblock the salt of the checksums follows from the pages themselves. Extents of older checkpoints may have been used anew, which
//! their checksums tell. Called once by salvage.

use betree_pager::{BLOCK, Inspector};
use betree_storage::AlignedBuf;

use super::report::Losses;
use super::trunk::{Trust, unreadable_nodes};
use crate::checkpoint::{Catalog, TYPE_CATALOG, decode_payload};
use crate::node_codec::TYPE_NODE;
use crate::stored::HEADER;
use crate::types::Seqno;

/// Most catalogs found by a search that are kept, the newest ones.
const MAX_FOUND: usize = 16;
/// Pages that are asked for the salt.
const MAX_VOTERS: usize = 4096;
/// Longest of them.
const MAX_VOTER: u32 = 1 << 20;
/// Longest page that is believed when a search meets it.
const MAX_PAGE: usize = 256 << 20;

/// A catalog that was read.
pub(super) struct Root {
    pub catalog: Catalog,
    pub origin: String,
}

/// The order of catalogs in time.
fn age(catalog: &Catalog) -> (Seqno, u64, u32) {
    (catalog.next, catalog.log_start.0, catalog.next_id)
}

/// All catalogs that can be read, the one to start from first, and whether that one is known to be the last.
pub(super) fn find_roots(inspector: &mut Inspector, losses: &mut Losses) -> (Vec<Root>, Trust) {
    let slots = inspector.slots();
    for slot in &slots {
        if let Some(Err(what)) = &slot.content {
            let detail = format!("{what}; the other copies were used");
            losses.file("superblock", slot.offset, BLOCK as u64, detail);
        }
    }
    let bad = |pair: &[betree_pager::SlotState]| pair.iter().all(|slot| matches!(slot.content, Some(Err(_))));
    let mut lost = slots.chunks(2).any(bad);
    let mut catalog_lost = false;
    let mut superblocks: Vec<_> = slots.into_iter().filter_map(|slot| slot.content?.ok()).collect();
    superblocks.sort_by_key(|superblock| std::cmp::Reverse(superblock.epoch));
    superblocks.dedup_by_key(|superblock| superblock.epoch);
    if lost && !superblocks.is_empty() {
        losses
            .report
            .notes
            .push("both superblock copies of an epoch are damaged: it may have been the last".into());
    }
    let mut roots = Vec::new();
    for superblock in &superblocks {
        let origin = format!("checkpoint of epoch {}", superblock.epoch.0);
        if superblock.payload.is_empty() {
            let catalog = Catalog { next: Seqno(1), next_id: 1, ..Catalog::default() };
            roots.push(Root { catalog, origin });
            continue;
        }
        let read = decode_payload(&superblock.payload).map(|(pointer, log_end)| {
            let page = inspector.page(pointer.offset, pointer.len, pointer.crc);
            let catalog = |page: AlignedBuf| Some(Catalog { log_end, ..Catalog::decode(&page)? });
            (pointer, page.map(catalog))
        });
        match read {
            Some((_, Ok(Some(catalog)))) => roots.push(Root { catalog, origin }),
            Some((pointer, page)) => {
                // The older of two epochs is not owed any more once the newer one is durable.
                if roots.is_empty() {
                    let what = page.err().map_or("it does not decode".into(), |error| error.to_string());
                    losses.file("catalog", pointer.offset, pointer.len.into(), format!("{origin}: {what}"));
                    (lost, catalog_lost) = (true, true);
                }
            }
            None => lost |= roots.is_empty(),
        }
    }
    if lost || roots.is_empty() {
        let newest = roots.first().map(|root: &Root| age(&root.catalog));
        let mut found = search(inspector);
        if superblocks.is_empty() && !found.is_empty() {
            losses.report.notes.push("no superblock is left; the data file was searched for catalogs".into());
        }
        found.extend(roots);
        // Stable: among equals those of superblocks come last, and the one whose nodes can be read wins.
        found.sort_by_key(|root| std::cmp::Reverse(age(&root.catalog)));
        if let Some(best) = found.first().map(|root| age(&root.catalog)) {
            let equals = found.iter().take_while(|root| age(&root.catalog) == best).count();
            found[..equals].sort_by_cached_key(|root| unreadable_nodes(inspector, &root.catalog));
            if catalog_lost || newest.is_none_or(|newest| newest == best) {
                losses
                    .report
                    .notes
                    .push("a newer checkpoint may have been lost: all keys are suspect, and keyspaces made or dropped since are not known".into());
                losses.all_suspect();
            }
        }
        roots = found;
    }
    (roots, if lost { Trust::Stale } else { Trust::Live })
}

/// Pages with the header of a node or catalog: place, length, type.
fn search(inspector: &mut Inspector) -> Vec<Root> {
    let mut pages: Vec<(u64, u32, u8)> = Vec::new();
    let mut nodes = 0;
    let _ = inspector.scan(&mut |offset, block| {
        let Some(header) = block.first_chunk::<HEADER>() else { return };
        let zeros = header[5..8].iter().chain(&header[12..16]).all(|&b| b == 0);
        let body = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if !zeros || body == 0 || body > MAX_PAGE {
            return;
        }
        let len = (HEADER + body).next_multiple_of(BLOCK) as u32;
        match header[4] {
            TYPE_CATALOG => pages.push((offset, len, TYPE_CATALOG)),
            TYPE_NODE if nodes < MAX_VOTERS => {
                nodes += 1;
                pages.push((offset, len, TYPE_NODE));
            }
            _ => {}
        }
    });
    if !inspector.has_salt() {
        let short = pages.iter().rev().filter(|page| page.1 <= MAX_VOTER);
        let voters: Vec<_> = short.take(MAX_VOTERS).map(|&(offset, len, _)| (offset, len)).collect();
        inspector.find_salt(&voters);
    }
    let mut roots: Vec<Root> = Vec::new();
    for (offset, len, _) in pages.into_iter().filter(|page| page.2 == TYPE_CATALOG) {
        let Ok(page) = inspector.bytes(offset, len) else { continue };
        if !inspector.fits(&page, offset) {
            continue;
        }
        if let Some(catalog) = Catalog::decode(&page) {
            roots.push(Root { catalog, origin: format!("catalog found at offset {offset}") });
        }
        if roots.len() > 2 * MAX_FOUND {
            roots.sort_by_key(|root| std::cmp::Reverse(age(&root.catalog)));
            roots.truncate(MAX_FOUND);
        }
    }
    roots
}
