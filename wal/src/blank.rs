//! The names of log files, and giving a file zeroed space. Called when files are made, recycled and found; holds no locks.

use std::sync::Arc;

use betree_storage::{Caching, File, OpenMode, Storage};

const PREFIX: &str = "log-";
const DIGITS: usize = 16;

/// The name of a log file.
pub(crate) fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:0DIGITS$}")
}

/// The number in a log file's name; none for other files.
pub(crate) fn file_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// What lies under the name of a file to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing.
    NoFile,
    /// A file whose space reads as zeros.
    Zeroed,
    /// A file with records no longer needed.
    Stale,
}

/// Opens or creates the file `name` and gives it `len` bytes of zeroed space.
pub(crate) fn make_blank(
    storage: &dyn Storage,
    name: &str,
    content: Content,
    len: u64,
) -> betree_storage::Result<Arc<dyn File>> {
    let existing = || storage.open(name, OpenMode::Existing, Caching::Buffered);
    let (file, content) = match content {
        Content::NoFile => match storage.open(name, OpenMode::CreateNew, Caching::Buffered) {
            // Left behind by a removal that failed.
            Err(betree_storage::Error::Exists { .. }) => (existing()?, Content::Stale),
            created => (created?, content),
        },
        Content::Zeroed | Content::Stale => (existing()?, content),
    };
    if content != Content::NoFile {
        let had = file.len()?;
        if had > len {
            file.set_len(len)?;
        }
        if content == Content::Stale {
            file.zero_range(0, had.min(len))?;
        }
    }
    file.allocate(0, len)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_sixteen_digits_are_log_files() {
        assert_eq!(file_name(12), "log-0000000000000012");
        assert_eq!(file_number("log-0000000000000012"), Some(12));
        for other in
            ["log-12", "log-00000000000000012", "log-000000000000001x", "data", "log-+000000000000001"]
        {
            assert_eq!(file_number(other), None, "{other}");
        }
    }
}
