//! By what a host knows the cluster that it is to join.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ClusterId, Hash, InvalidValue, excerpt, text_newtype};

/// A cluster, and the key of its authority, written as `CLUSTER:KEY` in hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustAnchor {
    pub cluster: ClusterId,
    /// SHA-256 of the authority's public key (SPKI, DER).
    pub authority: Hash,
}

impl FromStr for TrustAnchor {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let parse =
            |(cluster, key): (&str, &str)| Some(Self { cluster: cluster.parse().ok()?, authority: key.parse().ok()? });
        text.split_once(':').and_then(parse).ok_or_else(|| InvalidValue::TrustAnchor { text: excerpt(text) })
    }
}

impl fmt::Display for TrustAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cluster, self.authority)
    }
}

text_newtype!(TrustAnchor);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_reads_back_as_it_was_written() {
        let anchor = TrustAnchor { cluster: ClusterId::from_bytes([7; 16]), authority: Hash::of(b"a key") };
        let text = anchor.to_string();
        assert_eq!((text.len(), text.parse()), (97, Ok(anchor)));
        for text in ["", ":", &text[1..], &text[..96], &text.replace(':', ""), &format!("{text}:")] {
            let error = text.parse::<TrustAnchor>().expect_err(text).to_string();
            assert!(error.contains("blixard cluster authority"), "{error}");
        }
    }
}
