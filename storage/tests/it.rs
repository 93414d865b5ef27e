//! The storage's one integration-test binary: real directories, both backends.

#[path = "modules/conformance.rs"]
mod conformance;
#[path = "modules/directory.rs"]
mod directory;
