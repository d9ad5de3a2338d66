//! By what a cluster secret is known where nobody may know the secret itself.

use serde::{Deserialize, Serialize};

/// Which secret it is: derived from it one way, for it alone. It tells secrets apart, and is shown to nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretId(pub [u8; 8]);

impl SecretId {
    /// Of the one that opens what was sealed, which begins with it.
    pub fn of_sealed(sealed: &[u8]) -> Option<Self> {
        sealed.first_chunk().copied().map(Self)
    }
}

/// The cluster secrets that a node has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecretIds {
    pub current: SecretId,
    /// The one that is to take its place.
    pub next: Option<SecretId>,
}

impl SecretIds {
    pub fn contains(&self, id: SecretId) -> bool {
        self.current == id || self.next == Some(id)
    }
}
