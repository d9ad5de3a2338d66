//! How long a node may act unheard, and what a lease is named by.
//!
//! ```text
//!   sent ────────── lease ──────────▶ D ── kill ──▶ nothing runs
//!   └ … granted ────────────────── wait ───────────────────────▶ its instances may start elsewhere
//! ```

use std::fmt;
use std::time::Duration;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// How far two clocks may differ in rate, in thousandths: that of a machine without any synchronization, ten times over.
const CLOCK_ERROR_PER_MILLE: u64 = 5;
/// Longest time from a leader's loss until the next one leads, in milliseconds, with room for a second attempt.
const ELECTION_MS: u32 = 1000;
/// The least that a fence needs: it and its watchdogs count in seconds.
const MIN_KILL_MS: u32 = 2000;
/// Longest lease: whatever is longer is no failover.
const MAX_LEASE_MS: u32 = 600_000;

/// How often a node has armed its fence; ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct NodeEpoch(pub u64);

impl NodeEpoch {
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for NodeEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Drawn by a fence each time it has seen that nothing runs that it would have to stop, and used to arm it once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Nonce(pub [u8; 16]);

/// What becomes of an instance whose node isn't heard any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failover {
    /// Its node's fence stops it in time, and it starts elsewhere.
    #[default]
    Automatic,
    /// It runs on, and starts elsewhere only once a person says that its node is dead.
    Manual,
}

impl fmt::Display for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Automatic => "automatic",
            Self::Manual => "manual",
        })
    }
}

/// A point in time on one host's `CLOCK_BOOTTIME`, which counts while the host is suspended, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long it is until `later`; nothing if that has passed.
    #[must_use]
    pub const fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// The times that keep an instance from running twice, in milliseconds; they fit together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct LeaseTerms {
    #[serde(rename = "leaseMs")]
    lease: u32,
    #[serde(rename = "renewMs")]
    renew: u32,
    #[serde(rename = "killMs")]
    kill: u32,
    #[serde(rename = "waitMs")]
    wait: u32,
}

/// Why times, in milliseconds, don't fit together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidLease {
    #[error("a lease of {lease} ms: more than {MAX_LEASE_MS} ms is no failover")]
    Lease { lease: u32 },
    #[error("renewed every {renew} ms, a lease of {lease} ms can't lose a message or two: at most {max} ms")]
    Renew { renew: u32, lease: u32, max: u32 },
    #[error("a lease of {lease} ms ends before a new leader can renew it: more than {min} ms with this renewal")]
    Election { lease: u32, min: u32 },
    #[error("{kill} ms for a fence to stop everything: at least {MIN_KILL_MS} ms")]
    Kill { kill: u32 },
    #[error(
        "after {wait} ms an instance could start elsewhere while it still runs: a lease of {lease} ms and {kill} ms \
         to stop everything take up to {min} ms on clocks that differ"
    )]
    Wait { wait: u32, lease: u32, kill: u32, min: u32 },
}

impl LeaseTerms {
    /// For a wired local network.
    pub const FAST: Self = Self { lease: 5_000, renew: 1_000, kill: 3_000, wait: 9_000 };
    pub const DEFAULT: Self = Self { lease: 10_000, renew: 2_000, kill: 5_000, wait: 16_000 };
    /// For networks and hosts that stall.
    pub const RELAXED: Self = Self { lease: 30_000, renew: 5_000, kill: 15_000, wait: 50_000 };

    /// # Errors
    /// Which of the times doesn't fit the others.
    pub fn new(lease: u32, renew: u32, kill: u32, wait: u32) -> Result<Self, InvalidLease> {
        if lease > MAX_LEASE_MS {
            return Err(InvalidLease::Lease { lease });
        }
        if renew == 0 || renew > lease / 4 {
            return Err(InvalidLease::Renew { renew, lease, max: lease / 4 });
        }
        let min = ELECTION_MS + 2 * renew;
        if lease <= min {
            return Err(InvalidLease::Election { lease, min });
        }
        if !(MIN_KILL_MS..=MAX_LEASE_MS).contains(&kill) {
            return Err(InvalidLease::Kill { kill });
        }
        let min = min_wait_ms(lease, kill);
        if wait < min {
            return Err(InvalidLease::Wait { wait, lease, kill, min });
        }
        Ok(Self { lease, renew, kill, wait })
    }

    /// How long a node may act after it has sent a renewal that was granted.
    #[must_use]
    pub fn lease(self) -> Duration {
        Duration::from_millis(self.lease.into())
    }

    /// How often it is renewed.
    #[must_use]
    pub fn renew(self) -> Duration {
        Duration::from_millis(self.renew.into())
    }

    /// How long a fence may take, after that, until nothing runs.
    #[must_use]
    pub fn kill(self) -> Duration {
        Duration::from_millis(self.kill.into())
    }

    /// How long a leader waits after its last grant until it takes instances over.
    #[must_use]
    pub fn wait(self) -> Duration {
        Duration::from_millis(self.wait.into())
    }

    /// After how long without a sign of life a fence is killed, and what depends on it stops: a third of what it has.
    #[must_use]
    pub fn fence_watchdog(self) -> Duration {
        self.kill() / 3
    }

    /// After how long without a sign of life the host is reset, in whole seconds: two thirds of what the fence has.
    #[must_use]
    pub fn device_timeout_seconds(self) -> u32 {
        self.kill * 2 / 3000
    }
}

