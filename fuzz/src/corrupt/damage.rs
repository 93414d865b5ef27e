//! What is done to a database's files: every byte flipped in turn, files cut, blocks zeroed, swapped, doubled, brought back from an
//! earlier checkpoint, files missing, swapped, renamed, of another database, of another program, of a future release.

use std::fmt;
use std::sync::Arc;

use betree_testkit::{Rng, SimStorage};

use super::layout::{BLOCK, DATA, log_structures};
use super::{Files, Victim, log};

/// A kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// One bit of one byte is another.
    Flip,
    /// A file ends early.
    Cut,
    /// A block reads as zeros.
    Zeroed,
    /// A block is as it was at an earlier checkpoint: a later write was lost.
    Stale,
    /// Two blocks have changed places.
    Swapped,
    /// A block lies in the place of another: a misdirected write.
    Doubled,
    /// Log files are missing.
    LogMissing,
    /// Log files have each other's names.
    LogSwapped,
    /// A log file has a number that is not its own.
    LogRenamed,
    /// The data file is missing.
    DataMissing,
    /// The data file is that of another database.
    DataForeign,
    /// Superblock copies are those of another database.
    SuperblockForeign,
    /// A log file is that of another database.
    LogForeign,
    /// A file is of another program.
    NotOurs,
    /// A file says that it is of a later format.
    Future,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Flip,
        Self::Cut,
        Self::Zeroed,
        Self::Stale,
        Self::Swapped,
        Self::Doubled,
        Self::LogMissing,
        Self::LogSwapped,
        Self::LogRenamed,
        Self::DataMissing,
        Self::DataForeign,
        Self::SuperblockForeign,
        Self::LogForeign,
        Self::NotOurs,
        Self::Future,
    ];

    /// Whether no database may open after this.
    pub(super) fn is_always_refused(self) -> bool {
        matches!(
            self,
            Self::DataMissing | Self::DataForeign | Self::SuperblockForeign | Self::LogForeign | Self::Future
        )
    }
}

/// A step of damage.
#[derive(Debug, Clone)]
enum Step {
    Flip(String, usize, u8),
    Write(String, usize, Vec<u8>),
    Cut(String, usize),
    Put(String, Vec<u8>),
    Remove(String),
}

/// One thing done to a database.
#[derive(Debug, Clone)]
pub struct Damage {
    /// Of which kind.
    pub class: Class,
    /// What it hits.
    pub structure: &'static str,
    steps: Vec<Step>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", self.class, self.structure)?;
        for step in &self.steps {
            match step {
                Step::Flip(file, at, bit) => write!(f, ", {file} byte {at} bit {bit}")?,
                Step::Write(file, at, bytes) => write!(f, ", {file} {} bytes at {at}", bytes.len())?,
                Step::Cut(file, len) => write!(f, ", {file} cut to {len}")?,
                Step::Put(file, bytes) => write!(f, ", {file} is now {} bytes", bytes.len())?,
                Step::Remove(file) => write!(f, ", {file} removed")?,
            }
        }
        Ok(())
    }
}

impl Damage {
    fn new(class: Class, structure: &'static str, steps: Vec<Step>) -> Self {
        Self { class, structure, steps }
    }

    /// Whether only log files are touched.
    pub(super) fn log_only(&self) -> bool {
        self.steps.iter().all(|step| match step {
            Step::Flip(file, ..)
            | Step::Write(file, ..)
            | Step::Cut(file, _)
            | Step::Put(file, _)
            | Step::Remove(file) => file.starts_with("log-"),
        })
    }

    /// Whether the error says what happened, where that can be known.
    pub(super) fn fits(&self, error: &betree::Error) -> Result<(), String> {
        let text = error.to_string();
        if self.class == Class::Future && !text.contains("version") {
            return Err(format!("a later format is not named: {text}"));
        }
        Ok(())
    }

    /// Whether it hits both copies of the newest superblock: then the one before counts, as after a crash while publishing.
    pub(super) fn hits_both_copies(&self, slots: [usize; 2]) -> bool {
        slots.iter().all(|slot| {
            self.steps
                .iter()
                .any(|step| matches!(step, Step::Write(file, at, _) if file == DATA && at == slot))
        })
    }

    /// Whether it is a flip within a frame of the log.
    pub(super) fn is_flip_in_frame(&self) -> bool {
        self.class == Class::Flip && self.structure.starts_with("log: frame")
    }

    /// A copy of the disk after it. Cheap for flips, of which there are many.
    pub(super) fn done_on(&self, disk: &SimStorage, files: &Files) -> Result<Arc<SimStorage>, String> {
        let disk = disk.crashed_copy(1);
        if let [Step::Flip(file, at, bit)] = &self.steps[..] {
            return if disk.flip_bit(file, *at as u64, *bit) {
                Ok(disk)
            } else {
                Err("there is no such byte".into())
            };
        }
        let after = self.done_to(files)?;
        for name in files.keys().filter(|name| !after.contains_key(*name)) {
            disk.as_storage().remove(name).map_err(|e| e.to_string())?;
        }
        after
            .iter()
            .filter(|(name, bytes)| files.get(*name) != Some(bytes))
            .for_each(|(name, bytes)| disk.put(name, bytes));
        Ok(disk)
    }

