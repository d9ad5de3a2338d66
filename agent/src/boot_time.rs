//! The clock that leases are counted by.

use blixard_core::types::BootTime;
use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME`: it counts while the host is suspended, and nobody sets it.
#[must_use]
pub fn now() -> BootTime {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    let since_boot = seconds.ok().zip(nanos.ok()).expect("it begins at 0");
    BootTime(since_boot.0 * 1_000_000_000 + since_boot.1)
}
