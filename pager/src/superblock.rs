//! The superblock codec.
//!
//! The file's first 64 KiB hold four slots, one every 16 KiB so that two copies never share a flash page:
//!
//! ```text
//! slot     0  [u8; 6]   magic "betree"                            ┐ place and meaning fixed
//!          6  u16       format version, 3                         ┘ for every version
//!          8  u128      uuid of the file
//!         24  u64       epoch
//!         32  u64       file length this checkpoint needs: the end of its last extent
//!         40  u32       payload length, at most 3072
//!         44  [u8; 20]  reserved, zero
//!         64  [u8; ..]  payload, opaque
//!        ..   [u8; ..]  reserved, zero
//!       4092  u32       crc of bytes 0..4092, salted with the slot     fixed for every version
//! ```
//!
//! All integers are little-endian. The salt is the crc's initial value: the crc of the slot's number as u32. Bytes
//! between slots are written zero once and never read, so that decay there cannot make a file unreadable.
//!
//! Epoch e lives in the slots 2·(e mod 2) and 2·(e mod 2)+1: publishing e overwrites e−2 and leaves e−1 alone.

use crate::error::{Error, Result};
use crate::{BLOCK_U64, Epoch};

/// The bytes at the file's beginning that hold no extents.
pub(crate) const AREA: u64 = 64 << 10;
/// The number of slots.
pub(crate) const SLOTS: usize = 4;
/// The length of a slot.
pub(crate) const SLOT_LEN: usize = 4096;
/// The longest payload.
pub const MAX_PAYLOAD: usize = 3072;

const SLOT_STRIDE: u64 = 16 << 10;
const MAGIC: [u8; 6] = *b"betree";
const VERSION: u16 = 4;

const AT_VERSION: usize = 6;
const AT_UUID: usize = 8;
const AT_EPOCH: usize = 24;
const AT_FILE_LEN: usize = 32;
const AT_PAYLOAD_LEN: usize = 40;
const AT_RESERVED: usize = 44;
const AT_PAYLOAD: usize = 64;
const AT_CRC: usize = SLOT_LEN - 4;

const _: () = assert!(AT_VERSION == MAGIC.len() && AT_UUID == AT_VERSION + 2 && AT_EPOCH == AT_UUID + 16);
const _: () = assert!(AT_FILE_LEN == AT_EPOCH + 8 && AT_PAYLOAD_LEN == AT_FILE_LEN + 8);
const _: () = assert!(AT_RESERVED == AT_PAYLOAD_LEN + 4 && AT_RESERVED < AT_PAYLOAD);
const _: () = assert!(AT_PAYLOAD + MAX_PAYLOAD <= AT_CRC);
const _: () = assert!(SLOT_STRIDE >= SLOT_LEN as u64 && SLOT_STRIDE * SLOTS as u64 <= AREA);
const _: () = assert!(SLOT_LEN.is_multiple_of(crate::BLOCK) && AREA.is_multiple_of(BLOCK_U64));

/// What a checkpoint published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The checkpoint's generation.
    pub epoch: Epoch,
    /// The root as the engine wrote it.
    pub payload: Vec<u8>,
    /// The file's identity.
    pub uuid: u128,
    /// The length the file must have for every extent of the checkpoint to lie in it.
    pub file_len: u64,
}

/// Where slot `slot` begins.
pub(crate) fn slot_offset(slot: usize) -> u64 {
    slot as u64 * SLOT_STRIDE
}

/// The two slots of an epoch.
pub(crate) fn slots_of(epoch: Epoch) -> [usize; 2] {
    let first = 2 * (epoch.0 % 2) as usize;
    [first, first + 1]
}

/// What one slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A superblock.
    Valid(Superblock),
    /// Nothing was ever written, or it was wiped.
    Zero,
    /// Intact, but of a format this release does not know.
    Version(u16),
    /// Damaged; says what is wrong. `magic`: whether it is at least recognisable as ours.
    Bad { magic: bool, what: &'static str },
}

