//! Everything the simulated disk knows, under one mutex: files, directory, faults, counters.
//!
//! Invariants: every operation that changes something counts once; from the crash point on every operation fails and
//! none has an effect; the operation at the crash point itself may or may not have had its effect. Called by the
//! storage, its files, windows and rings.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use betree_storage::{Error, Result};

use super::copies::{Cause, Copies, Kept};
use super::faults::{FaultKind, Faults};
use super::inode::{Inode, SECTOR};
use super::states::Arrivals;
use crate::Rng;
use crate::rng::mix;

/// What an operation that changes something takes by the simulated clock.
const CHANGE_NANOS: u64 = 50_000;
/// What one that only looks takes.
const LOOK_NANOS: u64 = 10_000;

/// A change of the directory that is not durable yet.
#[derive(Debug, Clone)]
pub(super) enum DirChange {
    Create { name: String, inode: u64 },
    Remove { name: String },
    Rename { from: String, to: String, inode: u64 },
}

#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) rng: Rng,
    pub(super) ops: u64,
    pub(super) crash_at: Option<u64>,
    pub(super) gone: bool,
    pub(super) locked: bool,
    pub(super) capacity: Option<u64>,
    pub(super) faults: Faults,
    pub(super) copies: Copies,
    pub(super) trace: u64,
    pub(super) arrivals: Arrivals,
    /// The simulated clock, in nanoseconds: operations and pauses move it.
    pub(super) clock: u64,
    pub(super) inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    pub(super) entries: BTreeMap<String, u64>,
    durable_entries: BTreeMap<String, u64>,
    pending_dir: Vec<DirChange>,
}

