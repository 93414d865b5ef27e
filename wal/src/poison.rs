//! The first failed sync is final: what the device holds above the durable Lsn is unknown from then on, and a later
//! sync that succeeds proves nothing. Called wherever something is synced, and before every change.

use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::files::Shared;

impl Shared {
    /// Latches a failed sync and says what callers get.
    pub fn poison(&self, error: betree_storage::Error) -> Error {
        let mut poison = self.poison.lock();
        let cause = poison.get_or_insert(error).clone();
        self.poisoned.store(true, Ordering::Release);
        Error::Poisoned { cause }
    }

    /// The error of a poisoned log.
    pub fn check_poison(&self) -> Result<()> {
        if !self.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.poison.lock().clone() {
            Some(cause) => Err(Error::Poisoned { cause }),
            None => Ok(()),
        }
    }
}
