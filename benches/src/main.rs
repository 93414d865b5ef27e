//! The command line: compares engines, kills betree, and is its own child for both.

use std::process::ExitCode;

use betree_bench::args::{Args, Command};
use betree_bench::{compare, kill_test, phases};
use clap::Parser;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Compare(args) => compare::run(&args),
        Command::RunOne { spec } => phases::run_one(&spec).map(|()| true),
        Command::KillTest(args) => kill_test::run(&args),
        Command::KillWriter { spec } => kill_test::run_writer(&spec).map(|()| true),
        Command::KillVerifier { spec } => kill_test::run_verifier(&spec).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("betree-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}
