//! The integration tests of the crate.

mod api;
mod backends;
mod full_device;
mod moments;
mod rescue;
mod tidy;
