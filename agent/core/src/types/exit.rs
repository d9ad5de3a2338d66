//! How a process ended, and what follows for its instance.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether an instance that ended is started again, on the node where it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn restarts_after(self, exit: &Exit) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !exit.is_success(),
            Self::Never => false,
        }
    }
}

/// How a process ended, in systemd's words (`EXIT_CODE`, `EXIT_STATUS` in `systemd.exec(5)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It ended by itself, with this status.
    Exited(i32),
    /// A signal of this number ended it.
    Killed(i32),
    /// It was never started: the reason is in the node's journal.
    NotStarted,
    /// The host went down under it.
    HostRestarted,
}

impl Exit {
    pub fn is_success(&self) -> bool {
        *self == Self::Exited(0)
    }
}
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
            Self::NotStarted => write!(f, "could not be started"),
            Self::HostRestarted => write!(f, "its host restarted"),
        }
    }
}
