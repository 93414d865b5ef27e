//! After a failure that leaves the state of written data unknown, no write is accepted any more; reads go on.

use std::sync::OnceLock;

use crate::{Error, Result};

/// Set once, by the first such failure.
#[derive(Debug, Default)]
pub(crate) struct Poison(OnceLock<String>);

impl Poison {
    /// Records the failure; the first one stays.
    pub(crate) fn set(&self, cause: &Error) {
        let _ = self.0.set(cause.to_string());
    }

    /// Records the failure before a write that had no effect yet: its writer is told what every writer after it is told.
    pub(crate) fn refuse(&self, cause: &Error) -> Error {
        self.set(cause);
        Error::Poisoned { cause: self.cause().unwrap_or_default().to_string() }
    }

    /// Records a failed assert in background work.
    pub(crate) fn set_panicked(&self) {
        let _ = self.0.set("background work panicked".to_string());
    }

    /// The failure, if one was recorded.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Fails if a failure was recorded.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
        }
    }
}
