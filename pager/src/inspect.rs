//! A look at a data file that trusts nothing and changes nothing: for the checker and for salvage.
//!
//! An [`Inspector`] reads from the device, never through the page cache, so that damage is found even where an intact copy
//! of the page is in memory. It works without a [`Pager`], on a file that does not open, and on one that is open. Where no
//! superblock is left, the salt of the checksums is found from the pages themselves (see `checksum`): whatever verifies
//! with the salt that most pages agree on is of this file.
//!
//! Called by the engine from one thread at a time. Holds no lock, except that [`Pager::audit`] holds those of `space`.

use std::collections::HashMap;
use std::sync::Arc;

use betree_storage::{AlignedBuf, Caching, File, OpenMode, Storage};

use crate::checksum::Sealer;
use crate::error::{Error, Result};
use crate::pager::Pager;
use crate::superblock::{self, AREA, SLOT_LEN, Slot, Superblock};
use crate::{BLOCK_U64, FILE_NAME, file};

/// Longest single read.
const PIECE: u64 = 1 << 20;
/// Pages that must agree on a salt before it is believed.
const VOTES: usize = 2;

/// What one superblock slot holds.
#[derive(Debug, Clone)]
pub struct SlotState {
    /// Where in the file.
    pub offset: u64,
    /// The superblock, or what is wrong with the slot. `None`: never written.
    pub content: Option<std::result::Result<Superblock, String>>,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Inspector {
    file: Arc<dyn File>,
    sealer: Option<Sealer>,
    uuid: Option<u128>,
}

impl Inspector {
    /// On a closed data file. Its salt is that of the newest valid superblock; without one, see [`Inspector::find_salt`].
    ///
    /// # Errors
    /// There is no file, or it cannot be opened. A damaged one can.
    pub fn open(storage: &dyn Storage) -> Result<Self> {
        let file = storage.open(FILE_NAME, OpenMode::Existing, Caching::Direct)?;
        let mut this = Self { file, sealer: None, uuid: None };
        let slots = this.slots();
        let valid = slots.iter().filter_map(|slot| slot.content.as_ref()?.as_ref().ok());
        this.uuid = valid.max_by_key(|superblock| superblock.epoch).map(|superblock| superblock.uuid);
        this.sealer = this.uuid.map(Sealer::new);
        Ok(this)
    }

    /// The file's identity, if a superblock says it.
    #[must_use]
    pub fn uuid(&self) -> Option<u128> {
        self.uuid
    }

    /// Whether pages can be verified.
    #[must_use]
    pub fn has_salt(&self) -> bool {
        self.sealer.is_some()
    }

    /// The file's length.
    ///
    /// # Errors
    /// Those of the device.
    pub fn len(&self) -> Result<u64> {
        Ok(self.file.len()?)
    }

    /// Whether the file has no place for an extent.
    ///
    /// # Errors
    /// Those of the device.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? <= AREA)
    }

