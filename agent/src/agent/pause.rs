//! What an agent does that can't go on from its disk, before it ends: it says why, to whoever asks for its status.
//!
//! Its unit starts it again as soon as it has ended. Until a person has made room or mended the disk that comes to the same
//! end, after the log was read and part of it written, so there is a pause in between.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};

use super::{Told, notify, stopped, watchdog};
use crate::api::{self, Stage};

/// How long it says why, unless it is told to stop.
const PAUSE: Duration = Duration::from_secs(30);

/// Returns after the pause, or as soon as the agent is told to stop.
pub async fn pause(run_dir: &Path, reason: String, told: &mut mpsc::Receiver<Told>) {
    notify(&[NotifyState::Status(&reason)]);
    let _fed = watchdog::start();
    let (_stage, stages) = watch::channel(Stage::Broken(reason));
    let answer = async {
        let served = match api::listen(&run_dir.join("api.sock")) {
            Ok(socket) => api::serve(socket, stages, std::future::pending()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::warn!(error = crate::error_chain(&error), "nobody can be told why this agent has stopped");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stopped(told) => {}
        () = tokio::time::sleep(PAUSE) => {}
        () = answer => {}
    }
}