    /// The files after it.
    pub(super) fn done_to(&self, files: &Files) -> Result<Files, String> {
        let mut files = files.clone();
        for step in &self.steps {
            match step {
                Step::Flip(file, at, bit) => {
                    let byte = files.get_mut(file).and_then(|bytes| bytes.get_mut(*at));
                    *byte.ok_or("there is no such byte")? ^= 1 << bit;
                }
                Step::Write(file, at, bytes) => {
                    let place = files.get_mut(file).and_then(|f| f.get_mut(*at..*at + bytes.len()));
                    place.ok_or("there is no such place")?.copy_from_slice(bytes);
                }
                Step::Cut(file, len) => files.get_mut(file).ok_or("there is no such file")?.truncate(*len),
                Step::Put(file, bytes) => drop(files.insert(file.clone(), bytes.clone())),
                Step::Remove(file) => drop(files.remove(file).ok_or("there is no such file")?),
            }
        }
        Ok(files)
    }
}

/// Sets the checksum of a superblock slot.
fn seal_slot(bytes: &mut [u8], slot: usize) {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc32fast::hash(&(slot as u32).to_le_bytes()));
    hasher.update(&bytes[..BLOCK - 4]);
    bytes[BLOCK - 4..].copy_from_slice(&hasher.finalize().to_le_bytes());
}

impl Victim {
    /// Everything that is done to this database: all flips, cuts, zeroed and stale blocks, and a sample of pairs drawn from `seed`.
    #[must_use]
    pub fn damages(&self, seed: u64) -> Vec<Damage> {
        let mut rng = Rng::new(seed);
        let mut out = self.flips();
        self.blocks(&mut out, &mut rng);
        self.logs(&mut out);
        self.foreign(&mut out, &mut rng);
        out
    }

    fn log_names(&self) -> Vec<&String> {
        self.files.keys().filter(|name| log::number_of(name).is_some()).collect()
    }

