//! Servers and workers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidValue, excerpt};

/// What a host may be in its cluster, as its configuration says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// A server where the cluster needs one, else a worker alone.
    #[default]
    Auto,
    /// A server before any that isn't declared one; it follows the log also while it has no vote.
    Server,
    /// Never a server.
    Worker,
}

impl FromStr for NodeRole {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "auto" => Ok(Self::Auto),
            "server" => Ok(Self::Server),
            "worker" => Ok(Self::Worker),
            _ => Err(InvalidValue::Role { text: excerpt(text) }),
        }
    }
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Server => "server",
            Self::Worker => "worker",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_reads_back_as_it_is_written() {
        for role in [NodeRole::Auto, NodeRole::Server, NodeRole::Worker] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("leader".parse::<NodeRole>().unwrap_err().to_string().contains("auto, server or worker"));
    }
}
