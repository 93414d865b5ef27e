//! The latch of the first failed sync.
//!
//! After a failed fdatasync the kernel may drop the dirty pages and report success the next time, so the first failure
//! is kept and answers every later sync of the file. Called by the files, and by the rings when a sync completes there.
//! No lock is held: the first failure is set once.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::{Error, Result};

/// Remembers the first failed sync of one open file.
#[derive(Debug, Default)]
pub struct SyncLatch {
    first: OnceLock<Error>,
}

impl SyncLatch {
    /// A latch that has seen no failure.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The latched failure, as an error.
    pub fn check(&self) -> Result<()> {
        match self.first.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Latches a failure unless there was one before, and returns the first.
    pub fn fail(&self, file: &str, source: io::Error) -> Error {
        self.first
            .get_or_init(|| Error::SyncFailed { file: file.to_owned(), source: Arc::new(source) })
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_answers_every_later_check() {
        let latch = SyncLatch::new();
        assert!(latch.check().is_ok());
        let first = latch.fail("data", io::Error::other("one")).to_string();
        let second = latch.fail("data", io::Error::other("two")).to_string();
        assert_eq!(first, second);
        assert_eq!(latch.check().map_err(|e| e.to_string()), Err(first));
    }
}
