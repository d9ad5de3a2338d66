//! The thread of all that goes on between the servers: their connections with TLS, and raft's loop.
//!
//! One thread: a message that comes in is decoded, stepped, written and answered without a wake-up in between, and
//! nothing that the rest of the agent does keeps it waiting.

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Ends, with everything that still runs on it, when it is dropped.
pub struct ServerThread {
    runtime: Handle,
    _running: oneshot::Sender<()>,
}

impl ServerThread {
    pub fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the system has descriptors to spare at start");
        let (running, dropped) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        let run = move || _ = runtime.block_on(dropped);
        let thread = std::thread::Builder::new().name("servers".to_owned()).spawn(run);
        thread.expect("the system has a thread to spare at start");
        Self { runtime: handle, _running: running }
    }

    /// Does something on that thread.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.spawn(work).await.expect("it doesn't panic, and nobody ends it")
    }
}
