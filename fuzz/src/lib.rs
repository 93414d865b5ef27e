//! What drives the real engine against the oracle: sessions of random operations, crash simulation, fault runs.
//!
//! `shape` draws options, `session` carries out one operation on engine and oracle and compares, `content` reads a whole
//! database, `audit` moves money from many threads and counts it, `model` runs random operations under random options, `simulate`
//! crashes at every operation of the simulated disk, `campaign` at a sample of them in many lives, `verify` says what must hold after a
//! crash, `summary` adds up what was done, `faults` makes the disk fail, `corrupt` damages its bytes, `salvage` damages whole databases and
//! salvages them, `kills` kills a process that writes to a real disk, `targets` are the bodies of the fuzz targets, `allocation` counts
//! memory. One seed replays a run; every failure names it. Leaf of the workspace: nothing depends on this crate.

pub mod allocation;
pub mod audit;
pub mod campaign;
mod content;
pub mod corrupt;
pub mod faults;
pub mod kills;
pub mod model;
pub mod salvage;
mod session;
mod shape;
pub mod simulate;
mod summary;
pub mod targets;
mod verify;

pub use content::{digest_all, read_all, read_snapshot};
pub use session::{Failure, Place, Session};
pub use shape::{SPACES, Shape};
pub use summary::Summary;

/// Runs `run`; a panic in it becomes a failure like any other.
///
/// # Errors
/// What `run` says, or the text of the panic.
pub fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("panicked: {}", text.unwrap_or_default()))
        }
    }
}
