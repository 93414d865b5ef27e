//! The pager over real and simulated disks. One binary; each module tests one part of the contract.

#[path = "it/cache.rs"]
mod cache;
#[path = "it/common.rs"]
mod common;
#[path = "it/crash.rs"]
mod crash;
#[path = "it/pages.rs"]
mod pages;
#[path = "it/recovery.rs"]
mod recovery;
#[path = "it/space.rs"]
mod space;
