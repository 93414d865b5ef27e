//! The integration tests of the crate.

mod api;
mod full_device;
mod tidy;
