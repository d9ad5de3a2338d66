//! Tasks that end with the transport, or with one connection.

use std::sync::Arc;

use tokio::sync::watch;

/// Spawns what ends when the transport does.
#[derive(Clone, Default)]
pub struct Tasks(pub(super) Arc<watch::Sender<bool>>);

impl Tasks {
    pub fn spawn(&self, task: impl Future + Send + 'static) {
        let mut closing = self.0.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => {}
                _ = task => {}
            }
        });
    }

    pub fn begin_close(&self) {
        self.0.send_replace(true);
    }

    /// Each task holds a receiver until it is gone.
    pub async fn close(&self) {
        self.begin_close();
        self.0.closed().await;
    }
}

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.spawn(future);
    }
}
