//! A readable rendering of the superblocks, for diagnosis. Changes nothing, and works on damaged files.

use std::io::Write;

use betree_storage::{Caching, OpenMode, Storage};

use crate::error::{Error, Result};
use crate::superblock::{self, Slot};
use crate::{FILE_NAME, file};

/// Writes what each superblock slot of the data file in `storage` holds, and which one an open would choose.
pub fn dump(storage: &dyn Storage, out: &mut dyn Write) -> Result<()> {
    let file = storage.open(FILE_NAME, OpenMode::Existing, Caching::Direct)?;
    let slots = file::read_slots(&*file)?;
    let mut text = format!("{FILE_NAME}: {} bytes\n", file.len()?);
    for (index, slot) in slots.iter().enumerate() {
        let line = match slot {
            Slot::Zero => "zeros".to_owned(),
            Slot::Version(version) => format!("unknown format version {version}"),
            Slot::Bad { what, .. } => format!("invalid: {what}"),
            Slot::Valid(s) => {
                let payload: String = s.payload.iter().map(|byte| format!("{byte:02x}")).collect();
                let (epoch, len) = (s.epoch.0, s.payload.len());
                let head = format!("epoch {epoch}, uuid {:032x}, file length {}", s.uuid, s.file_len);
                format!("{head}, payload of {len} bytes {payload}")
            }
        };
        text += &format!("slot {index} at {}: {}\n", superblock::slot_offset(index), line.trim_end());
    }
    text += &match superblock::choose(FILE_NAME, &slots) {
        Ok(newest) => format!("opens at epoch {}\n", newest.epoch.0),
        Err(error) => format!("does not open: {error}\n"),
    };
    out.write_all(text.as_bytes()).map_err(|error| Error::Output { cause: error.to_string() })
}
