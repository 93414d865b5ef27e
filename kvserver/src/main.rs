//! The `kvserver` binary: chooses the allocator and hands over to the command line.

use std::process::ExitCode;

/// The allocator of musl is slow under many small, short-lived buffers; one allocator everywhere makes builds behave alike.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kvserver::cli::run()
}
