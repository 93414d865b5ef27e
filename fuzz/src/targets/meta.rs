//! Meta blocks: places lie in the data, searches end where a linear scan of the separators would.

use std::cell::OnceCell;
use std::sync::Arc;

use betree_pager::{Extent, Pager};
use betree_testkit::SimStorage;

thread_local! {
    /// Some pager and an extent of it: a meta block is a page of one.
    static PLACE: OnceCell<(Pager, Arc<Extent>)> = const { OnceCell::new() };
}

fn place() -> (Pager, Arc<Extent>) {
    let options = betree_pager::Options { cache_bytes: 1 << 16, create: true, ..Default::default() };
    let (pager, _) = Pager::open(SimStorage::new(1).as_storage(), options).expect("a fresh data file");
    let extent = Arc::new(pager.allocate(1 << 20).expect("there is space"));
    (pager, extent)
}

/// The bytes: data length in blocks, then the block from its counts on.
pub fn meta(bytes: &[u8]) {
    let mut source = super::Source(bytes);
    let data_len = (u32::from(source.u8()) + 1) * 4096;
    let mut block = vec![0; 8];
    block[4] = 2;
    block.extend_from_slice(source.0);
    let separator_like = &block[block.len() / 2..];
    let mut keys: Vec<&[u8]> = vec![b"", b"\xff\xff\xff"];
    keys.extend(
        (0..separator_like.len().min(24))
            .map(|i| &separator_like[i..(i + 1 + i % 5).min(separator_like.len())]),
    );
    let view = PLACE.with(|cell| {
        let (pager, extent) = cell.get_or_init(place);
        betree::fuzzing::meta(pager, extent, data_len, &block, &keys)
    });
    let Some(view) = view else { return };
    assert_eq!(view.places.len(), view.separators.len());
    let mut end = None;
    for &(at, len, _) in view.places.iter().flatten() {
        assert!(
            len > 0 && u64::from(at) + u64::from(len) <= u64::from(data_len),
            "a page outside of the data"
        );
        end = Some(at + len);
    }
    if view.places.last().is_some_and(Option::is_some) {
        assert_eq!(end, Some(data_len), "the last page ends with the data");
    }
    let sorted = view.separators[1..].windows(2).all(|pair| pair[0] < pair[1]);
    for (key, page) in keys.iter().zip(&view.pages) {
        assert!(*page < view.places.len(), "a page that is not there");
        if sorted {
            let scan = view.separators[1..].iter().filter(|separator| separator[..] <= **key).count();
            assert_eq!(*page, scan, "search of {key:?} is no linear scan");
        }
    }
}
