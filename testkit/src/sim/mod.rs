//! A simulated disk behind the storage traits: one seed decides every fault, every loss and every order.
//!
//! What it assumes of media: a sync that returned makes what was written before it durable; what is not synced may be
//! lost on power loss, in any part and any order, at 512-byte granularity; created, renamed and removed names are
//! durable after a sync of the directory; after a failed sync nothing is known about the data it covered. Space is
//! counted in 4 KiB blocks of the files that have a name.
//!
//! Identities are drawn from the seed and the clock moves with the operations, so that a run is repeatable as long as one
//! thread uses the disk at a time. Locks: one mutex over the whole state, held for
//! the length of one call.

mod copies;
mod faults;
mod file;
mod image;
mod inode;
mod ring;
mod state;
mod states;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use betree_storage::primitives::point;
use betree_storage::{Caching, DirLock, Error, File, LOCK_FILE, OpenMode, Result, Ring, Storage};
use parking_lot::Mutex;

pub use copies::{Cause, CopyPlan, DiskCopy, Spread};
pub use faults::FaultKind;
pub use states::NAMED_STATES;

use crate::Rng;
use crate::rng::mix;
use file::{Handle, SimFile};
use ring::SimRing;
use state::{State, broken};

/// A simulated directory on a simulated disk.
///
/// After [`SimStorage::crash`] or [`SimStorage::kill`] the old object and everything opened through it fail for good;
/// the disk lives on in the object returned.
#[derive(Debug)]
pub struct SimStorage {
    seed: u64,
    state: Arc<Mutex<State>>,
}

impl SimStorage {
    /// An empty disk without faults.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Self::with_state(seed, State::new(Rng::new(seed)))
    }

    fn with_state(seed: u64, state: State) -> Arc<Self> {
        Arc::new(Self { seed, state: Arc::new(Mutex::new(state)) })
    }

    /// The disk as the engine sees it.
    #[must_use]
    pub fn as_storage(self: &Arc<Self>) -> Arc<dyn Storage> {
        Arc::clone(self) as Arc<dyn Storage>
    }

    /// The seed, to be printed with a failure.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many operations that change something were begun since the disk was made, crashed or killed: writes, stores
    /// into windows, syncs, allocations, holes, changes of length, and creating, renaming and removing files.
    #[must_use]
    pub fn op_count(&self) -> u64 {
        self.state.lock().ops
    }

    /// Cuts the power at the operation with this index (counted as by [`SimStorage::op_count`]): it fails, having had
    /// its effect or not, and so does everything after it.
    pub fn crash_at(&self, op_index: u64) {
        self.state.lock().crash_at = Some(op_index);
    }

    /// Whether the power was cut: by [`SimStorage::crash_at`], or because the disk lives on in another object.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// Power loss and restart: what was synced and a random part of the rest are there, the lock is free, faults and
    /// crash point are forgotten, operations count from zero.
    #[must_use]
    pub fn crash(&self) -> Arc<Self> {
        let mut state = self.take();
        state.crash();
        Self::with_state(self.seed, state)
    }

    /// The process is killed and started again: everything written is there, but no more durable than before.
    #[must_use]
    pub fn kill(&self) -> Arc<Self> {
        let mut state = self.take();
        state.kill();
        Self::with_state(self.seed, state)
    }

    /// What a power loss at this moment could leave, with luck drawn from `seed`; this disk goes on undisturbed.
    #[must_use]
    pub fn crashed_copy(&self, seed: u64) -> Arc<Self> {
        let mut state = self.state.lock().clone();
        state.rng = Rng::new(seed);
        state.crash();
        Self::with_state(seed, state)
    }

    /// From now on keeps copies of the disk as a power loss, or a kill, before an operation would leave it. One run
    /// then answers for a crash at every one of its operations; this disk goes on undisturbed.
    pub fn keep_copies(&self, plan: CopyPlan) {
        let state = &mut *self.state.lock();
        // Other places in every life of the disk.
        state.copies.begin(plan, self.seed ^ state.trace);
    }

    /// The copies kept since the last call.
    #[must_use]
    pub fn take_copies(&self) -> Vec<DiskCopy> {
        let kept = self.state.lock().copies.take();
        kept.into_iter()
            .map(|kept| {
                // Of its own, so that copies of a copy are not all taken at the same places.
                let seed = mix(self.seed ^ mix(kept.index));
                let disk = Self::with_state(seed, kept.state);
                DiskCopy { index: kept.index, cause: kept.cause, state: kept.name, disk }
            })
            .collect()
    }

    /// Cuts the power at the `nth` arrival at a named state from now on; 1 is the next.
    pub fn crash_at_state(&self, name: &'static str, nth: u64) {
        self.state.lock().arrivals.cut_at(name, nth);
    }

    /// How often each named state was reached so far, crashes survived.
    #[must_use]
    pub fn arrivals(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().arrivals.counts().clone()
    }

    /// How often any named state was reached so far: it changes whenever background work changes something.
    #[must_use]
    pub fn arrivals_in_all(&self) -> u64 {
        self.state.lock().arrivals.counts().values().sum()
    }

    fn take(&self) -> State {
        let mut state = self.state.lock();
        let husk = state.husk();
        std::mem::replace(&mut state, husk)
    }

    /// Makes one operation go wrong: the one after the next `after` that could suffer from `kind`, on files whose
    /// names begin with `prefix`.
    pub fn inject(&self, kind: FaultKind, prefix: &str, after: u64) {
        self.state.lock().faults.plan(kind, prefix, after);
    }

    /// Makes each operation that could suffer from `kind` do so with this probability.
    pub fn set_fault_rate(&self, kind: FaultKind, probability: f64) {
        self.state.lock().faults.set_rate(kind, probability);
    }

    /// Ends all planned and random faults.
    pub fn clear_faults(&self) {
        self.state.lock().faults.clear();
    }

    /// How many faults of each kind struck so far, and what power losses did; crashes survived.
    #[must_use]
    pub fn injected(&self) -> BTreeMap<FaultKind, u64> {
        self.state.lock().faults.injected().clone()
    }

    /// Bounds the bytes that files may occupy.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Bytes that files occupy.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used()
    }

    /// A hash over every operation so far: equal for equal runs.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.state.lock().trace
    }

    /// Names and lengths of the files.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, u64> {
        let state = self.state.lock();
        let len = |id| state.inodes.get(id).map_or(0, inode::Inode::len);
        state.entries.iter().map(|(name, id)| (name.clone(), len(id))).collect()
    }

    /// The bytes of a file as a program would read them.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let inode = state.inodes.get(state.entries.get(name)?)?;
        let mut out = vec![0; usize::try_from(inode.len()).ok()?];
        inode.read(0, &mut out);
        Some(out)
    }

    /// Puts a durable file in place of what was there: golden files, and old versions of a file brought back.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.state.lock().put(name, bytes);
    }

    /// Flips one bit (0 to 7) of a stored byte. Whether there was such a byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> bool {
        self.tamper(name, offset..offset.saturating_add(1), |_, mask| mask.fill(1 << (bit % 8)))
    }

    /// Changes every byte of a range of a file at random. Whether the range lies in the file.
    pub fn corrupt(&self, name: &str, range: Range<u64>) -> bool {
        self.tamper(name, range, |rng, mask| mask.fill_with(|| rng.between(1, 255) as u8))
    }

    fn tamper(&self, name: &str, range: Range<u64>, fill: impl FnOnce(&mut Rng, &mut [u8])) -> bool {
        let state = &mut *self.state.lock();
        let inode = state.entries.get(name).and_then(|id| state.inodes.get_mut(id));
        let Some(inode) = inode.filter(|inode| range.start <= range.end && range.end <= inode.len()) else {
            return false;
        };
        let mut mask = vec![0; (range.end - range.start) as usize];
        fill(&mut state.rng, &mut mask);
        inode.tamper(range.start, &mask);
        true
    }
}