/// Fills `out`, zeroed before, with the superblock as slot `slot` holds it.
///
/// The caller has bounded the payload.
pub(crate) fn encode(superblock: &Superblock, slot: usize, out: &mut [u8]) {
    assert!(superblock.payload.len() <= MAX_PAYLOAD && out.len() == SLOT_LEN);
    out.fill(0);
    out[..AT_VERSION].copy_from_slice(&MAGIC);
    out[AT_VERSION..AT_UUID].copy_from_slice(&VERSION.to_le_bytes());
    out[AT_UUID..AT_EPOCH].copy_from_slice(&superblock.uuid.to_le_bytes());
    out[AT_EPOCH..AT_FILE_LEN].copy_from_slice(&superblock.epoch.0.to_le_bytes());
    out[AT_FILE_LEN..AT_PAYLOAD_LEN].copy_from_slice(&superblock.file_len.to_le_bytes());
    out[AT_PAYLOAD_LEN..AT_RESERVED].copy_from_slice(&(superblock.payload.len() as u32).to_le_bytes());
    out[AT_PAYLOAD..AT_PAYLOAD + superblock.payload.len()].copy_from_slice(&superblock.payload);
    seal(out, slot);
}

/// Sets the checksum of a slot's bytes.
pub(crate) fn seal(out: &mut [u8], slot: usize) {
    assert!(out.len() == SLOT_LEN);
    let crc = salted_crc(&out[..AT_CRC], slot);
    out[AT_CRC..].copy_from_slice(&crc.to_le_bytes());
}

/// Reads slot `slot`; `bytes` may be shorter than a slot where the file ends.
pub(crate) fn decode(bytes: &[u8], slot: usize) -> Slot {
    let Some(bytes) = bytes.first_chunk::<SLOT_LEN>() else {
        return Slot::Bad { magic: bytes.starts_with(&MAGIC), what: "the file ends inside the slot" };
    };
    if bytes.iter().all(|&b| b == 0) {
        return Slot::Zero;
    }
    let magic = bytes.starts_with(&MAGIC);
    let bad = |what| Slot::Bad { magic, what };
    if !magic {
        return bad("magic");
    }
    // The crc comes before the version: a damaged version number must not pass for a newer release's file.
    if salted_crc(&bytes[..AT_CRC], slot) != u32_at(bytes, AT_CRC) {
        return bad("checksum");
    }
    let version = u16::from_le_bytes([bytes[AT_VERSION], bytes[AT_VERSION + 1]]);
    if version != VERSION {
        return Slot::Version(version);
    }
    let payload_len = u32_at(bytes, AT_PAYLOAD_LEN) as usize;
    if payload_len > MAX_PAYLOAD {
        return bad("payload length");
    }
    let payload_end = AT_PAYLOAD + payload_len;
    let reserved = bytes[AT_RESERVED..AT_PAYLOAD].iter().chain(&bytes[payload_end..AT_CRC]);
    if reserved.into_iter().any(|&b| b != 0) {
        return bad("reserved bytes");
    }
    let epoch = Epoch(u64_at(bytes, AT_EPOCH));
    if !slots_of(epoch).contains(&slot) {
        return bad("epoch in the wrong slot");
    }
    let file_len = u64_at(bytes, AT_FILE_LEN);
    if file_len < AREA || !file_len.is_multiple_of(BLOCK_U64) {
        return bad("file length");
    }
    let uuid = u128::from(u64_at(bytes, AT_UUID)) | u128::from(u64_at(bytes, AT_UUID + 8)) << 64;
    Slot::Valid(Superblock { epoch, payload: bytes[AT_PAYLOAD..payload_end].to_vec(), uuid, file_len })
}

/// Picks the newest valid superblock of the slots: `superblock.newest_valid_wins`.
pub(crate) fn choose(file: &str, slots: &[Slot; SLOTS]) -> Result<Superblock> {
    let mut newest: Option<(usize, &Superblock)> = None;
    for (index, slot) in slots.iter().enumerate() {
        match slot {
            // An intact slot of a newer release says that the valid ones beside it are history.
            Slot::Version(found) => {
                return Err(Error::UnknownVersion {
                    file: file.to_owned(),
                    found: *found,
                    supported: VERSION,
                });
            }
            Slot::Valid(superblock) => {
                if let Some((_, other)) = newest {
                    agree(file, index, other, superblock)?;
                }
                if newest.is_none_or(|(_, other)| other.epoch < superblock.epoch) {
                    newest = Some((index, superblock));
                }
            }
            Slot::Zero | Slot::Bad { .. } => {}
        }
    }
    match newest {
        Some((_, superblock)) => Ok(superblock.clone()),
        None => Err(none_valid(file, slots)),
    }
}

