//! The integration tests of the crate.

mod api;
mod async_reads;
mod backends;
mod compaction;
mod damage;
mod full_device;
mod golden;
mod moments;
mod rescue;
mod tidy;
