//! Corruption: a small database's files are damaged, one place at a time, and opened.
//!
//! What must come of each: the right content; or an error that names the place; or, where the log was hit, exactly what a second
//! reader of `docs/format.md` (`log`) says: so many records, or a refusal. Never a panic, a hang, a large allocation, a wrong answer.
//!
//! `victim` makes the databases, `damage` lists what is done to them, `layout` says which structure a byte belongs to,
//! `log` is the second reader; here is the judge.

mod damage;
mod layout;
pub(crate) mod log;
mod victim;

use std::collections::BTreeMap;

use betree_testkit::{Rng, SimStorage};

use crate::allocation::measured;
use crate::{Shape, guarded, read_all};

pub use damage::{Class, Damage};
pub use victim::{Kind, Victim};

/// Names and bytes of a database's files.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The longest single request to the allocator that opening and reading a damaged database of under 1 MiB may make.
const LARGEST_REQUEST: usize = 4 << 20;
/// The most memory that it may hold at once.
const MOST_HELD: usize = 32 << 20;
/// The first and then one in so many databases that were right all the same is written to, ended and opened again.
const GOES_ON: u64 = 64;
/// So many flips at the log's end, one byte in eight, are asked whether they cut it short.
const NEAR_THE_END: usize = 256;

/// How often what came of one kind of damage to one kind of structure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Damaged databases opened.
    pub cases: u64,
    /// An error named the place.
    pub found: u64,
    /// The content was right all the same.
    pub harmless: u64,
    /// The log ended early, at the place that the format says.
    pub cut: u64,
}

/// What came of the damage.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// By what was done and which structure it hit.
    pub by_class: BTreeMap<(Class, &'static str), Counts>,
    /// The longest request to the allocator.
    pub largest_request: usize,
    /// The most memory held at once.
    pub most_held: usize,
    /// Damaged databases that were written to and opened again.
    pub went_on: u64,
}

impl Summary {
    /// Adds what another run came to.
    pub fn add(&mut self, other: &Self) {
        for (key, counts) in &other.by_class {
            let sum = self.by_class.entry(*key).or_default();
            sum.cases += counts.cases;
            sum.found += counts.found;
            sum.harmless += counts.harmless;
            sum.cut += counts.cut;
        }
        self.largest_request = self.largest_request.max(other.largest_request);
        self.most_held = self.most_held.max(other.most_held);
        self.went_on += other.went_on;
    }

    /// The sum over the structures of a class.
    #[must_use]
    pub fn of(&self, class: Class) -> Counts {
        let mut sum = Counts::default();
        for (_, counts) in self.by_class.iter().filter(|(key, _)| key.0 == class) {
            sum.cases += counts.cases;
            sum.found += counts.found;
            sum.harmless += counts.harmless;
            sum.cut += counts.cut;
        }
        sum
    }
}

/// What an opened database came to.
enum Outcome {
    Found,
    Harmless,
    Cut,
}

impl Victim {
    /// Opens the database with `damage` done to it and judges what comes of it.
    ///
    /// # Errors
    /// A wrong answer, a panic, too much memory, or an error that does not name the place.
    pub fn suffer(&self, damage: &Damage, summary: &mut Summary) -> Result<(), String> {
        let what = || format!("seed {} {:?}: {damage}", self.seed, self.kind);
        let number = summary.by_class.values().map(|counts| counts.harmless + counts.cut).sum::<u64>();
        let (judged, measure) = measured(|| guarded(|| self.judge(damage, number, summary)));
        let outcome = judged.map_err(|e| format!("{}: {e}", what()))?;
        summary.largest_request = summary.largest_request.max(measure.largest);
        summary.most_held = summary.most_held.max(measure.peak);
        if measure.largest > LARGEST_REQUEST || measure.peak > MOST_HELD {
            return Err(format!("{}: too much memory: {measure:?}", what()));
        }
        let counts = summary.by_class.entry((damage.class, damage.structure)).or_default();
        counts.cases += 1;
        match outcome {
            Outcome::Found => counts.found += 1,
            Outcome::Harmless => counts.harmless += 1,
            Outcome::Cut => counts.cut += 1,
        }
        Ok(())
    }

    /// Whether the log is sound with `damage`, but shorter.
    fn is_cut_by(&self, damage: &Damage) -> bool {
        let verdict = damage.done_to(&self.files).map(|files| log::replay(&files, self.start).0);
        matches!(verdict, Ok(log::Verdict::Records(n)) if n < self.replayed())
    }