    /// What the superblock slots hold. A slot that cannot be read says so.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotState> {
        let state = |index| {
            let offset = superblock::slot_offset(index);
            let content = match self.slot(index) {
                Err(error) => Some(Err(error.to_string())),
                Ok(Slot::Zero) => None,
                Ok(Slot::Valid(superblock)) => Some(Ok(superblock)),
                Ok(Slot::Version(found)) => Some(Err(format!("unknown format version {found}"))),
                Ok(Slot::Bad { what, .. }) => Some(Err(format!("invalid {what}"))),
            };
            SlotState { offset, content }
        };
        (0..superblock::SLOTS).map(state).collect()
    }

    fn slot(&self, index: usize) -> Result<Slot> {
        let mut buf = AlignedBuf::zeroed(SLOT_LEN);
        self.read(superblock::slot_offset(index), &mut buf)?;
        Ok(superblock::decode(&buf, index))
    }

    /// The superblock that an open would choose, with the error if none.
    ///
    /// # Errors
    /// As opening the file: no valid slot, slots that contradict one another, a file that is too short.
    pub fn newest(&self) -> Result<Superblock> {
        let newest = superblock::choose(FILE_NAME, &file::read_slots(&*self.file)?)?;
        file::check_len(self.len()?, newest.file_len)?;
        Ok(newest)
    }

    /// Whether a page can lie there: whole blocks behind the superblocks and within the file.
    fn check_bounds(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.len()?;
        let whole = len > 0 && offset.is_multiple_of(BLOCK_U64) && len.is_multiple_of(BLOCK_U64);
        if whole && offset >= AREA && offset.checked_add(len).is_some_and(|to| to <= end) {
            return Ok(());
        }
        Err(Error::Corruption {
            file: FILE_NAME.to_owned(),
            offset,
            what: "page bounds",
            expected: format!("whole blocks within {AREA}..{end}"),
            got: format!("{len} bytes"),
        })
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.file.read_at(offset, buf)?)
    }

    /// The page, read from the device and verified against the checksum that its parent holds (`page.sealed`).
    ///
    /// # Errors
    /// It cannot be read, or is not what its parent says.
    pub fn page(&self, offset: u64, len: u32, expected: u32) -> Result<AlignedBuf> {
        let page = self.bytes(offset, len)?;
        self.verify(&page, offset, expected)?;
        Ok(page)
    }

    /// Bytes of the file, not verified.
    ///
    /// # Errors
    /// They lie outside of the file, or cannot be read.
    pub fn bytes(&self, offset: u64, len: u32) -> Result<AlignedBuf> {
        self.check_bounds(offset, u64::from(len))?;
        let mut buf = AlignedBuf::zeroed(len as usize);
        self.read(offset, &mut buf)?;
        Ok(buf)
    }

    /// As [`Pager::verify`](crate::Pager::verify).
    ///
    /// # Errors
    /// Content, own checksum and `expected` do not agree, or there is no salt to verify with.
    pub fn verify(&self, page: &[u8], offset: u64, expected: u32) -> Result<()> {
        match self.sealer {
            Some(sealer) => sealer.verify(FILE_NAME, page, offset, expected),
            None => Err(Error::Corruption {
                file: FILE_NAME.to_owned(),
                offset: 0,
                what: "superblock",
                expected: "one that names the file's uuid".to_owned(),
                got: "none".to_owned(),
            }),
        }
    }

    /// Whether the page's own checksum fits its place and content. Without a parent's copy an older page of the same place
    /// passes as well.
    #[must_use]
    pub fn fits(&self, page: &[u8], offset: u64) -> bool {
        self.sealer.is_some_and(|sealer| sealer.fits(page, offset))
    }

    /// Looks at every block of the file in order. `visit` gets a block's offset and its bytes; blocks that cannot be read
    /// are left out.
    ///
    /// # Errors
    /// The file's length cannot be told.
    pub fn scan(&self, visit: &mut dyn FnMut(u64, &[u8])) -> Result<()> {
        let end = self.len()? / BLOCK_U64 * BLOCK_U64;
        let mut at = AREA;
        let mut buf = AlignedBuf::zeroed(PIECE as usize);
        while at < end {
            let len = PIECE.min(end - at);
            let piece = &mut buf[..len as usize];
            if self.read(at, piece).is_ok() {
                let blocks = piece.chunks(BLOCK_U64 as usize);
                blocks.enumerate().for_each(|(i, block)| visit(at + i as u64 * BLOCK_U64, block));
            } else {
                // One bad sector must not hide its neighbours.
                let block = &mut piece[..BLOCK_U64 as usize];
                for offset in (at..at + len).step_by(BLOCK_U64 as usize) {
                    if self.read(offset, block).is_ok() {
                        visit(offset, block);
                    }
                }
            }
            at += len;
        }
        Ok(())
    }

    /// Finds the salt without a superblock, from pages whose place and length are known, if enough of them agree.
    pub fn find_salt(&mut self, pages: &[(u64, u32)]) -> bool {
        let mut votes: HashMap<u32, usize> = HashMap::new();
        for &(offset, len) in pages {
            let base = self.bytes(offset, len).ok().and_then(|page| Sealer::base_of(&page, offset));
            *votes.entry(base.unwrap_or_default()).or_default() += usize::from(base.is_some());
        }
        let best = votes.into_iter().max_by_key(|&(_, count)| count);
        self.sealer = best.filter(|&(_, count)| count >= VOTES).map(|(base, _)| Sealer::from_base(base));
        self.sealer.is_some()
    }
}

impl Pager {
    /// A look at the open file, past the cache.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        Inspector { file: self.0.file.clone(), sealer: Some(self.0.sealer), uuid: Some(self.0.uuid) }
    }

    /// What is wrong with the superblock of the last epoch published: it must be in both of its slots. No epoch is
    /// published meanwhile.
    ///
    /// # Errors
    /// Those of the device.
    pub fn check_superblock(&self) -> Result<Vec<String>> {
        let published = self.0.published.lock();
        let mut wrong = Vec::new();
        for index in superblock::slots_of(*published) {
            let got = match self.inspector().slot(index)? {
                Slot::Valid(superblock) if superblock.epoch == *published => continue,
                Slot::Valid(superblock) => format!("epoch {}", superblock.epoch.0),
                Slot::Bad { what, .. } => format!("invalid {what}"),
                Slot::Version(_) | Slot::Zero => "another version, or zeros".to_owned(),
            };
            let (offset, epoch) = (superblock::slot_offset(index), published.0);
            wrong.push(format!("{FILE_NAME} at offset {offset}: superblock of epoch {epoch}: {got}"));
        }
        Ok(wrong)
    }

    /// What is wrong with the account of the file's blocks (`extent.owned_once`, `freemap.coalesced`): free, owned and on
    /// loan make the file, and no range in `owned` (offset and length in bytes) is free.
    #[must_use]
    pub fn audit(&self, owned: &[(u64, u32)]) -> Vec<String> {
        self.0.space.audit(owned)
    }
}
