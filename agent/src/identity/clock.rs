//! What time it is for certificates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// This host's clock; tests have one that is ahead of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    pub ahead: Duration,
}

impl Clock {
    pub fn now(self) -> SystemTime {
        SystemTime::now() + self.ahead
    }

    /// Time since 1970.
    pub(super) fn unix(self) -> Duration {
        self.now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.unix()))
    }
}
