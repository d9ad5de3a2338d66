//! `blixard fence`: what its unit runs.

use std::path::PathBuf;
use std::process::ExitCode;

use blixard_core::fence::Request;
use clap::Subcommand;

use super::ask::AskError;
use crate::config::Config;
use crate::fence::{self, Settings};
use crate::probe;

#[derive(Subcommand, Debug)]
pub enum FenceVerb {
    /// Be this host's fence (`ExecStart=`)
    Run {
        /// This host's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Have this host's fence stop everything, and end (`ExecStop=`)
    End {
        /// This host's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Returns when the fence has ended.
pub fn run(verb: &FenceVerb) -> Result<ExitCode, AskError> {
    match verb {
        FenceVerb::Run { config } => {
            let config = Config::load(config).map_err(AskError::Config)?;
            let is_allowed = config.fence.allow_virtual_hosts;
            fence::run(Settings {
                socket: fence::socket_in(&config.node.run_dir),
                control_groups: fence::control_groups(),
                watchdog: config.fence.watchdog,
                hypervisor: probe::hypervisor().filter(|_| !is_allowed),
            })
            .map_err(AskError::Fence)?;
        }
        FenceVerb::End { config } => {
            let config = Config::load(config).map_err(AskError::Config)?;
            fence::ask(&fence::socket_in(&config.node.run_dir), &Request::End).map_err(AskError::EndFence)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
