//! Corruption: single bytes of a small database's files are flipped in turn.
//!
//! What must come of each: the right content, or that after an earlier prefix if the log's end was hit, or an error that
//! names the place. Never a panic, a hang, a wrong answer.

use betree_testkit::{Op, Rng, SimStorage, Workload};
use std::sync::Arc;

use crate::faults::located;
use crate::{Place, Session, Shape, guarded, read_all};

/// A small database at rest, to be damaged.
#[derive(Debug)]
pub struct Victim {
    disk: Arc<SimStorage>,
    session: Session,
    seed: u64,
}

/// What came of the flips.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes flipped, one at a time.
    pub flips: u64,
    /// How often an error named the place.
    pub found: u64,
    /// How often the content was right all the same.
    pub harmless: u64,
    /// How often the log's end was cut.
    pub cut: u64,
}

impl Victim {
    /// The database of a seed: trees of some levels, and some log above the checkpoint.
    ///
    /// # Errors
    /// Whatever goes wrong in making it.
    pub fn new(seed: u64, ops: usize) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let shape = Shape::tiny(&mut rng);
        let disk = SimStorage::new(rng.next_u64());
        let mut workload = Workload::new(rng.next_u64()).reads(0.1).without_reopening();
        let session = Session::open(Place::Disk(disk.clone()), shape, None).map_err(|e| e.to_string())?;
        let mut this = Self { disk, session, seed };
        this.session.create_keyspaces().map_err(|e| e.to_string())?;
        for _ in 0..ops {
            let op = workload.next(&this.session.oracle);
            this.session.apply(&op).map_err(|e| e.to_string())?;
        }
        this.session.apply(&Op::Persist).map_err(|e| e.to_string())?;
        this.session.abandon();
        this.disk = this.disk.kill();
        Ok(this)
    }

    /// The places worth flipping: every byte of every 4 KiB block that is not all zeros.
    #[must_use]
    pub fn places(&self) -> Vec<(String, u64)> {
        let mut places = Vec::new();
        for name in self.disk.files().into_keys() {
            let bytes = self.disk.contents(&name).unwrap_or_default();
            for (i, block) in bytes.chunks(4096).enumerate() {
                if block.iter().any(|b| *b != 0) {
                    places.extend((0..block.len()).map(|at| (name.clone(), (i * 4096 + at) as u64)));
                }
            }
        }
        places
    }

    /// Flips a bit of one byte and looks what comes of it.
    ///
    /// # Errors
    /// A wrong answer, a panic, or an error that does not name the place.
    pub fn flip(&self, file: &str, offset: u64, bit: u8, summary: &mut Summary) -> Result<(), String> {
        summary.flips += 1;
        guarded(|| self.flipped(file, offset, bit, summary))
            .map_err(|e| format!("seed {}: {file} byte {offset} bit {bit}: {e}", self.seed))
    }

    fn flipped(&self, file: &str, offset: u64, bit: u8, summary: &mut Summary) -> Result<(), String> {
        let disk = self.disk.crashed_copy(1);
        if !disk.flip_bit(file, offset, bit) {
            return Err("there is no such byte".into());
        }
        let db = match self.session.shape.builder().open_on(disk.as_storage()) {
            Ok(db) => db,
            Err(error) => {
                summary.found += 1;
                return located(&error);
            }
        };
        let found = match read_all(&db) {
            Ok(found) => found,
            Err(error) => {
                summary.found += 1;
                located(&error)?;
                let report = db.check().map_err(|e| format!("the checker fails: {e}"))?;
                return if report.is_clean() {
                    Err(format!("check is clean, reading is not: {error}"))
                } else {
                    Ok(())
                };
            }
        };
        let oracle = &self.session.oracle;
        if found == *oracle.content() {
            summary.harmless += 1;
            return db.check().map(drop).map_err(|e| format!("the checker fails: {e}"));
        }
        if file.starts_with("log") && oracle.prefix_with(found.digest(), 0..=oracle.len()).is_some() {
            summary.cut += 1;
            return Ok(());
        }
        Err(format!("a wrong answer: {}", oracle.explain(&found, oracle.len()..=oracle.len())))
    }
}
