//! The integration tests of the crate.

mod api;
mod rescue;
mod tidy;