/// Checks that two valid superblocks can stem from one file's history.
fn agree(file: &str, slot: usize, one: &Superblock, other: &Superblock) -> Result<()> {
    let what = if one.uuid != other.uuid {
        "superblock of another file"
    } else if one.epoch == other.epoch && one != other {
        "superblock copies of one epoch differ"
    } else {
        return Ok(());
    };
    let show =
        |s: &Superblock| format!("epoch {} of {:032x}, {} payload bytes", s.epoch.0, s.uuid, s.payload.len());
    Err(Error::Corruption {
        file: file.to_owned(),
        offset: slot_offset(slot),
        what,
        expected: show(one),
        got: show(other),
    })
}

/// Tells a damaged file of ours from somebody else's.
fn none_valid(file: &str, slots: &[Slot; SLOTS]) -> Error {
    let ours = slots.iter().any(|slot| matches!(slot, Slot::Bad { magic: true, .. }));
    let wiped = slots.iter().all(|slot| *slot == Slot::Zero);
    if !ours && !wiped {
        return Error::NotOurs { file: file.to_owned() };
    }
    let describe = |slot: &Slot| match slot {
        Slot::Bad { what, .. } => (*what).to_owned(),
        _ => "zeros".to_owned(),
    };
    let got: Vec<_> = slots.iter().map(describe).collect();
    Error::Corruption {
        file: file.to_owned(),
        offset: 0,
        what: "superblock",
        expected: "one valid copy of four".to_owned(),
        got: format!("bad {}", got.join(", ")),
    }
}

