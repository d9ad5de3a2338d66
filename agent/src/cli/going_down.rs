//! What this host does before its system goes down: it is emptied, so that its VMs run elsewhere meanwhile.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use super::ask::{AskError, Asked, print};
use super::duration::duration;
use super::node::empty_until_boot;
use crate::config::Config;

/// How long whoever was asked has time to be replaced.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
pub struct GoingDownArgs {
    /// This host's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Wait no longer than this
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Duration,
}

/// Empties this host if its system goes down, and only then: whoever merely stops the unit wants nothing moved.
///
/// It gives up when there is no quorum to move anything: what is left then is stopped with the host.
pub async fn ask(args: &GoingDownArgs) -> Asked {
    if !is_system_stopping()? {
        return print("this host isn't going down: what it runs runs on\n");
    }
    let config = Config::load(&args.config).map_err(AskError::Config)?;
    let socket = config.node.run_dir.join("api.sock");
    let emptied = async {
        loop {
            // What ends the wait is that whoever was asked goes down, too, or that it lost its quorum: another may have it.
            match empty_until_boot(config.name(), &socket).await? {
                Ok(code) => return Ok(code),
                Err(error) => eprintln!("{}", crate::error_chain(&error)),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let too_long = |_| AskError::NotDrained { name: config.name().to_string(), seconds: args.timeout.as_secs() };
    tokio::time::timeout(args.timeout, emptied).await.map_err(too_long)?
}

/// Whether systemd is on its way down, or into a reboot.
fn is_system_stopping() -> Result<bool, AskError> {
    // Its exit status is 0 where it is running, and nothing else.
    let asked = Command::new("systemctl").arg("is-system-running").output().map_err(AskError::Systemctl)?;
    Ok(asked.stdout.trim_ascii() == b"stopping")
}
