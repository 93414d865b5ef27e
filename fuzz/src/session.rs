//! One database and its oracle: carries out operations on both and compares every answer.
//!
//! Invariant: the oracle has exactly the batches whose commit returned without error, in their order; `durable` is how many
//! of them must survive power loss; `attempted` is the batch whose commit failed, if the last operation was one.

use std::collections::VecDeque;
use std::ops::{Bound, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use betree::{Db, Durability, Keyspace, Snapshot};
use betree_testkit::{Change, Content, Edit, End, Op, Oracle, SimStorage};
use futures::executor::block_on;

use crate::{SPACES, Shape, digest_all, read_all, read_snapshot};

/// So many steps of background work come after a rest, in which nobody writes.
const REST: usize = 6;

/// Where the database lies.
#[derive(Debug, Clone)]
pub enum Place {
    /// On a simulated disk.
    Disk(Arc<SimStorage>),
    /// In a directory.
    Directory(PathBuf),
}

/// Why an operation did not go as it should.
#[derive(Debug)]
pub enum Failure {
    /// The engine gave a wrong answer.
    Wrong(String),
    /// The checker found broken invariants.
    Broken(String),
    /// The engine gave an error.
    Engine(betree::Error),
}

impl From<betree::Error> for Failure {
    fn from(error: betree::Error) -> Self {
        Self::Engine(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wrong(text) | Self::Broken(text) => f.write_str(text),
            Self::Engine(error) => write!(f, "error: {error}"),
        }
    }
}

type Answer = Result<(), Failure>;

fn wrong<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Wrong(text.into()))
}

/// See the module's text.
pub struct Session {
    /// Where it lies.
    pub place: Place,
    /// With what options it is opened.
    pub shape: Shape,
    db: Option<Db>,
    spaces: Vec<Option<Keyspace>>,
    /// What it must contain.
    pub oracle: Oracle,
    snapshots: Vec<(Snapshot, Vec<Option<Keyspace>>, Content)>,
    /// Batches that must survive power loss.
    pub durable: usize,
    /// The batch whose commit failed last.
    pub attempted: Option<Vec<Edit>>,
    /// Whether every invariant is checked after every operation that may change a tree.
    pub check_always: bool,
    recent: VecDeque<Op>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("shape", &self.shape)
            .field("recent", &self.recent)
            .finish_non_exhaustive()
    }
}

impl Session {
    fn closed(place: Place, shape: Shape, oracle: Oracle) -> Self {
        Self {
            place,
            shape,
            db: None,
            spaces: Vec::new(),
            oracle,
            snapshots: Vec::new(),
            durable: 0,
            attempted: None,
            check_always: false,
            recent: VecDeque::new(),
        }
    }

    /// Opens the database at `place`, which must contain `content`.
    ///
    /// # Errors
    /// Those of the engine, and another content.
    pub fn open(place: Place, shape: Shape, content: Option<Content>) -> Result<Self, Failure> {
        let folds = SPACES.iter().map(|s| s.1).collect();
        let oracle = match content {
            Some(content) => Oracle::from_content(folds, content),
            None => Oracle::new(folds),
        };
        let mut session = Self::closed(place, shape, oracle);
        session.reopen()?;
        Ok(session)
    }

    /// Opens the database at `place`, which must contain what an allowed prefix of the oracle's batches left; the later ones are
    /// forgotten. Those that are there are durable from now on: recovery is over.
    ///
    /// # Errors
    /// Those of the engine, and another content.
    pub fn recover(
        place: Place,
        shape: Shape,
        oracle: Oracle,
        allowed: RangeInclusive<usize>,
    ) -> Result<Self, Failure> {
        let mut session = Self::closed(place, shape, oracle);
        session.open_db()?;
        let found = digest_all(session.db())?;
        let Some(prefix) = session.oracle.prefix_with(found, allowed.clone()) else {
            return wrong(session.oracle.explain(&read_all(session.db())?, allowed));
        };
        session.oracle.cut(prefix);
        session.durable = prefix;
        session.open_spaces()?;
        Ok(session)
    }

