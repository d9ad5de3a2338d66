//! Whether a person lets the cluster place anything on a node.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a person wants of a node, for the time being.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Availability {
    #[default]
    Active,
    /// Nothing is placed on it; what it runs runs on.
    Cordoned,
    /// Nothing is placed on it, and what it runs goes elsewhere, one after the other.
    Draining,
    /// As `Draining`, until its host has booted.
    Rebooting,
}

impl Availability {
    /// Whether what such a node runs is to go elsewhere.
    pub fn is_emptied(self) -> bool {
        matches!(self, Self::Draining | Self::Rebooting)
    }
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Rebooting => "rebooting",
        })
    }
}