impl Storage for SimStorage {
    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> Result<Arc<dyn File>> {
        check_name("open", name)?;
        point();
        let mut state = self.state.lock();
        let inode = match mode {
            OpenMode::Existing => state.look("open", name, |state| {
                let found = state.entries.get(name).copied();
                found.ok_or_else(|| Error::NotFound { file: name.to_owned() })
            })?,
            OpenMode::CreateNew => state.change("open", name, |state| {
                state.trace("create", name, 0, 0, &[]);
                state.create(name)
            })?,
        };
        let handle = Handle::new(&self.state, &mut state, inode, name);
        Ok(Arc::new(SimFile::new(handle, caching)))
    }

    fn list(&self) -> Result<Vec<String>> {
        self.state.lock().look("list", "directory", |state| Ok(state.entries.keys().cloned().collect()))
    }

    fn remove(&self, name: &str) -> Result<()> {
        check_name("remove", name)?;
        point();
        self.state.lock().change("remove", name, |state| {
            state.trace("remove", name, 0, 0, &[]);
            state.remove(name)
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        check_name("rename", from)?;
        check_name("rename", to)?;
        point();
        self.state.lock().change("rename", from, |state| {
            state.trace("rename", from, 0, 0, to.as_bytes());
            state.rename(from, to)
        })
    }

    fn sync_dir(&self) -> Result<()> {
        point();
        self.state.lock().change("sync directory", "directory", |state| {
            state.trace("sync_dir", "", 0, 0, &[]);
            if state.strikes(FaultKind::DirSyncError, "") {
                return Err(broken("sync directory", "directory", None));
            }
            state.sync_dir();
            Ok(())
        })
    }

    fn lock(&self) -> Result<Box<dyn DirLock>> {
        self.state.lock().look("lock", "directory", |state| {
            if std::mem::replace(&mut state.locked, true) {
                return Err(Error::Locked { path: self.path() });
            }
            Ok(())
        })?;
        Ok(Box::new(SimLock { state: Arc::clone(&self.state) }))
    }

    fn ring(&self, depth: usize) -> Result<Box<dyn Ring>> {
        let rng = self.state.lock().rng.fork();
        Ok(Box::new(SimRing::new(rng, depth)))
    }

    fn path(&self) -> String {
        format!("simulated disk {}", self.seed)
    }

    fn backend(&self) -> &'static str {
        "simulated"
    }

    fn entropy(&self) -> u128 {
        let rng = &mut self.state.lock().rng;
        u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.state.lock().clock)
    }

    fn pause(&self, time: Duration) {
        self.state.lock().clock += u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    }

    fn reached(&self, state: &'static str) {
        self.state.lock().reached(state);
    }
}

#[derive(Debug)]
struct SimLock {
    state: Arc<Mutex<State>>,
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.state.lock().locked = false;
    }
}

fn check_name(op: &'static str, name: &str) -> Result<()> {
    let plain =
        !name.is_empty() && !name.contains(['/', '\\', '\0']) && !matches!(name, "." | ".." | LOCK_FILE);
    if plain {
        return Ok(());
    }
    let cause = io::Error::new(io::ErrorKind::InvalidInput, "not a plain file name");
    Err(Error::from_io(op, name, None, cause))
}
