//! The comparison of betree with other engines, and the tests that need a process of their own.
//!
//! `compare` runs every engine through the same phases, one child process per phase, each child in a memory control group
//! of the same size, and renders what they measured. `kill-test` kills a loading process at random moments and checks
//! what is left. The library half exists so that the Criterion benches derive the same records.
//!
//! Layers, each naming only those before it: `record`, `latency`, `series`, `meter`, `limit`, `host` → `engine` and its adapters →
//! `phases` (in the child) → `compare`, `report`, `plot` (in the parent) and `kill_test`.

pub mod args;
pub mod compare;
pub mod engine;
mod engines;
pub mod host;
pub mod kill_test;
pub mod latency;
pub mod limit;
pub mod meter;
pub mod phases;
pub mod plot;
pub mod record;
pub mod report;
pub mod series;

/// The name of the allocator that the Rust engines use in this build.
pub const ALLOCATOR: &str =
    if cfg!(feature = "mimalloc") { "mimalloc without huge pages" } else { "the system's" };
