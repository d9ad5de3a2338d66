//! Which VM is placed before which.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How early a VM that is nowhere is placed, from 0 to [`Self::MAX`]: the highest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "u16")]
pub struct Priority(u16);

/// Why something is no priority.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is no priority: it is a number from 0 to {max}", max = Priority::MAX)]
pub struct InvalidPriority(String);

impl Priority {
    pub const MAX: Self = Self(1000);

    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Half way, so that there is room on both sides.
impl Default for Priority {
    fn default() -> Self {
        Self(Self::MAX.0 / 2)
    }
}

impl TryFrom<u16> for Priority {
    type Error = InvalidPriority;

    fn try_from(number: u16) -> Result<Self, InvalidPriority> {
        if number > Self::MAX.0 { Err(InvalidPriority(number.to_string())) } else { Ok(Self(number)) }
    }
}

impl FromStr for Priority {
    type Err = InvalidPriority;

    fn from_str(text: &str) -> Result<Self, InvalidPriority> {
        text.parse::<u16>().map_err(|_| InvalidPriority(text.to_owned()))?.try_into()
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_no_priority_is_refused_and_the_range_is_said() {
        for number in [0, 1000] {
            let priority = Priority::try_from(number).unwrap();
            assert_eq!(priority.to_string().parse(), Ok(priority));
        }
        let error = serde_json::from_str::<Priority>("1001").unwrap_err().to_string();
        assert!(error.contains("1001") && error.contains("0 to 1000"), "{error}");
        for text in ["-1", "1001", "70000", "high", ""] {
            assert_eq!(text.parse::<Priority>(), Err(InvalidPriority(text.to_owned())));
        }
    }
}