impl fmt::Display for LeaseTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::FAST => f.write_str("fast"),
            Self::DEFAULT => f.write_str("default"),
            Self::RELAXED => f.write_str("relaxed"),
            Self { lease, renew, kill, wait } => {
                write!(f, "{lease}/{renew}/{kill}/{wait} ms")
            }
        }
    }
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// As JSON a profile's name, or the four times.
impl<'de> Deserialize<'de> for LeaseTerms {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(ProfileOrTimes)
        } else {
            Times::deserialize(deserializer)?.check()
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Times {
    #[serde(rename = "leaseMs")]
    lease: u32,
    #[serde(rename = "renewMs")]
    renew: u32,
    #[serde(rename = "killMs")]
    kill: u32,
    #[serde(rename = "waitMs")]
    wait: u32,
}

impl Times {
    fn check<E: de::Error>(self) -> Result<LeaseTerms, E> {
        LeaseTerms::new(self.lease, self.renew, self.kill, self.wait).map_err(E::custom)
    }
}

struct ProfileOrTimes;

impl<'de> Visitor<'de> for ProfileOrTimes {
    type Value = LeaseTerms;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"fast\", \"default\", \"relaxed\", or leaseMs, renewMs, killMs and waitMs")
    }

    fn visit_str<E: de::Error>(self, profile: &str) -> Result<LeaseTerms, E> {
        match profile {
            "fast" => Ok(LeaseTerms::FAST),
            "default" => Ok(LeaseTerms::DEFAULT),
            "relaxed" => Ok(LeaseTerms::RELAXED),
            _ => Err(E::invalid_value(de::Unexpected::Str(profile), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<LeaseTerms, A::Error> {
        Times::deserialize(de::value::MapAccessDeserializer::new(map))?.check()
    }
}

/// W ≥ (1 + ρ) · (L / (1 − ρ) + K): the node's clock slow, the leader's fast.
fn min_wait_ms(lease: u32, kill: u32) -> u32 {
    let (fast, slow) = (1000 + CLOCK_ERROR_PER_MILLE, 1000 - CLOCK_ERROR_PER_MILLE);
    let min = (fast * u64::from(lease)).div_ceil(slow) + (fast * u64::from(kill)).div_ceil(1000);
    u32::try_from(min).expect("both are at most ten minutes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(terms: LeaseTerms) -> (u32, u32, u32, u32) {
        (terms.lease, terms.renew, terms.kill, terms.wait)
    }

    #[test]
    fn the_profiles_keep_to_the_rule() {
        for (profile, min) in [(LeaseTerms::FAST, 8_066), (LeaseTerms::DEFAULT, 15_126), (LeaseTerms::RELAXED, 45_377)]
        {
            let (lease, renew, kill, wait) = times(profile);
            assert_eq!(LeaseTerms::new(lease, renew, kill, wait), Ok(profile));
            assert_eq!(min_wait_ms(lease, kill), min);
            let one_short = LeaseTerms::new(lease, renew, kill, min - 1);
            assert_eq!(one_short, Err(InvalidLease::Wait { wait: min - 1, lease, kill, min }));
            assert!(profile.fence_watchdog() < profile.kill(), "a hung fence is found in time");
            let device = Duration::from_secs(profile.device_timeout_seconds().into());
            assert!(device >= Duration::from_secs(1) && device < profile.kill());
        }
    }

    #[test]
    fn the_wait_covers_the_slowest_node_before_the_fastest_leader() {
        for (lease, kill) in [(5_000, 3_000), (10_000, 5_000), (600_000, 600_000), (1_001, 2_000)] {
            let rate = 0.005;
            let exact = (1.0 + rate) * (f64::from(lease) / (1.0 - rate) + f64::from(kill));
            let min = f64::from(min_wait_ms(lease, kill));
            assert!(min >= exact && min < exact + 2.0, "{min} {exact}");
        }
    }

    #[test]
    fn times_that_do_not_fit_are_refused_and_which_is_said() {
        assert!(matches!(LeaseTerms::new(600_001, 1, 3_000, u32::MAX), Err(InvalidLease::Lease { .. })));
        assert!(matches!(LeaseTerms::new(5_000, 1_251, 3_000, 9_000), Err(InvalidLease::Renew { max: 1_250, .. })));
        assert!(matches!(LeaseTerms::new(5_000, 0, 3_000, 9_000), Err(InvalidLease::Renew { .. })));
        assert!(matches!(LeaseTerms::new(2_000, 500, 3_000, 9_000), Err(InvalidLease::Election { min: 2_000, .. })));
        assert!(matches!(LeaseTerms::new(5_000, 1_000, 1_999, 9_000), Err(InvalidLease::Kill { .. })));
        let json = r#"{"leaseMs":5000,"renewMs":1000,"killMs":3000,"waitMs":8000}"#;
        let error = serde_json::from_str::<LeaseTerms>(json).unwrap_err().to_string();
        assert!(error.contains("8000 ms") && error.contains("8066 ms"), "{error}");
        let error = serde_json::from_str::<LeaseTerms>(r#""slow""#).unwrap_err().to_string();
        assert!(error.contains("slow") && error.contains("relaxed"), "{error}");
    }

    #[test]
    fn they_are_read_back_as_they_were_written() {
        let own = LeaseTerms::new(6_000, 1_000, 4_000, 11_000).unwrap();
        let json = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<LeaseTerms>(&json).unwrap(), own);
        assert_eq!(serde_json::from_str::<LeaseTerms>(r#""fast""#).unwrap(), LeaseTerms::FAST);
        let row = postcard::to_stdvec(&own).unwrap();
        assert_eq!(postcard::from_bytes::<LeaseTerms>(&row).unwrap(), own);
    }
}
