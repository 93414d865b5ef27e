//! What drives the real engine against the oracle: sessions of random operations, crash simulation, fault runs.
//!
//! `shape` draws options, `session` carries out one operation on engine and oracle and compares, `content` reads a whole
//! database, `model` runs random operations under random options, `simulate` crashes at every operation of the simulated disk,
//! `faults` makes the disk fail, `corrupt` damages its bytes,
//! `targets` are the bodies of the fuzz targets, `allocation` counts memory. One seed replays a run; every failure names it. Leaf of the workspace: nothing depends on this crate.

pub mod allocation;
mod content;
pub mod corrupt;
pub mod faults;
pub mod model;
mod session;
mod shape;
pub mod simulate;
pub mod targets;

pub use content::{read_all, read_snapshot};
pub use session::{Failure, Place, Session};
pub use shape::{SPACES, Shape};

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
