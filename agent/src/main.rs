//! The `blixard` binary.

use std::process::ExitCode;

use blixard::cli::{Cli, run};
use clap::Parser as _;

fn main() -> ExitCode {
    run(Cli::parse())
}
