//! Which of its beginnings a cluster goes back to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidValue, excerpt};

/// A cluster begins when it is founded, and again each time that it is recovered or restored. Written as `2-1f3a9c04`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterEpoch {
    /// Counts from 1.
    pub number: u64,
    /// Drawn, so that two hosts which both begin the same cluster anew have not begun the same one.
    pub tag: u32,
}

impl ClusterEpoch {
    pub const FIRST: Self = Self { number: 1, tag: 0 };

    #[must_use]
    pub fn next(self, tag: u32) -> Self {
        Self { number: self.number + 1, tag }
    }
}

impl FromStr for ClusterEpoch {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let parsed = text.split_once('-').and_then(|(number, tag)| {
            Some(Self { number: number.parse().ok()?, tag: u32::from_str_radix(tag, 16).ok()? })
        });
        // One form each: it is part of a name in certificates.
        let exact = parsed.filter(|epoch| epoch.to_string() == text);
        exact.ok_or_else(|| InvalidValue::Epoch { text: excerpt(text) })
    }
}

impl fmt::Display for ClusterEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.number, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_of_an_epoch_is_read() {
        let epoch = ClusterEpoch::FIRST.next(0x1f);
        assert_eq!((epoch.to_string(), "2-0000001f".parse().ok()), ("2-0000001f".to_owned(), Some(epoch)));
        for bad in ["", "2", "2-1f", "2-0000001F", "02-0000001f", "+2-0000001f", "2-0000001f-", "2-10000001f"] {
            assert!(bad.parse::<ClusterEpoch>().is_err(), "{bad}");
        }
    }
}