    fn structure(&self, file: &str, at: usize) -> &'static str {
        if file == DATA {
            return self.map.structure(at as u64);
        }
        log_structures(file, &self.files[file], self.start.salt)
            .get(at)
            .copied()
            .unwrap_or("log: unused space")
    }

    /// Every byte of every structure and of every log block in use, some of each block without use.
    #[must_use]
    pub fn flips(&self) -> Vec<Damage> {
        let mut out = Vec::new();
        for (file, bytes) in &self.files {
            let of_log = if file == DATA { Vec::new() } else { log_structures(file, bytes, self.start.salt) };
            for (block, content) in bytes.chunks(BLOCK).enumerate() {
                let first = block * BLOCK;
                let unused = of_log.is_empty() && self.map.structure(first as u64) == "unused space";
                let step = match content.iter().all(|b| *b == 0) {
                    true => 512,
                    // What once was a structure, and is most of a file that was written to for some time.
                    false if unused => 16,
                    false => 1,
                };
                for at in (0..content.len()).step_by(step) {
                    let at = block * BLOCK + at;
                    let structure = of_log.get(at).copied().unwrap_or_else(|| self.map.structure(at as u64));
                    out.push(Damage::new(
                        Class::Flip,
                        structure,
                        vec![Step::Flip(file.clone(), at, (at % 8) as u8)],
                    ));
                }
            }
        }
        out
    }

    fn blocks(&self, out: &mut Vec<Damage>, rng: &mut Rng) {
        let mut places = Vec::new();
        for (file, bytes) in &self.files {
            for len in (0..bytes.len()).step_by(512) {
                let structure = self.structure(file, len);
                out.push(Damage::new(Class::Cut, structure, vec![Step::Cut(file.clone(), len)]));
            }
            // A sector is what a disk loses at least; a log file is made of them.
            let unit = if file == DATA { BLOCK } else { 512 };
            for (i, block) in bytes.chunks_exact(unit).enumerate() {
                let (at, structure) = (i * unit, self.structure(file, i * unit));
                places.push((file, at, block));
                if block.iter().any(|b| *b != 0) {
                    let zeros = vec![0; unit];
                    out.push(Damage::new(
                        Class::Zeroed,
                        structure,
                        vec![Step::Write(file.clone(), at, zeros)],
                    ));
                }
                let old = self.earlier.get(file).and_then(|f| f.get(at..at + unit));
                if let Some(old) = old.filter(|old| *old != block) {
                    let step = Step::Write(file.clone(), at, old.to_vec());
                    out.push(Damage::new(Class::Stale, structure, vec![step]));
                }
            }
        }
        let used: Vec<_> = places.iter().filter(|(_, _, block)| block.iter().any(|b| *b != 0)).collect();
        for _ in 0..400 {
            let (Some(a), Some(b)) = (rng.pick(&used), rng.pick(&places)) else { break };
            let differ = a.2 != b.2 && a.2.len() == b.2.len();
            // Within one file: what lies where is known to the file alone.
            if !differ || (a.0 == DATA) != (b.0 == DATA) {
                continue;
            }
            let structure = self.structure(a.0, a.1);
            let there = Step::Write(b.0.clone(), b.1, a.2.to_vec());
            let back = Step::Write(a.0.clone(), a.1, b.2.to_vec());
            out.push(Damage::new(Class::Doubled, self.structure(b.0, b.1), vec![there.clone()]));
            out.push(Damage::new(Class::Swapped, structure, vec![there, back]));
        }
    }

    fn logs(&self, out: &mut Vec<Damage>) {
        let names = self.log_names();
        let remove = |names: &[&String]| names.iter().map(|name| Step::Remove((*name).clone())).collect();
        let put = |name: &str, from: &str| Step::Put(name.to_owned(), self.files[from].clone());
        for (i, &a) in names.iter().enumerate() {
            out.push(Damage::new(Class::LogMissing, "one log file", remove(&[a])));
            out.push(Damage::new(Class::LogMissing, "log files up to one", remove(&names[..=i])));
            out.push(Damage::new(Class::LogMissing, "log files from one on", remove(&names[i..])));
            for &b in &names[i + 1..] {
                out.push(Damage::new(Class::LogMissing, "two log files", remove(&[a, b])));
                out.push(Damage::new(Class::LogSwapped, "two log files", vec![put(a, b), put(b, a)]));
                out.push(Damage::new(Class::LogSwapped, "a log file doubled", vec![put(a, b)]));
                out.push(Damage::new(Class::LogSwapped, "a log file doubled", vec![put(b, a)]));
            }
            for shift in [1, 2, 1000] {
                let number = log::number_of(a).unwrap_or(0) + shift;
                let name = format!("log-{number:016}");
                out.push(Damage::new(
                    Class::LogRenamed,
                    "one log file",
                    vec![Step::Remove(a.clone()), put(&name, a)],
                ));
            }
        }
        let mut all = Vec::new();
        for name in &names {
            let number = log::number_of(name).unwrap_or(0) + 100;
            all.extend([Step::Remove((*name).clone()), put(&format!("log-{number:016}"), name)]);
        }
        out.push(Damage::new(Class::LogRenamed, "all log files", all));
    }

    fn foreign(&self, out: &mut Vec<Damage>, rng: &mut Rng) {
        let names = self.log_names();
        out.push(Damage::new(Class::DataMissing, "data file", vec![Step::Remove(DATA.to_owned())]));
        out.push(Damage::new(
            Class::DataForeign,
            "data file",
            vec![Step::Put(DATA.to_owned(), self.other[DATA].clone())],
        ));
        let stride = 16 << 10;
        let slot = |files: &Files, i: usize| files[DATA][i * stride..i * stride + BLOCK].to_vec();
        let mut all = Vec::new();
        for i in 0..4 {
            let (ours, theirs) = (slot(&self.files, i), slot(&self.other, i));
            if ours.starts_with(b"betree") && theirs.starts_with(b"betree") {
                let step = Step::Write(DATA.to_owned(), i * stride, theirs);
                out.push(Damage::new(Class::SuperblockForeign, "one copy", vec![step.clone()]));
                all.push(step);
            }
            if ours.starts_with(b"betree") {
                for version in [0u16, 3, 5, u16::MAX] {
                    let mut later = ours.clone();
                    later[6..8].copy_from_slice(&version.to_le_bytes());
                    seal_slot(&mut later, i);
                    let step = Step::Write(DATA.to_owned(), i * stride, later);
                    out.push(Damage::new(Class::Future, "superblock", vec![step]));
                }
            }
        }
        out.push(Damage::new(Class::SuperblockForeign, "all copies", all));
        let theirs = self.other.iter().filter(|(name, _)| name.starts_with("log-")).map(|(_, bytes)| bytes);
        for theirs in theirs.filter(|bytes| bytes.starts_with(b"betreLOG")) {
            let number = u64::from_le_bytes(theirs[24..32].try_into().unwrap_or_default());
            let step = Step::Put(format!("log-{number:016}"), theirs.clone());
            out.push(Damage::new(Class::LogForeign, "log file", vec![step]));
        }
        for name in names.iter().filter(|name| self.files[**name].starts_with(b"betreLOG")) {
            for version in [0u32, 2, 4, u32::MAX] {
                let mut later = self.files[*name].clone();
                later[8..12].copy_from_slice(&version.to_le_bytes());
                let crc = crc32fast::hash(&later[..60]);
                later[60..64].copy_from_slice(&crc.to_le_bytes());
                out.push(Damage::new(Class::Future, "log file", vec![Step::Put((*name).clone(), later)]));
            }
        }
        for name in self.files.keys() {
            let len = self.files[name].len();
            let text = b"Lorem ipsum dolor sit amet. ".repeat(len / 28 + 1);
            for bytes in [
                Vec::new(),
                text[..len].to_vec(),
                rng.bytes(len),
                rng.bytes(10),
                vec![0; len],
                vec![0xff; len],
            ] {
                out.push(Damage::new(Class::NotOurs, "whole file", vec![Step::Put(name.clone(), bytes)]));
            }
        }
    }
}
