//! Nodes: a data file with a root made up by the fuzzer, checksums set, read as recovery reads it.

use betree_pager::Superblock;
use betree_testkit::SimStorage;

const AREA: usize = 64 << 10;
const BLOCK: usize = 4096;
/// Blocks of the file behind the superblocks: segments may lie in them.
const BLOCKS: usize = 64;
const UUID: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
/// Where a node of level 1 lies that the root may point to, and where the root lies.
const BELOW: usize = AREA + (BLOCKS - 1) * BLOCK;
const ROOT: usize = AREA + BLOCKS * BLOCK;

/// A node's page around a body.
fn page(body: &[u8]) -> Vec<u8> {
    let mut page = vec![0; 16];
    page[4] = 3;
    page[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    page.extend_from_slice(body);
    page.resize(page.len().next_multiple_of(BLOCK), 0);
    page
}

/// A node of level 1 whose child is an empty leaf, with the low key of the fuzzer's choice.
fn below(low: &[u8]) -> Vec<u8> {
    let mut body = vec![1, 0, 0, 1, low.len() as u8];
    body.extend_from_slice(low);
    body.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
    page(&body)
}

fn disk(root: &[u8], low: &[u8]) -> (std::sync::Arc<SimStorage>, u32) {
    let mut data = vec![0; ROOT];
    let mut below = below(low);
    betree_pager::fuzzing::seal_page(UUID, &mut below, BELOW as u64);
    data[BELOW..BELOW + BLOCK].copy_from_slice(&below);
    let mut root = root.to_vec();
    let crc = betree_pager::fuzzing::seal_page(UUID, &mut root, ROOT as u64);
    data.extend_from_slice(&root);
    let superblock = Superblock {
        epoch: betree_pager::Epoch(1),
        payload: vec![1],
        uuid: UUID,
        file_len: data.len() as u64,
    };
    for slot in [2, 3] {
        let bytes = betree_pager::fuzzing::encode_slot(&superblock, slot);
        data[slot * (16 << 10)..][..BLOCK].copy_from_slice(&bytes);
    }
    let disk = SimStorage::new(1);
    disk.put("data.betree", &data);
    (disk, crc)
}

/// The bytes are the root's body. A pointer to the node below with its checksum is in the kept corpus.
pub fn node(bytes: &[u8]) {
    let root = page(&bytes[..bytes.len().min(8 * BLOCK)]);
    let (first, crc) = disk(&root, b"");
    let Ok(encoded) = betree::fuzzing::read_node(first.as_storage(), ROOT as u64, root.len() as u32, crc)
    else {
        return;
    };
    // Numbers may be written in more bytes than they need; from the second encoding on all bytes are the same.
    let (second, crc) = disk(&encoded, b"");
    let again = betree::fuzzing::read_node(second.as_storage(), ROOT as u64, encoded.len() as u32, crc);
    assert_eq!(again.expect("what was encoded decodes"), encoded);
}
