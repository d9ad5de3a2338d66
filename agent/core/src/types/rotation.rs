//! How far a node has come while one authority takes another's place.

use serde::{Deserialize, Serialize};

/// How far a node has come with a rotation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RotationStep {
    /// The log entry with which the rotation began.
    pub began: u64,
    /// Whether it shows a certificate of the new authority, too, and doesn't only trust that.
    pub is_reissued: bool,
}
