//! Where the log goes: journald under systemd, standard error on a terminal.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging; `BLIXARD_LOG` sets what (default `info`), in the syntax of tracing's `EnvFilter`.
pub fn start() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("BLIXARD_LOG")
        .from_env_lossy();
    let registry = tracing_subscriber::registry().with(filter);
    // Set by systemd where standard error is the journal.
    let under_journald = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    match tracing_journald::layer() {
        Ok(journald) if under_journald => registry.with(journald.with_field_prefix(Some("BLIXARD".to_owned()))).init(),
        _ => {
            let plain = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            registry.with(plain.with_ansi(std::io::stderr().is_terminal())).init();
        }
    }
}