fn salted_crc(bytes: &[u8], slot: usize) -> u32 {
    let salt = crc32fast::hash(&(slot as u32).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(bytes);
    hasher.finalize()
}

fn u32_at(bytes: &[u8; SLOT_LEN], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

fn u64_at(bytes: &[u8; SLOT_LEN], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(epoch: u64) -> Superblock {
        Superblock {
            epoch: Epoch(epoch),
            payload: b"root".to_vec(),
            uuid: 0x1122 << 100 | 7,
            file_len: AREA + 8192,
        }
    }

    fn encoded(superblock: &Superblock, slot: usize) -> Vec<u8> {
        let mut out = vec![0xaa; SLOT_LEN];
        encode(superblock, slot, &mut out);
        out
    }

    /// Recomputes the checksum, to reach the checks behind it.
    fn resealed(mut bytes: Vec<u8>, slot: usize) -> Vec<u8> {
        let crc = salted_crc(&bytes[..AT_CRC], slot);
        bytes[AT_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_format_is_pinned_byte_by_byte() {
        let bytes = encoded(&example(0x0102), 1);
        let head: String = bytes[..72].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            head,
            concat!(
                "626574726565",                             // magic
                "0400",                                     // version
                "07000000000000000000000020120100",         // uuid
                "0201000000000000",                         // epoch
                "0020010000000000",                         // file length
                "04000000",                                 // payload length
                "0000000000000000000000000000000000000000", // reserved
                "726f6f7400000000",                         // payload
            )
        );
        assert!(bytes[72..AT_CRC].iter().all(|&b| b == 0));
        assert_eq!(u32_at(bytes.first_chunk().unwrap(), AT_CRC), 0x2384_154C);
    }

    #[test]
    fn a_superblock_reads_back_in_its_own_slot_only() {
        let superblock = example(4);
        let bytes = encoded(&superblock, 1);
        assert_eq!(decode(&bytes, 1), Slot::Valid(superblock));
        for other in [0, 2, 3] {
            assert_eq!(decode(&bytes, other), Slot::Bad { magic: true, what: "checksum" });
        }
        assert!(matches!(decode(&bytes[..100], 1), Slot::Bad { magic: true, .. }));
    }

    #[test]
    fn what_the_checksum_lets_pass_is_still_checked() {
        let cases: [(usize, u8, &str); 6] = [
            (AT_PAYLOAD_LEN + 1, 0x7f, "payload length"),
            (AT_RESERVED, 1, "reserved bytes"),
            (AT_PAYLOAD + 4, 1, "reserved bytes"),
            (AT_CRC - 1, 1, "reserved bytes"),
            (AT_EPOCH, 5, "epoch in the wrong slot"),
            (AT_FILE_LEN, 1, "file length"),
        ];
        for (at, value, expected) in cases {
            let mut bytes = encoded(&example(4), 0);
            bytes[at] = value;
            match decode(&resealed(bytes, 0), 0) {
                Slot::Bad { magic: true, what } => assert_eq!(what, expected, "byte {at}"),
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_intact_slot_of_a_newer_version_is_refused_even_beside_valid_ones() {
        let mut newer = encoded(&example(5), 2);
        newer[AT_VERSION] = 5;
        let newer = decode(&resealed(newer, 2), 2);
        let slots = [Slot::Valid(example(4)), Slot::Valid(example(4)), newer, Slot::Zero];
        assert!(matches!(choose("f", &slots), Err(Error::UnknownVersion { found: 5, supported: 4, .. })));
    }

    #[test]
    fn copies_that_contradict_each_other_are_corruption() {
        let mut other = example(4);
        other.payload.push(1);
        let slots = [Slot::Valid(example(4)), Slot::Valid(other), Slot::Zero, Slot::Zero];
        assert!(choose("f", &slots).unwrap_err().is_corruption());
        let mut other = example(5);
        other.uuid = 1;
        let slots = [Slot::Valid(example(4)), Slot::Zero, Slot::Valid(other), Slot::Zero];
        assert!(choose("f", &slots).unwrap_err().is_corruption());
    }

    #[test]
    fn without_a_valid_slot_foreign_wiped_and_damaged_files_are_told_apart() {
        let foreign = Slot::Bad { magic: false, what: "magic" };
        let ours = Slot::Bad { magic: true, what: "checksum" };
        let all = |slot: &Slot| [slot.clone(), slot.clone(), slot.clone(), slot.clone()];
        assert!(matches!(choose("f", &all(&foreign)), Err(Error::NotOurs { .. })));
        assert!(matches!(choose("f", &all(&Slot::Zero)), Err(Error::Corruption { .. })));
        let mixed = [foreign, ours, Slot::Zero, Slot::Zero];
        assert!(matches!(choose("f", &mixed), Err(Error::Corruption { .. })));
    }

    /// All slots of a file with epochs 4 and 5, in one string of bytes.
    fn two_epochs() -> Vec<u8> {
        (0..SLOTS).flat_map(|slot| encoded(&example(4 + slot as u64 / 2), slot)).collect()
    }

    fn open(bytes: &[u8]) -> Result<Superblock> {
        let slots: Vec<Slot> = bytes.chunks(SLOT_LEN).enumerate().map(|(i, b)| decode(b, i)).collect();
        choose("f", &slots.try_into().unwrap())
    }

    #[test]
    fn a_flip_of_any_byte_of_any_slot_leaves_the_newest_epoch_readable() {
        let mut bytes = two_epochs();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                bytes[at] ^= flip;
                assert_eq!(open(&bytes).unwrap(), example(5), "byte {at} ^ {flip:#x}");
                bytes[at] ^= flip;
            }
        }
    }

    #[test]
    fn a_tear_of_both_copies_at_any_sector_leaves_one_of_the_two_epochs() {
        let before = [encoded(&example(2), 0), encoded(&example(2), 1)].concat();
        let after = [encoded(&example(4), 0), encoded(&example(4), 1)].concat();
        let previous = [encoded(&example(3), 2), encoded(&example(3), 3)].concat();
        // Every subset of the sixteen 512-byte sectors.
        for subset in 0..1u32 << 16 {
            let mut bytes = before.clone();
            for sector in (0..16).filter(|sector| subset & 1 << sector != 0) {
                let range = sector * 512..(sector + 1) * 512;
                bytes[range.clone()].copy_from_slice(&after[range]);
            }
            // Of the changed bytes only the first and last sector of a slot differ, so the whole epoch is there or not.
            bytes.extend_from_slice(&previous);
            let epoch = open(&bytes).unwrap().epoch.0;
            let copy = |shift: u32| subset >> shift & 0b1000_0001 == 0b1000_0001;
            let whole = copy(0) || copy(8);
            assert_eq!(epoch, if whole { 4 } else { 3 }, "sectors {subset:#018b}");
        }
    }

    #[test]
    fn flips_in_all_four_slots_are_located_corruption() {
        let bytes = two_epochs();
        for at in (0..SLOT_LEN).step_by(7) {
            let mut damaged = bytes.clone();
            for slot in 0..SLOTS {
                damaged[slot * SLOT_LEN + at] ^= 0x10;
            }
            match open(&damaged) {
                Err(Error::Corruption { offset: 0, .. }) => assert!(at >= AT_VERSION),
                Err(Error::NotOurs { .. }) => assert!(at < AT_VERSION),
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }
}
