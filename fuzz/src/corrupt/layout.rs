//! Which structure a byte of a database's files belongs to, and what the superblock knows of the log.

use std::ops::Range;

use betree_testkit::SimStorage;

use super::{Files, log};
use crate::Shape;

/// The data file's name.
pub(super) const DATA: &str = "data.betree";
/// Bytes of a block of the data file.
pub(super) const BLOCK: usize = 4096;

/// Extents of the data file by structure, in order.
#[derive(Debug, Clone)]
pub(super) struct Map {
    extents: Vec<(Range<u64>, &'static str)>,
}

impl Map {
    /// Opens a copy of the database and asks it.
    pub(super) fn of(disk: &SimStorage, shape: &Shape) -> Result<Self, String> {
        let copy = SimStorage::new(1);
        for name in disk.files().keys() {
            copy.put(name, &disk.contents(name).unwrap_or_default());
        }
        let db = shape.builder().open_on(copy.as_storage()).map_err(|e| format!("layout: {e}"))?;
        let mut extents = betree::fuzzing::layout(&db);
        extents.sort_by_key(|(range, _)| range.start);
        extents.dedup();
        Ok(Self { extents })
    }

    /// The structure of a byte of the data file.
    pub(super) fn structure(&self, offset: u64) -> &'static str {
        if offset < 64 << 10 {
            return if offset % (16 << 10) < BLOCK as u64 { "superblock" } else { "between superblocks" };
        }
        let at = self.extents.partition_point(|(range, _)| range.end <= offset);
        match self.extents.get(at) {
            Some((range, structure)) if range.contains(&offset) => structure,
            _ => "unused space",
        }
    }
}

/// The structure of each byte of a log file.
pub(super) fn log_structures(name: &str, bytes: &[u8], salt: u64) -> Vec<&'static str> {
    let mut structures = vec!["log: unused space"; bytes.len()];
    let Some(first) = log::first_of(name, bytes, salt) else { return structures };
    structures.iter_mut().take(64).for_each(|s| *s = "log: file header");
    for frame in log::search(bytes, first, 64, salt) {
        let text = if frame.mark.is_some() { "log: frame with mark" } else { "log: frame without mark" };
        structures[frame.at..frame.at + frame.len].fill(text);
    }
    structures
}

pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Where the two copies of the newest superblock lie.
pub(super) fn newest_copies(files: &Files) -> [usize; 2] {
    let epoch = |at: usize| {
        let bytes = files[DATA].get(at + 24..at + 32).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let stride = 16 << 10;
    if epoch(0).max(epoch(stride)) > epoch(2 * stride).max(epoch(3 * stride)) {
        [0, stride]
    } else {
        [2 * stride, 3 * stride]
    }
}

/// Salt, beginning and durable end of the log as the newest superblock and its catalog say. `None`: there is no checkpoint.
pub(super) fn start_of(files: &Files) -> Option<log::Start> {
    let data = files.get(DATA)?;
    let slot = |i: usize| {
        data.get(i * (16 << 10)..i * (16 << 10) + BLOCK).filter(|slot| slot.starts_with(b"betree"))
    };
    let number = |slot: &[u8], at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let newest = (0..4).filter_map(slot).max_by_key(|slot| number(slot, 24))?;
    let salt = number(newest, 8)? ^ number(newest, 16)?;
    let len = u32::from_le_bytes(newest.get(40..44)?.try_into().ok()?) as usize;
    let payload = &mut newest.get(64..64 + len)?;
    let offset = varint(payload)? as usize * BLOCK;
    varint(payload)?;
    let mut payload = payload.get(4..)?;
    let durable = varint(&mut payload).unwrap_or(0);
    let from = varint(&mut data.get(offset + 16..)?)?;
    Some(log::Start { salt, from, durable })
}
