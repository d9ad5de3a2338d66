//! Whether what a cluster answered is linearizable: clients that write down what they are answered, and two checkers.
//!
//! ```text
//! history load --agent /run/blixard/api.sock --prefix try --history try.history --seconds 10
//! history close --agent /run/blixard/api.sock --history try.history
//! history check try.history
//! ```
//!
//! `tests/what_was_answered_is_linearizable` lets it run against three hosts while those have every misfortune there is.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod api;
mod load;
mod member;
mod record;
mod replay;
mod report;
mod search;
#[cfg(test)]
mod tests;
mod vm;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Change and read registers, by many clients at once
    Load(load::Options),
    /// Once all is well again: read every register on every agent, and remove them
    Close(load::CloseOptions),
    /// Check histories, each on its own; the exit status is 1 if one isn't linearizable
    Check(CheckOptions),
}

#[derive(Args)]
struct CheckOptions {
    /// How many questions have to be answered, so that nothing isn't taken for good
    #[arg(long, default_value_t = 1)]
    least: usize,
    #[arg(required = true)]
    histories: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Options::parse().verb {
        Verb::Load(options) => block_on(load::run(&options)),
        Verb::Close(options) => block_on(load::close(&options)),
        Verb::Check(options) => check(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn block_on(done: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the system can poll").block_on(done)
}

fn check(options: &CheckOptions) -> Result<(), String> {
    let mut all = report::Report::default();
    for path in &options.histories {
        let report = report::Report::of(&record::read(path)?);
        report.print_violations(path);
        all.add(report);
    }
    println!("{all}");
    if all.violations() > 0 {
        return Err("what was answered is not linearizable".to_owned());
    }
    if all.is_undecided() {
        return Err("too much has no verdict: give the checkers shorter histories".to_owned());
    }
    if all.answered < options.least {
        return Err(format!("{} questions were answered, fewer than {}", all.answered, options.least));
    }
    Ok(())
}
