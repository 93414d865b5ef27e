//! Integration tests: each starts the real binary on a free port and speaks to it over sockets.

mod commands;
mod concurrency;
mod device;
mod differential;
mod harness;
mod kills;
mod lifecycle;
mod loading;
mod malformed;
mod memory;
mod pipelines;
