//! Real-time priority: what must act within seconds doesn't wait for what only wants to.

#![allow(unsafe_code, reason = "rustix has no sched_setscheduler")]

use std::io;

/// The lowest of the real-time priorities is before everything that has none.
const PRIORITY: i32 = 1;

/// Run this thread before all that has no real-time priority; what it starts doesn't.
///
/// # Errors
/// It isn't allowed to: by the limits of its unit, or within some control groups.
pub fn raise() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: it reads the parameters, which outlive the call.
    let done =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