    /// Creates the keyspaces that are not there, one batch each.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn create_keyspaces(&mut self) -> Answer {
        for keyspace in 0..SPACES.len() {
            if self.oracle.content().keyspaces[keyspace].is_none() {
                self.apply(&Op::Single(Edit { keyspace, change: Change::Create }))?;
            }
        }
        Ok(())
    }

    /// The open database.
    ///
    /// # Panics
    /// When it is not open.
    #[must_use]
    pub fn db(&self) -> &Db {
        self.db.as_ref().expect("the database is open")
    }

    /// What the open database counted, if it is open.
    #[must_use]
    pub fn stats(&self) -> Option<betree::Stats> {
        self.db.as_ref().map(Db::stats)
    }

    /// The last operations, newest last.
    #[must_use]
    pub fn trace(&self) -> String {
        let line = |op: &Op| {
            let mut text = format!("{op:?}");
            if text.len() > 300 {
                let cut = (0..=300).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
                text.truncate(cut);
                text.push('…');
            }
            text
        };
        self.recent.iter().map(line).collect::<Vec<_>>().join("\n    ")
    }

    /// Opens the database again and compares everything.
    fn reopen(&mut self) -> Answer {
        self.open_db()?;
        self.open_spaces()?;
        self.compare()
    }

    fn open_db(&mut self) -> Answer {
        let builder = self.shape.builder();
        self.db = Some(match &self.place {
            Place::Disk(disk) => builder.open_on(disk.as_storage())?,
            Place::Directory(path) => builder.open(path)?,
        });
        if self.shape.caches_rows() {
            betree::fuzzing::cache_rows_anyway(self.db());
        }
        Ok(())
    }

    fn open_spaces(&mut self) -> Answer {
        self.spaces.clear();
        for (i, records) in self.oracle.content().keyspaces.iter().enumerate() {
            self.spaces.push(match records {
                Some(_) => Some(self.db().keyspace_with(SPACES[i].0, Shape::keyspace_options(i))?),
                None => None,
            });
        }
        Ok(())
    }

    /// Ends this life of the database without its leave.
    pub fn abandon(&mut self) {
        self.snapshots.clear();
        self.spaces.clear();
        self.db = None;
    }

    /// Ends this life of the database in order.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn close(&mut self) -> Answer {
        self.snapshots.clear();
        self.spaces.clear();
        if let Some(db) = self.db.take() {
            db.close()?;
            self.durable = self.oracle.len();
        }
        Ok(())
    }

    /// Compares everything with the oracle.
    ///
    /// # Errors
    /// A difference.
    pub fn compare(&self) -> Answer {
        let found = read_all(self.db())?;
        if found != *self.oracle.content() {
            return wrong(format!("content: {}", found.differences(self.oracle.content())));
        }
        Ok(())
    }

    /// Checks every invariant.
    ///
    /// # Errors
    /// A broken one.
    pub fn check(&self) -> Answer {
        let report = self.db().check()?;
        if report.is_clean() {
            return Ok(());
        }
        Err(Failure::Broken(format!("check: {}", report.problems.join("; "))))
    }

    /// Carries out `op` and compares what comes of it.
    ///
    /// # Errors
    /// A wrong answer, or an error of the engine.
    pub fn apply(&mut self, op: &Op) -> Answer {
        if self.recent.len() == 16 {
            self.recent.pop_front();
        }
        self.recent.push_back(op.clone());
        self.attempted = None;
        match op {
            Op::Single(edit) => {
                self.commit(
                    std::slice::from_ref(edit),
                    self.shape.options.durability == Durability::Sync,
                    true,
                )?;
            }
            Op::Batch(batch, sync) => self.commit(batch, *sync, false)?,
            Op::Get(keyspace, key) => self.get(*keyspace, key)?,
            Op::MultiGet(keyspace, keys) => self.multi_get(*keyspace, keys)?,
            Op::Range { keyspace, low, high, backward, limit } => {
                self.range(*keyspace, low, high.as_deref(), *backward, *limit)?;
            }
            Op::Snapshot => {
                if self.snapshots.len() < 4 {
                    let kept = (self.db().snapshot(), self.spaces.clone(), self.oracle.content().clone());
                    self.snapshots.push(kept);
                }
            }
            Op::ReadSnapshot(i) => self.read_snapshot(*i)?,
            Op::DropSnapshot(i) => {
                if !self.snapshots.is_empty() {
                    self.snapshots.swap_remove(i % self.snapshots.len());
                }
            }
            Op::Persist => {
                self.db().persist()?;
                self.durable = self.oracle.len();
            }
            Op::Checkpoint => {
                self.db().checkpoint()?;
                self.durable = self.oracle.len();
            }
            Op::Compact => {
                self.db().compact()?;
                self.durable = self.oracle.len();
            }
            Op::CompactRange(keyspace, low, high) => {
                self.space(*keyspace)?.compact_range::<&Vec<u8>>(low..high)?
            }
            Op::Background(steps) => {
                if let (REST, Place::Disk(disk)) = (*steps, &self.place) {
                    disk.as_storage().pause(Duration::from_secs(5));
                }
                for _ in 0..*steps {
                    if !self.db().run_background()? {
                        break;
                    }
                    if self.check_always {
                        self.check()?;
                    }
                }
            }
            Op::Check => self.check()?,
            Op::Reopen(end) => {
                self.snapshots.clear();
                self.spaces.clear();
                if let (End::Close, Some(db)) = (end, self.db.take()) {
                    db.close()?;
                    self.durable = self.oracle.len();
                }
                self.db = None;
                self.reopen()?;
            }
        }
        if self.check_always && !matches!(op, Op::Get(..) | Op::MultiGet(..) | Op::Range { .. }) {
            self.check()?;
        }
        Ok(())
    }

    fn commit(&mut self, batch: &[Edit], sync: bool, single: bool) -> Answer {
        self.attempted = Some(batch.to_vec());
        let mut durable = sync;
        if single {
            let [edit] = batch else { return wrong("a single message is one") };
            durable |= matches!(edit.change, Change::Create | Change::Drop);
            self.write_one(edit)?;
        } else {
            let mut encoded = self.db().batch();
            for edit in batch {
                let Some(space) = &self.spaces[edit.keyspace] else { return wrong("no such keyspace") };
                match &edit.change {
                    Change::Put(key, value) => encoded.insert(space, key, value)?,
                    Change::Delete(key) => encoded.remove(space, key)?,
                    Change::Merge(key, operand) => encoded.merge(space, key, operand)?,
                    Change::RangeDelete(start, end) => encoded.remove_range(space, start, end)?,
                    Change::Create | Change::Drop => return wrong("a keyspace in a batch"),
                }
            }
            // An empty batch is not logged, so it makes nothing durable.
            durable &= !encoded.is_empty();
            let durability = if sync { Durability::Sync } else { Durability::Buffered };
            self.db().write_with(&mut encoded, durability)?;
        }
        self.attempted = None;
        self.oracle.commit(batch);
        if durable && !is_nothing(batch) {
            self.durable = self.oracle.len();
        }
        Ok(())
    }

    fn write_one(&mut self, edit: &Edit) -> Answer {
        let i = edit.keyspace;
        if edit.change == Change::Create {
            let space = self.db().keyspace_with(SPACES[i].0, Shape::keyspace_options(i))?;
            self.spaces[i] = Some(space);
            return Ok(());
        }
        if edit.change == Change::Drop {
            self.spaces[i] = None;
            if !self.db().drop_keyspace(SPACES[i].0)? {
                return wrong("the keyspace to drop was not there");
            }
            return Ok(());
        }
        let Some(space) = &self.spaces[i] else { return wrong("no such keyspace") };
        match &edit.change {
            Change::Put(key, value) => space.insert(key, value)?,
            Change::Delete(key) => space.remove(key)?,
            Change::Merge(key, operand) => space.merge(key, operand)?,
            Change::RangeDelete(start, end) => space.remove_range(start, end)?,
            Change::Create | Change::Drop => {}
        }
        Ok(())
    }

    fn space(&self, keyspace: usize) -> Result<&Keyspace, Failure> {
        match &self.spaces[keyspace] {
            Some(space) => Ok(space),
            None => wrong("no such keyspace"),
        }
    }

    fn get(&self, keyspace: usize, key: &[u8]) -> Answer {
        let space = self.space(keyspace)?;
        let expected = self.oracle.records(keyspace).get(key).map(|v| &v[..]);
        let at_once = space.try_get(key)?;
        for (how, found) in [("get", space.get(key)?), ("asynchronous get", block_on(space.get_async(key))?)]
        {
            let agrees = !matches!(&at_once, Poll::Ready(value) if *value != found);
            if found.as_deref() != expected || !agrees {
                return wrong(format!(
                    "{how} of {key:?} in keyspace {keyspace}: {found:?}, at once {at_once:?}, expected {expected:?}"
                ));
            }
        }
        Ok(())
    }

    fn multi_get(&self, keyspace: usize, keys: &[Vec<u8>]) -> Answer {
        let found = self.space(keyspace)?.multi_get(keys)?;
        for (key, found) in keys.iter().zip(found) {
            let expected = self.oracle.records(keyspace).get(key);
            if found.as_deref() != expected.map(|v| &v[..]) {
                return wrong(format!(
                    "multi_get of {key:?} in {keyspace}: {found:?}, expected {expected:?}"
                ));
            }
        }
        Ok(())
    }

    fn range(&self, keyspace: usize, low: &[u8], high: Option<&[u8]>, backward: u64, limit: usize) -> Answer {
        // Two bits say which bounds are meant otherwise.
        let (skip_low, take_high) = (backward >> 40 & 3 == 1, backward >> 42 & 3 == 1);
        let from = if skip_low { Bound::Excluded(low) } else { Bound::Included(low) };
        let to = match high {
            None => Bound::Unbounded,
            Some(high) if take_high => Bound::Included(high),
            Some(high) => Bound::Excluded(high),
        };
        let inside = |key: &[u8]| {
            (if skip_low { key > low } else { key >= low })
                && high.is_none_or(|h| if take_high { key <= h } else { key < h })
        };
        let records = self.oracle.records(keyspace);
        let mut expected: VecDeque<_> = records.iter().filter(|(k, _)| inside(k)).collect();
        let mut iter = self.space(keyspace)?.range::<&[u8]>((from, to));
        for step in 0..limit {
            let back = backward >> (step % 64) & 1 == 1;
            let found = if back { iter.next_back() } else { iter.next() }.transpose()?;
            let wanted = if back { expected.pop_back() } else { expected.pop_front() };
            let same = match (&found, wanted) {
                (None, None) => return Ok(()),
                (Some((k, v)), Some((a, b))) => *k == a[..] && *v == b[..],
                _ => false,
            };
            if !same {
                return wrong(format!(
                    "range {low:?}..{high:?} of keyspace {keyspace}, step {step} (back: {back}): {found:?}, expected {wanted:?}"
                ));
            }
        }
        Ok(())
    }

    fn read_snapshot(&self, i: usize) -> Answer {
        if self.snapshots.is_empty() {
            return Ok(());
        }
        let (snapshot, spaces, expected) = &self.snapshots[i % self.snapshots.len()];
        let found = read_snapshot(snapshot, spaces)?;
        if found != *expected {
            return wrong(format!("snapshot: {}", found.differences(expected)));
        }
        for (space, records) in spaces.iter().zip(&expected.keyspaces) {
            let (Some(space), Some(records)) = (space, records) else { continue };
            for (key, value) in records.iter().step_by(7) {
                if snapshot.get(space, key)?.as_deref() != Some(&value[..]) {
                    return wrong(format!("snapshot: get of {key:?} in {}", space.name()));
                }
            }
        }
        Ok(())
    }

    /// Closes and opens: what is in use afterwards, by reachability, is what was in use before, by counting.
    ///
    /// # Errors
    /// A leaked or lost extent, and what reopening finds.
    pub fn close_and_compare_space(&mut self) -> Answer {
        self.snapshots.clear();
        self.db().checkpoint()?;
        self.db().checkpoint()?;
        let before = self.db().stats().data_live_bytes;
        self.abandon();
        self.reopen()?;
        let after = self.db().stats().data_live_bytes;
        if before != after {
            return wrong(format!(
                "extent leaked: {before} bytes live before the end, {after} reachable after"
            ));
        }
        Ok(())
    }
}

/// Whether the batch has nothing but range deletes of nothing: those are not written.
fn is_nothing(batch: &[Edit]) -> bool {
    batch.iter().all(|e| matches!(&e.change, Change::RangeDelete(start, end) if start >= end))
}
