//! Test support: a simulated disk, the conformance tests that every storage backend passes, an oracle of ordered
//! keyspaces, seeded workloads, and small real file systems.
//!
//! A dev-dependency only; nothing that runs in production names this crate. Panics freely: that is how tests fail.

pub mod conformance;
mod mount;
mod oracle;
mod rng;
mod sim;
mod workload;

pub use mount::{FileSystem, Mount};
pub use oracle::{Change, Content, Digest, Edit, Fold, Oracle, Records};
pub use rng::Rng;
pub use sim::{Cause, CopyPlan, DiskCopy, FaultKind, NAMED_STATES, SimStorage, Spread};
pub use workload::{End, Keys, Op, Workload};
