//! The `kvserver` binary: chooses the allocator and hands over to the command line.

use std::process::ExitCode;

/// The allocator of musl is slow under many small, short-lived buffers; one allocator everywhere makes builds behave alike. It is built not to ask for huge
/// pages (feature `no_thp`): with them each thread takes some 6 MiB more than anybody asked for, and the server more than its budget.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kvserver::cli::run()
}
