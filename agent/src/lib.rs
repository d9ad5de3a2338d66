//! The IO shell around `blixard-core`: one room a file, which meet in `node`, `worker` and `agent` only.

use std::error::Error;

pub mod agent;
pub mod api;
mod background;
pub mod boot_time;
pub mod cli;
pub mod config;
pub mod fence;
pub mod gate;
pub mod identity;
pub mod log;
pub mod memory;
pub mod nix;
pub mod node;
pub mod probe;
pub mod seat;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod units;
pub mod worker;

/// An error and its causes on one line, each once.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let next = inner.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = inner.source();
    }
    text
}
