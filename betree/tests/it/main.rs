//! The integration tests of the crate.

mod api;
mod damage;
mod tidy;