    fn judge(&self, damage: &Damage, number: u64, summary: &mut Summary) -> Result<Outcome, String> {
        let disk = damage.done_on(&self.disk, &self.files)?;
        // What the log must come to, where only the log was damaged.
        let verdict = match damage.log_only() {
            true => Some(log::replay(&damage.done_to(&self.files)?, self.start).0),
            false => None,
        };
        let refused = |error: &betree::Error| -> Result<Outcome, String> {
            located(error)?;
            match verdict {
                Some(log::Verdict::Records(n)) => {
                    Err(format!("{n} records of the log are sound, but: {error}"))
                }
                _ => damage.fits(error).map(|()| Outcome::Found),
            }
        };
        let db = match self.shape().builder().open_on(disk.as_storage()) {
            Ok(db) => db,
            Err(error) => return refused(&error),
        };
        if damage.class.is_always_refused() {
            return Err("it was opened".into());
        }
        if let Some(log::Verdict::Refused(why)) = verdict {
            return Err(format!("it was opened, though of the log {why}"));
        }
        let found = match read_all(&db) {
            Ok(found) => found,
            Err(error) => {
                let report = db.check().map_err(|e| format!("the checker fails: {e}"))?;
                if report.is_clean() {
                    return Err(format!("check is clean, reading is not: {error}"));
                }
                return refused(&error);
            }
        };
        let allowed = match verdict {
            Some(log::Verdict::Records(records)) => self.batches_with(records),
            _ if damage.hits_both_copies(layout::newest_copies(&self.files)) => {
                self.batches_of_the_epoch_before()
            }
            _ => self.oracle().len()..=self.oracle().len(),
        };
        if self.oracle().prefix_with(found.digest(), allowed.clone()).is_none() {
            return Err(format!("a wrong answer: {}", self.oracle().explain(&found, allowed)));
        }
        let clean = db.check().map_err(|e| format!("the checker fails: {e}"))?.is_clean();
        if clean {
            self.points(&db, &found)?;
        }
        if clean && number.is_multiple_of(GOES_ON) {
            summary.went_on += 1;
            go_on(db, &disk, self.shape(), &found)?;
        }
        Ok(if found == *self.oracle().content() { Outcome::Harmless } else { Outcome::Cut })
    }

    /// Point reads give what iteration gave.
    fn points(&self, db: &betree::Db, content: &betree_testkit::Content) -> Result<(), String> {
        for (index, records) in content.keyspaces.iter().enumerate() {
            let Some(records) = records else { continue };
            let space = db.keyspace(crate::SPACES[index].0).map_err(|e| e.to_string())?;
            for (key, value) in records.iter().step_by(5) {
                let got = space.get(key).map_err(|e| format!("get of {key:?}: {e}"))?;
                if got.as_deref() != Some(&value[..]) {
                    return Err(format!("get of {key:?} is not what iteration gave"));
                }
            }
        }
        Ok(())
    }
}

/// Writes to a database that was damaged where it does not matter, loses power, and compares.
fn go_on(
    db: betree::Db,
    disk: &SimStorage,
    shape: &Shape,
    content: &betree_testkit::Content,
) -> Result<(), String> {
    let go = || -> betree::Result<betree_testkit::Content> {
        let space = db.keyspace(crate::SPACES[0].0)?;
        space.insert("after the damage", "a value")?;
        db.checkpoint()?;
        space.insert("and more", [7; 3000])?;
        db.persist()?;
        drop((db, space));
        let disk = disk.crash();
        read_all(&shape.builder().open_on(disk.as_storage())?)
    };
    let found = go().map_err(|e| format!("it does not go on: {e}"))?;
    let mut expected = content.clone();
    if let Some(Some(records)) = expected.keyspaces.first_mut() {
        records.insert(b"after the damage".to_vec(), b"a value".to_vec());
        records.insert(b"and more".to_vec(), vec![7; 3000]);
    }
    if found == expected {
        Ok(())
    } else {
        Err(format!("it goes on wrongly: {}", found.differences(&expected)))
    }
}

/// Flips `flips` bytes drawn from `seed` and does `others` things of each other class. Among the flips is one that cuts the log short,
/// where one near the log's end does: so few do that chance would leave them out of one sample in thirty.
///
/// # Errors
/// What [`Victim::suffer`] says, first failure first.
pub fn sample(victim: &Victim, seed: u64, flips: usize, others: usize) -> Result<Summary, String> {
    let mut summary = Summary::default();
    let mut damages = victim.damages(seed);
    let frames = damages.iter().enumerate().rev().filter(|(_, damage)| damage.is_flip_in_frame());
    let cut = frames.step_by(8).take(NEAR_THE_END).find(|(_, damage)| victim.is_cut_by(damage));
    let cut = cut.map(|(i, _)| i).map(|i| damages.swap_remove(i));
    Rng::new(seed).shuffle(&mut damages);
    damages.splice(..0, cut);
    for class in Class::ALL {
        let count = if class == Class::Flip { flips } else { others };
        for damage in damages.iter().filter(|damage| damage.class == class).take(count) {
            victim.suffer(damage, &mut summary)?;
        }
    }
    Ok(summary)
}

/// Whether the error names the file that is damaged.
fn located(error: &betree::Error) -> Result<(), String> {
    let text = error.to_string();
    if text.contains("data.betree") || text.contains("log") {
        return crate::faults::located(error);
    }
    Err(format!("the error names no file: {error:?}"))
}
