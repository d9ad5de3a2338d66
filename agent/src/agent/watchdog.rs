//! systemd's watchdog: fed only while the node's loop answers.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::node::Handle;

/// Whom the watchdog asks; nobody while the agent waits for other hosts.
type Asked = Option<Handle>;

/// Feeds it from now on, if the unit has one. It ends when what this returns is dropped.
pub fn start() -> watch::Sender<Asked> {
    let (asked, mut asking) = watch::channel(None::<Handle>);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            let mut beats = tokio::time::interval((limit / 3).max(Duration::from_millis(100)));
            loop {
                tokio::select! {
                    _ = beats.tick() => {}
                    gone = asking.wait_for(|_| false) => if gone.is_err() { return },
                }
                let handle = asking.borrow().clone();
                let answers = match handle {
                    Some(handle) => handle.responds().await,
                    None => true,
                };
                if answers {
                    super::notify(&[NotifyState::Watchdog]);
                }
            }
        });
    }
    asked
}
