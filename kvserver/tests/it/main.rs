//! Integration tests: each starts the real binary on a free port and speaks to it over sockets.

mod commands;
mod concurrency;
mod differential;
mod harness;
mod lifecycle;
mod loading;
mod malformed;
mod pipelines;
