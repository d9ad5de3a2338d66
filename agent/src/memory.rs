//! Memory that nobody uses any more goes back to the system.

#![allow(unsafe_code, reason = "the allocator has no safe interface")]

/// Gives back every page that nothing lies on. glibc itself keeps whatever is below the highest thing in use, so a log or
/// rows that were read and are gone would count for ever.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
