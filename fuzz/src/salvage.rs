//! Salvage: a database of random operations is damaged, and what is salvaged from it is compared with the oracle.
//!
//! What must come of it: outside the suspect ranges of the report exactly the oracle's content; inside, for each key a value
//! that it once had, or none. A database that the offline check calls clean is salvaged completely, and the check
//! changes no file. Never a panic.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use betree::{Builder, SalvageReport};
use betree_testkit::{Change, Content, Edit, Op, Oracle, Records, Rng, SimStorage, Workload};

use crate::{Place, SPACES, Session, Shape, guarded, read_all};

/// The data file.
pub const DATA: &str = "data.betree";
/// Distance of superblock slots.
const SLOT: u64 = 16 << 10;
const BLOCK: u64 = 4096;

/// What is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wound {
    /// Bytes of a file change.
    Bytes(String, u64, u64),
    /// A file ends early.
    Cut(String, u64),
    /// A file is gone.
    Gone(String),
}

impl Wound {
    fn file(&self) -> &str {
        match self {
            Self::Bytes(name, ..) | Self::Cut(name, _) | Self::Gone(name) => name,
        }
    }
}

/// A database at rest, with everything its keys ever had.
#[derive(Debug)]
pub struct Patient {
    files: BTreeMap<String, Vec<u8>>,
    shape: Shape,
    oracle: Oracle,
    history: HashMap<(usize, Vec<u8>), HashSet<Vec<u8>>>,
    seed: u64,
}

/// What came of the wounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Healed {
    /// Salvages.
    pub salvages: u64,
    /// How many lost nothing.
    pub complete: u64,
    /// How many found nothing to start from, and said so.
    pub hopeless: u64,
    /// Records of the oracle that were lost or stale.
    pub lost: u64,
    /// Records of the oracle that were there.
    pub saved: u64,
}

fn edits(op: &Op) -> &[Edit] {
    match op {
        Op::Single(edit) => std::slice::from_ref(edit),
        Op::Batch(edits, _) => edits,
        _ => &[],
    }
}

