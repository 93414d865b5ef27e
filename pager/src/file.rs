//! Creating and opening the data file, crash by crash.
//!
//! Creating: the file is made under another name, its superblocks of epoch 0 are written and synced, it is renamed and
//! the directory synced. So a file of the real name always has a valid superblock, and one without is damaged, not
//! young. A crash before the rename is durable leaves at most a file of the other name, which the next open removes.
//!
//! Opening: the newest valid superblock is written again to both its slots and synced before anybody relies on it.
//! It may have been read from a cache above the medium (the process was killed between writing and syncing it), or
//! only one copy may have survived; without this, extents of the epoch before could be overwritten while a power loss
//! would still go back to it. Both slots get the bytes that the survivor holds already, so that a torn write of this
//! repair changes nothing.

use std::sync::Arc;

use betree_storage::{AlignedBuf, Caching, File, OpenMode, Storage};

use crate::error::{Error, Result};
use crate::superblock::{self, AREA, SLOT_LEN, SLOTS, Slot, Superblock};
use crate::{Epoch, FILE_NAME};

/// The file's name until it is complete.
const NEW_NAME: &str = "data.betree.new";

/// Opens the data file, or creates it when there is none and `create` is set.
pub(crate) fn open(
    storage: &dyn Storage,
    create: bool,
    uuid: Option<u128>,
) -> Result<(Arc<dyn File>, Superblock)> {
    let names = storage.list()?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let exists = has(FILE_NAME);
    if !exists && !create {
        return Err(Error::Missing { file: FILE_NAME.to_owned() });
    }
    if has(NEW_NAME) {
        storage.remove(NEW_NAME)?;
    }
    if exists {
        open_existing(storage)
    } else {
        create_new(storage, uuid.unwrap_or_else(|| storage.entropy()))
    }
}

/// Reads all slots. A slot the file is too short for is damaged.
pub(crate) fn read_slots(file: &dyn File) -> Result<[Slot; SLOTS]> {
    let file_len = file.len()?;
    let mut slots = [const { Slot::Zero }; SLOTS];
    for (index, slot) in slots.iter_mut().enumerate() {
        let offset = superblock::slot_offset(index);
        let mut buf = AlignedBuf::zeroed(SLOT_LEN);
        if file_len >= offset + SLOT_LEN as u64 {
            file.read_at(offset, &mut buf)?;
        } else {
            // Direct I/O cannot read the odd end of a file, and half a slot is of no use.
            buf.truncate(0);
        }
        *slot = superblock::decode(&buf, index);
    }
    Ok(slots)
}

/// Writes one copy.
pub(crate) fn write_slot(
    file: &dyn File,
    superblock: &Superblock,
    slot: usize,
) -> betree_storage::Result<()> {
    let mut buf = AlignedBuf::zeroed(SLOT_LEN);
    superblock::encode(superblock, slot, &mut buf);
    file.write_at(superblock::slot_offset(slot), &buf)
}

fn open_existing(storage: &dyn Storage) -> Result<(Arc<dyn File>, Superblock)> {
    let file = storage.open(FILE_NAME, OpenMode::Existing, Caching::Direct)?;
    let file_len = file.len()?;
    // Too short even for the first slot, it cannot be told from a foreign file; its name says that it is ours.
    check_len(file_len, SLOT_LEN as u64)?;
    let slots = read_slots(&*file)?;
    let newest = superblock::choose(FILE_NAME, &slots)?;
    check_len(file_len, newest.file_len)?;
    for slot in superblock::slots_of(newest.epoch) {
        write_slot(&*file, &newest, slot)?;
    }
    storage.reached("superblock-repaired");
    file.sync()?;
    // The rename that gave the file its name may itself have been seen only in memory.
    storage.sync_dir()?;
    Ok((file, newest))
}

pub(crate) fn check_len(file_len: u64, least: u64) -> Result<()> {
    if file_len >= least {
        return Ok(());
    }
    Err(Error::Corruption {
        file: FILE_NAME.to_owned(),
        offset: file_len,
        what: "file length",
        expected: format!("at least {least}"),
        got: file_len.to_string(),
    })
}

fn create_new(storage: &dyn Storage, uuid: u128) -> Result<(Arc<dyn File>, Superblock)> {
    let superblock = Superblock { epoch: Epoch(0), payload: Vec::new(), uuid, file_len: AREA };
    let new = storage.open(NEW_NAME, OpenMode::CreateNew, Caching::Direct)?;
    new.allocate(0, AREA)?;
    for slot in superblock::slots_of(superblock.epoch) {
        write_slot(&*new, &superblock, slot)?;
    }
    new.sync()?;
    drop(new);
    storage.reached("data-file-made");
    storage.rename(NEW_NAME, FILE_NAME)?;
    storage.reached("data-file-renamed");
    storage.sync_dir()?;
    // Opened by its final name, so that messages carry that.
    let file = storage.open(FILE_NAME, OpenMode::Existing, Caching::Direct)?;
    Ok((file, superblock))
}
