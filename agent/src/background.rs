//! Threads for what can wait: raft's loop comes first where the processors have too much to do.

use std::io;

use rustix::process::setpriority_process;

/// By how much they stand back.
const NICE: i32 = 10;

/// Does something that takes the processor for long, and holds no lock for long that the loop may want.
///
/// # Errors
/// When the system has no thread to spare.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let stand_back = move || {
        // On Linux that is of this thread alone, and always allowed.
        if let Err(error) = setpriority_process(None, NICE) {
            tracing::warn!(%error, "a thread in the background runs as all others do");
        }
        work();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(stand_back).map(|_| ())
}