impl Patient {
    /// The database of a seed; `closed`: with a clean end, else with a log to replay.
    ///
    /// # Errors
    /// Whatever goes wrong in making it.
    pub fn new(seed: u64, ops: usize, closed: bool) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let mut shape = Shape::tiny(&mut rng);
        // A log in one file would go with it.
        shape.options.log_file_bytes = 4096 * rng.between(1, 4);
        let disk = SimStorage::new(rng.next_u64());
        let mut workload = Workload::new(rng.next_u64()).reads(0.1).without_reopening();
        let mut session =
            Session::open(Place::Disk(disk.clone()), shape.clone(), None).map_err(|e| e.to_string())?;
        let folds = SPACES.iter().map(|space| space.1).collect();
        let mut shadow = Oracle::new(folds);
        let mut history: HashMap<_, HashSet<_>> = HashMap::new();
        let mut ops: Vec<Op> = {
            let create = |keyspace| Op::Single(Edit { keyspace, change: Change::Create });
            let mut list: Vec<Op> = (0..SPACES.len()).map(create).collect();
            list.resize(ops + SPACES.len(), Op::Persist);
            list
        };
        for (i, op) in ops.iter_mut().enumerate() {
            if i >= SPACES.len() {
                *op = workload.next(&session.oracle);
            }
            session.apply(op).map_err(|e| e.to_string())?;
            for edit in edits(op) {
                shadow.commit(std::slice::from_ref(edit));
                if let Change::Put(key, _) | Change::Merge(key, _) = &edit.change
                    && let Some(value) = shadow.records(edit.keyspace).get(key)
                {
                    history.entry((edit.keyspace, key.clone())).or_default().insert(value.clone());
                }
            }
        }
        session.apply(&Op::Persist).map_err(|e| e.to_string())?;
        if closed {
            let end = Op::Reopen(betree_testkit::End::Close);
            session.apply(&end).map_err(|e| e.to_string())?;
        }
        session.abandon();
        let disk = disk.kill();
        let read = |name: String| disk.contents(&name).map(|bytes| (name, bytes));
        let files = disk.files().into_keys().filter_map(read).collect();
        Ok(Self { files, shape, oracle: session.oracle, history, seed })
    }

    /// The options of the database.
    #[must_use]
    pub fn builder(&self) -> Builder {
        self.shape.builder()
    }

    /// Names and bytes of its files.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    /// The places of blocks of the data file with this page type, live or not.
    #[must_use]
    pub fn blocks(&self, page_type: u8) -> Vec<u64> {
        let Some(data) = self.files.get(DATA) else { return Vec::new() };
        let blocks = data.chunks(BLOCK as usize).enumerate().skip(16);
        let of_type = blocks.filter(|(_, block)| block.get(4) == Some(&page_type));
        of_type.map(|(i, _)| i as u64 * BLOCK).collect()
    }

    /// A wound that destroys the superblock slots named.
    #[must_use]
    pub fn slots(slots: &[u64]) -> Vec<Wound> {
        slots.iter().map(|slot| Wound::Bytes(DATA.into(), slot * SLOT, BLOCK)).collect()
    }

    /// Some wounds anywhere.
    pub fn random_wounds(&self, rng: &mut Rng) -> Vec<Wound> {
        let names: Vec<_> = self.files.keys().cloned().collect();
        let mut wounds = Vec::new();
        for _ in 0..rng.between(1, 6) {
            let name = if rng.chance(0.8) { DATA.to_string() } else { names[rng.index(names.len())].clone() };
            let len = self.files[&name].len() as u64;
            if len == 0 {
                continue;
            }
            wounds.push(match rng.below(20) {
                0 => Wound::Cut(name, rng.below(len)),
                1 if name != DATA => Wound::Gone(name),
                _ => {
                    let blocks = if name == DATA { self.blocks(rng.between(1, 4) as u8) } else { Vec::new() };
                    let at = rng.pick(&blocks).copied().unwrap_or_else(|| rng.below(len));
                    let longest = if rng.chance(0.2) { 64 << 10 } else { 64 };
                    Wound::Bytes(name, at, rng.between(1, longest).min(len - at))
                }
            });
        }
        wounds
    }

    fn wounded(&self, wounds: &[Wound]) -> Arc<SimStorage> {
        let disk = SimStorage::new(self.seed);
        let mut files = self.files.clone();
        for wound in wounds {
            match wound {
                Wound::Cut(name, len) => {
                    files.entry(name.clone()).and_modify(|bytes| bytes.truncate(*len as usize));
                }
                Wound::Gone(name) => {
                    files.remove(name);
                }
                Wound::Bytes(..) => {}
            }
        }
        files.iter().for_each(|(name, bytes)| disk.put(name, bytes));
        for wound in wounds {
            if let Wound::Bytes(name, at, len) = wound {
                disk.corrupt(name, *at..at + len);
            }
        }
        disk
    }

    /// Damages the database, checks and salvages it, and compares.
    ///
    /// # Errors
    /// A wrong record, a panic, a clean check of what is damaged, a changed file.
    pub fn treat(&self, wounds: &[Wound], healed: &mut Healed) -> Result<Option<SalvageReport>, String> {
        guarded(|| self.treated(wounds, healed))
            .map_err(|e| format!("seed {}: wounds {wounds:?}: {e}", self.seed))
    }

    fn treated(&self, wounds: &[Wound], healed: &mut Healed) -> Result<Option<SalvageReport>, String> {
        let disk = self.wounded(wounds);
        let before: Vec<_> = disk.files().into_keys().map(|name| (disk.contents(&name), name)).collect();
        let unchanged = |what: &str| {
            let now: Vec<_> = disk.files().into_keys().map(|name| (disk.contents(&name), name)).collect();
            if now == before { Ok(()) } else { Err(format!("{what} changed a file")) }
        };
        let storage = disk.as_storage();
        let checked = self.builder().check_on(&*storage, &mut |_| ());
        unchanged("check")?;
        let new = SimStorage::new(self.seed);
        let result = self.builder().salvage_on(&*storage, new.as_storage(), &mut |_| ());
        unchanged("salvage")?;
        healed.salvages += 1;
        let report = match result {
            Ok(report) => report,
            Err(betree::Error::Corrupt { .. }) => {
                healed.hopeless += 1;
                return match checked {
                    Ok(report) if report.is_clean() => Err("no salvage of what is clean".into()),
                    _ => Ok(None),
                };
            }
            Err(error) => return Err(format!("salvage fails: {error}")),
        };
        let clean = checked.map_err(|e| format!("check fails: {e}"))?;
        if clean.is_clean() && !report.is_complete() {
            return Err(format!("check is clean, salvage is not complete: {report:?}"));
        }
        let found = self.read(&new)?;
        let end = self.oracle.len();
        let compared = self.compare(&found, self.oracle.content(), &report, healed);
        // What the log ends with may be gone without a trace, as after a crash: each keyspace then has a prefix of its changes.
        let log_hurt = wounds.iter().any(|wound| wound.file() != DATA);
        let log_named = report.damage.iter().any(|damage| damage.structure == "log");
        let compared = match compared {
            Err(text) if !log_hurt || log_named => Err(text),
            Err(text) => {
                let earlier: Vec<_> = (0..end).rev().map(|count| self.oracle.after(count)).collect();
                let prefix = |space: &usize| {
                    let same = |content: &Content| {
                        self.compare_one(*space, &found, content, &report, &mut Healed::default())
                    };
                    same(self.oracle.content()).is_ok() || earlier.iter().any(|content| same(content).is_ok())
                };
                if (0..SPACES.len()).all(|space| prefix(&space)) { Ok(()) } else { Err(text) }
            }
            Ok(()) => Ok(()),
        };
        compared.map_err(|e| format!("{e}\n  check: {:?}\n  report: {report:?}", clean.problems))?;
        healed.complete += u64::from(report.is_complete());
        Ok(Some(report))
    }

    fn read(&self, new: &Arc<SimStorage>) -> Result<Content, String> {
        let db = self.builder().open_on(new.as_storage()).map_err(|e| e.to_string())?;
        let check = db.check().map_err(|e| e.to_string())?;
        if !check.is_clean() {
            return Err(format!("the new database is broken: {:?}", check.problems));
        }
        read_all(&db).map_err(|e| e.to_string())
    }

    fn compare(
        &self,
        found: &Content,
        expected: &Content,
        report: &SalvageReport,
        healed: &mut Healed,
    ) -> Result<(), String> {
        (0..SPACES.len()).try_for_each(|space| self.compare_one(space, found, expected, report, healed))
    }

    fn compare_one(
        &self,
        index: usize,
        found: &Content,
        expected: &Content,
        report: &SalvageReport,
        healed: &mut Healed,
    ) -> Result<(), String> {
        let empty = Records::new();
        let name = SPACES[index].0;
        let (got, want) = (&found.keyspaces[index], &expected.keyspaces[index]);
        let line = report.keyspaces.iter().find(|k| k.name == name);
        // An older checkpoint may not have it yet, or still have it; then everything is suspect.
        if got.is_some() != want.is_some() && (report.is_complete() || report.damages == 0) {
            return Err(format!("keyspace {name}: {} instead of {}", got.is_some(), want.is_some()));
        }
        let Some(line) = line else { return Ok(()) };
        let (got, want) = (got.as_ref().unwrap_or(&empty), want.as_ref().unwrap_or(&empty));
        if line.records != got.len() as u64 {
            return Err(format!("keyspace {name}: {} records reported, {} there", line.records, got.len()));
        }
        for key in got.keys().chain(want.keys()) {
            let (is, was) = (got.get(key), want.get(key));
            if is == was {
                healed.saved += 1;
                continue;
            }
            healed.lost += 1;
            if !line.suspect.iter().any(|range| range.contains(key)) {
                return Err(format!("keyspace {name}: key {key:?} is not suspect: {is:?}, was {was:?}"));
            }
            let once = self.history.get(&(index, key.clone()));
            if let Some(value) = is
                && !once.is_some_and(|values| values.contains(value))
            {
                return Err(format!("keyspace {name}: key {key:?} never had {value:?}"));
            }
        }
        Ok(())
    }
}
