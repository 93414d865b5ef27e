//! The integration tests of the crate.

mod api;
mod moments;
mod rescue;
mod tidy;
