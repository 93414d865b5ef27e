//! The page cache under a model checker: the real code, one interleaving after the other. Runs with the feature `shuttle` only.

use std::sync::Arc;

use betree_storage::primitives::{explore, thread};

use super::{Cache, Key, Page, PageKind};

/// Room for nine pages in one shard, so that nearly every insertion evicts.
const BUDGET: usize = 9 * (4096 + super::shard::OVERHEAD);

fn key(id: u64) -> Key {
    Key { extent: id, block: 0 }
}

fn page(id: u64) -> Page {
    let mut bytes = vec![id as u8; 4096];
    bytes[..4].copy_from_slice(&(id as u32).to_le_bytes());
    Page::copy_of(&bytes, if id.is_multiple_of(4) { PageKind::Meta } else { PageKind::Data })
}

/// `cache.charged_once` after every step: readers that miss the same page insert it twice, others evict it between, the budget shrinks.
#[test]
fn one_shard_charges_each_page_once_in_every_interleaving() {
    explore(1000, || {
        let cache = Arc::new(Cache::new(BUDGET));
        assert_eq!(cache.shards.len(), 1);
        let mut threads = Vec::new();
        for reader in 0..3u64 {
            let cache = cache.clone();
            threads.push(thread::spawn(move || {
                for step in 0..8u64 {
                    // Everybody wants pages 0 to 3, each some of its own.
                    let id = if step % 2 == 0 { step / 2 } else { 4 + reader * 8 + step };
                    match cache.get(key(id), 4096, id as u32, PageKind::Data) {
                        Some(page) => assert!(page[4..].iter().all(|&byte| byte == id as u8)),
                        None => cache.insert(key(id), page(id)),
                    }
                    let mut shard = cache.shards[0].lock();
                    shard.check();
                }
            }));
        }
        let shrinking = cache.clone();
        threads.push(thread::spawn(move || {
            for budget in [BUDGET - 5000, BUDGET] {
                shrinking.set_budget(budget);
                shrinking.shards[0].lock().check();
            }
        }));
        for thread in threads {
            thread.join().unwrap();
        }
        let stats = cache.stats();
        assert!(stats.bytes <= BUDGET && stats.pages <= 9, "{stats:?}");
        assert_eq!(stats.hits.iter().sum::<u64>() + stats.misses.iter().sum::<u64>(), 24);
    });
}