impl State {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            rng,
            ops: 0,
            crash_at: None,
            gone: false,
            locked: false,
            capacity: None,
            faults: Faults::default(),
            copies: Copies::default(),
            trace: 0,
            arrivals: Arrivals::default(),
            clock: 0,
            inodes: BTreeMap::new(),
            next_inode: 0,
            entries: BTreeMap::new(),
            durable_entries: BTreeMap::new(),
            pending_dir: Vec::new(),
        }
    }

    /// What is left behind when the state moves on to a new storage: its handles fail, its counters can be read.
    pub(super) fn husk(&self) -> Self {
        let mut husk = Self::new(Rng::new(0));
        (husk.ops, husk.trace, husk.gone) = (self.ops, self.trace, true);
        (husk.faults, husk.arrivals) = (self.faults.clone(), self.arrivals.clone());
        husk.clock = self.clock;
        husk
    }

    /// Runs an operation that only looks.
    pub(super) fn look<T>(
        &mut self,
        op: &'static str,
        file: &str,
        look: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.clock += LOOK_NANOS;
        if self.gone { Err(gone(op, file)) } else { look(self) }
    }

    /// Runs an operation that changes something; counts it and stops at the crash point.
    pub(super) fn change<T>(
        &mut self,
        op: &'static str,
        file: &str,
        change: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if self.gone {
            return Err(gone(op, file));
        }
        let index = self.ops;
        self.clock += CHANGE_NANOS;
        for cause in self.copies.due(index) {
            let state = self.copy(index, cause);
            self.copies.keep(Kept { index, cause, name: None, state });
        }
        self.ops += 1;
        if self.crash_at.is_some_and(|at| index >= at) {
            self.gone = true;
            if self.rng.chance(0.5) {
                // Power fails between the effect and the answer.
                drop(change(self));
            }
            return Err(gone(op, file));
        }
        change(self)
    }

    /// The engine has reached a named state.
    pub(super) fn reached(&mut self, name: &'static str) {
        if self.gone {
            return;
        }
        self.trace("reached", name, 0, 0, &[]);
        let (number, cut) = self.arrivals.arrive(name);
        if let Some(cause) = self.copies.due_at(name, number) {
            let index = self.ops;
            let state = self.copy(mix(number) ^ index, cause);
            self.copies.keep(Kept { index, cause, name: Some(name), state });
        }
        self.gone |= cut;
    }

    /// The disk as it would be found if everything ended for `cause` now, with luck drawn for `place`.
    fn copy(&self, place: u64, cause: Cause) -> Self {
        let mut copy = self.clone();
        copy.faults.forget_counts();
        copy.rng = Rng::new(mix(self.copies.seed() ^ mix(place)));
        match cause {
            Cause::PowerLoss => copy.crash(),
            Cause::Kill => copy.kill(),
        }
        copy
    }

    /// Adds an operation to the trace.
    pub(super) fn trace(&mut self, op: &str, file: &str, a: u64, b: u64, data: &[u8]) {
        let mut hash = mix(self.trace ^ a.rotate_left(32) ^ b);
        for bytes in [op.as_bytes(), file.as_bytes(), data] {
            for chunk in bytes.chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            }
            hash = mix(hash ^ bytes.len() as u64);
        }
        self.trace = hash;
    }

    pub(super) fn strikes(&mut self, kind: FaultKind, file: &str) -> bool {
        self.faults.strikes(kind, file, &mut self.rng)
    }

    pub(super) fn inode(&mut self, id: u64) -> &mut Inode {
        // A handle keeps its inode, so it is there as long as anyone can ask.
        self.inodes.entry(id).or_default()
    }

    /// Bytes allocated to files that have a name.
    pub(super) fn used(&self) -> u64 {
        let ids: BTreeSet<u64> = self.entries.values().copied().collect();
        ids.iter().filter_map(|id| self.inodes.get(id)).map(|inode| inode.allocated.total()).sum()
    }

    /// Fails when `more` bytes do not fit the device, or a fault says so.
    pub(super) fn reserve(&mut self, op: &'static str, file: &str, more: u64) -> Result<()> {
        let full = self.capacity.is_some_and(|capacity| more > 0 && self.used() + more > capacity);
        if full || self.strikes(FaultKind::NoSpace, file) {
            return Err(Error::NoSpace { op, file: file.to_owned() });
        }
        Ok(())
    }

    pub(super) fn create(&mut self, name: &str) -> Result<u64> {
        if self.entries.contains_key(name) {
            return Err(Error::Exists { file: name.to_owned() });
        }
        self.reserve("open", name, 0)?;
        let inode = self.add(Inode::default());
        self.entries.insert(name.to_owned(), inode);
        self.pending_dir.push(DirChange::Create { name: name.to_owned(), inode });
        Ok(inode)
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<()> {
        if self.entries.remove(name).is_none() {
            return Err(Error::NotFound { file: name.to_owned() });
        }
        self.pending_dir.push(DirChange::Remove { name: name.to_owned() });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let Some(inode) = self.entries.remove(from) else {
            return Err(Error::NotFound { file: from.to_owned() });
        };
        self.entries.insert(to.to_owned(), inode);
        self.pending_dir.push(DirChange::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    pub(super) fn sync_dir(&mut self) {
        self.pending_dir.clear();
        self.durable_entries.clone_from(&self.entries);
        self.drop_unreachable();
    }

    /// Puts a file with durable content in place, past every rule.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) {
        let inode = self.add(Inode::durable_with(bytes));
        self.entries.insert(name.to_owned(), inode);
        self.durable_entries.insert(name.to_owned(), inode);
    }

    /// Power is lost: keeps what is durable and a random part of what is not.
    pub(super) fn crash(&mut self) {
        let mut rng = self.rng.fork();
        let (entries, lost) = self.surviving_entries(&mut rng);
        self.entries = entries;
        self.faults.count(FaultKind::LostEntry, lost);
        self.durable_entries.clone_from(&self.entries);
        self.pending_dir.clear();
        self.drop_handles();
        for inode in self.inodes.values_mut() {
            let losses = inode.crash(&mut rng);
            self.faults.count(FaultKind::TornWrite, losses.torn);
            self.faults.count(FaultKind::ReorderedWrite, losses.reordered);
        }
        self.restart();
    }

    /// The process dies: everything written stays, durable or not.
    pub(super) fn kill(&mut self) {
        self.drop_handles();
        self.restart();
    }

    /// Drops files that nobody can reach any more.
    pub(super) fn drop_unreachable(&mut self) {
        let mut named: BTreeSet<u64> =
            self.entries.values().chain(self.durable_entries.values()).copied().collect();
        for change in &self.pending_dir {
            if let DirChange::Create { inode, .. } | DirChange::Rename { inode, .. } = change {
                named.insert(*inode);
            }
        }
        self.inodes.retain(|id, inode| inode.handles > 0 || named.contains(id));
    }

    fn add(&mut self, inode: Inode) -> u64 {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, inode);
        id
    }

    fn drop_handles(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
        }
        self.drop_unreachable();
    }

    fn restart(&mut self) {
        (self.ops, self.crash_at, self.gone, self.locked) = (0, None, false, false);
        self.faults.clear();
        self.arrivals.forget_cut();
        self.copies = Copies::default();
    }

    /// The directory after power loss. Changes of one name keep their order: once one is lost, the later ones of the
    /// same names are too. A rename happens for both its names or for none. With the number of
    /// changes lost.
    fn surviving_entries(&self, rng: &mut Rng) -> (BTreeMap<String, u64>, u64) {
        let mut entries = self.durable_entries.clone();
        let count = self.pending_dir.len();
        let (prefix, chance) = match rng.below(4) {
            0 => (0, 0.0),
            1 => (count, 0.0),
            2 => (rng.index(count + 1), 0.0),
            _ => (0, 0.5),
        };
        let mut lost: BTreeSet<&str> = BTreeSet::new();
        let mut changes_lost = 0;
        for (i, change) in self.pending_dir.iter().enumerate() {
            let names = match change {
                DirChange::Create { name, .. } | DirChange::Remove { name } => [name, name],
                DirChange::Rename { from, to, .. } => [from, to],
            };
            let ordered = !names.iter().any(|name| lost.contains(name.as_str()));
            let survives = i < prefix || rng.chance(chance);
            if !(ordered && survives) {
                lost.extend(names.iter().map(|name| name.as_str()));
                changes_lost += 1;
                continue;
            }
            match change {
                DirChange::Create { name, inode } => {
                    entries.insert(name.clone(), *inode);
                }
                DirChange::Remove { name } => {
                    entries.remove(name);
                }
                DirChange::Rename { from, to, inode } => {
                    entries.remove(from);
                    entries.insert(to.clone(), *inode);
                }
            }
        }
        (entries, changes_lost)
    }

    /// A write as the device sees it, faults included. The range has been checked.
    pub(super) fn write(&mut self, id: u64, file: &str, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        let more = self.inode(id).allocated.missing(offset, end);
        self.reserve("write", file, more)?;
        if self.strikes(FaultKind::WriteError, file) {
            let part = self.rng.below(data.len() as u64 / SECTOR + 1) * SECTOR;
            self.inode(id).write(offset, &data[..part as usize]);
            return Err(broken("write", file, Some(offset)));
        }
        if data.len() > 1 && self.strikes(FaultKind::ShortWrite, file) {
            let part = self.rng.between(1, data.len() as u64 - 1) as usize;
            self.inode(id).write(offset, &data[..part]);
            return Err(failure(
                "write",
                file,
                Some(offset),
                io::ErrorKind::WriteZero,
                "injected short write",
            ));
        }
        if self.strikes(FaultKind::LostWrite, file) {
            self.inode(id).extend_to(end);
            return Ok(());
        }
        if self.strikes(FaultKind::MisdirectedWrite, file) {
            self.inode(id).extend_to(end);
            let places = (self.inode(id).len() - data.len() as u64) / SECTOR + 1;
            let place = self.rng.below(places) * SECTOR;
            if place != offset {
                self.inode(id).write(place, data);
            }
            return Ok(());
        }
        if !data.is_empty() && self.strikes(FaultKind::FlippedBit, file) {
            let mut data = data.to_vec();
            let (at, bit) = (self.rng.index(data.len()), self.rng.below(8));
            data[at] ^= 1 << bit;
            self.inode(id).write(offset, &data);
            return Ok(());
        }
        self.inode(id).write(offset, data);
        Ok(())
    }
}

pub(super) fn gone(op: &'static str, file: &str) -> Error {
    failure(op, file, None, io::ErrorKind::Other, "the device is gone")
}

pub(super) fn broken(op: &'static str, file: &str, offset: Option<u64>) -> Error {
    failure(op, file, offset, io::ErrorKind::Other, "injected failure")
}

fn failure(
    op: &'static str,
    file: &str,
    offset: Option<u64>,
    kind: io::ErrorKind,
    text: &'static str,
) -> Error {
    Error::Io { op, file: file.to_owned(), offset, source: Arc::new(io::Error::new(kind, text)) }
}
