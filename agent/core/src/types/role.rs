//! Servers and workers.

use serde::{Deserialize, Serialize};

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
