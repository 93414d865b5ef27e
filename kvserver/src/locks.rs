//! Key locks: what makes read-modify-write commands atomic across connections.
//!
//! Every command that writes a key holds the key's stripe from before its first read until its write is in the
//! engine; a blind SET too, or an INCR beside it could overwrite it with a sum of the past. A stripe carries the version
//! that WATCH compares.
//!
//! Deadlock freedom: the stripes of a whole group of commands are known before the first of them runs, and are taken
//! at once, in ascending order, without duplicates. Nothing else is locked or awaited while waiting for a stripe, and
//! guards do not live across an await (they are not `Send`).

use std::hash::{BuildHasher, RandomState};

use parking_lot::{Mutex, MutexGuard};

/// Power of two. Two groups of 16 keys each meet by chance once in about 60.
const STRIPES: usize = 1 << 14;

/// All stripes.
#[derive(Debug)]
pub struct Locks {
    stripes: Box<[Mutex<u64>]>,
    hasher: RandomState,
}

/// Stripes held by a group of commands.
#[derive(Debug)]
pub struct Held<'a>(Vec<MutexGuard<'a, u64>>);

impl Held<'_> {
    /// Every key of the group was written: their watchers are told.
    pub fn bump(&mut self) {
        self.0.iter_mut().for_each(|version| **version += 1);
    }

    /// Some keys were written; `held` is the list that the stripes were taken with.
    pub fn bump_some(&mut self, held: &[u32], written: &[u32]) {
        for stripe in written {
            if let Ok(i) = held.binary_search(stripe) {
                *self.0[i] += 1;
            }
        }
    }
}

impl Default for Locks {
    fn default() -> Self {
        Locks { stripes: (0..STRIPES).map(|_| Mutex::new(0)).collect(), hasher: RandomState::new() }
    }
}

impl Locks {
    /// A hash that clients cannot foresee.
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The stripe of a key, in whichever database.
    pub fn stripe(&self, key: &[u8]) -> u32 {
        Self::stripe_of(self.hash(key))
    }

    /// The stripe of a key with this hash.
    pub fn stripe_of(hash: u64) -> u32 {
        (hash as usize & (STRIPES - 1)) as u32
    }

    /// Takes stripes; sorts the list and removes duplicates.
    pub fn hold(&self, stripes: &mut Vec<u32>) -> Held<'_> {
        stripes.sort_unstable();
        stripes.dedup();
        Held(stripes.iter().map(|&s| self.stripes[s as usize].lock()).collect())
    }

    /// The list of every stripe, to be held by [`Locks::hold`].
    pub fn all_stripes(&self) -> Vec<u32> {
        (0..STRIPES as u32).collect()
    }

    /// Takes every stripe: for commands that write keys they do not name.
    pub fn hold_all(&self) -> Held<'_> {
        Held(self.stripes.iter().map(Mutex::lock).collect())
    }

    /// The version of a stripe; waits for a group that is writing.
    pub fn version(&self, stripe: u32) -> u64 {
        *self.stripes[stripe as usize].lock()
    }

    /// The version of a stripe that `held` contains (`stripes` being the list it was taken with).
    pub fn version_held(&self, held: &Held<'_>, stripes: &[u32], stripe: u32) -> Option<u64> {
        stripes.binary_search(&stripe).ok().and_then(|i| held.0.get(i)).map(|guard| **guard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_in_opposite_order_do_not_deadlock() {
        let locks = Locks::default();
        std::thread::scope(|scope| {
            for reverse in [false, true] {
                let locks = &locks;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let mut stripes = if reverse { vec![9, 1, 5, 5] } else { vec![5, 9, 1, 1] };
                        locks.hold(&mut stripes).bump();
                    }
                });
            }
        });
        assert_eq!(locks.version(5), 40_000);
    }
}
