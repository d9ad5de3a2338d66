//! What an agent does that can't go on from its disk, before it ends: it says why, to whoever asks for its status.
//!
//! Its unit starts it again as soon as it has ended. Until a person has made room or mended the disk that comes to the same
//! end, after the log was read and part of it written, so there is a pause in between. Of room it can see by itself that it
//! is there again; of a disk that was mended it can't.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};

use super::{Told, notify, stopped, watchdog};
use crate::api::{self, Stage};
use crate::probe;

/// How long it says why, unless it is told to stop or there is room again.
const PAUSE: Duration = Duration::from_secs(30);
/// How often it looks whether there is.
const LOOK: Duration = Duration::from_millis(200);
/// What counts as room: enough for a start, which writes the log's newest segment anew, and for a checkpoint that takes in
/// no snapshot.
const ROOM_BYTES: u64 = 16 << 20;

/// Returns after the pause, or as soon as the agent is told to stop, or the disk of `dir` has room that it lacked.
pub async fn pause(run_dir: &Path, dir: &Path, reason: String, told: &mut mpsc::Receiver<Told>) {
    notify(&[NotifyState::Status(&reason)]);
    let _fed = watchdog::start();
    let (_stage, stages) = watch::channel(Stage::Broken(reason));
    let answer = async {
        let served = match api::listen(&run_dir.join("api.sock")) {
            Ok(socket) => api::serve(socket, api::Service::new(stages, None), std::future::pending()).await,
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
        () = room(dir) => tracing::info!("there is room on the disk again: the agent ends, to be started anew"),
        () = answer => {}
    }
}

/// Returns once the disk of `dir` has room that it lacked.
async fn room(dir: &Path) {
    let (mut room, mut looks) = (Room::default(), tokio::time::interval(LOOK));
    loop {
        looks.tick().await;
        if room.is_back(probe::free_bytes(dir).ok()) {
            return;
        }
    }
}

/// What a disk's room was found to be.
#[derive(Default)]
struct Room {
    lacked: bool,
}

impl Room {
    /// Whether there is room after it was lacking; `free_bytes` is nothing where that can't be told.
    ///
    /// A disk that has had room all the time lacks something else, of which this says nothing.
    fn is_back(&mut self, free_bytes: Option<u64>) -> bool {
        let has_room = free_bytes.is_some_and(|free| free >= ROOM_BYTES);
        self.lacked |= free_bytes.is_some() && !has_room;
        self.lacked && has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At which of these looks the pause is over.
    fn over(looks: &[Option<u64>]) -> Option<usize> {
        let mut room = Room::default();
        looks.iter().position(|free_bytes| room.is_back(*free_bytes))
    }

    #[test]
    fn room_that_was_lacking_ends_the_pause() {
        assert_eq!(over(&[Some(0), Some(ROOM_BYTES - 1), None, Some(ROOM_BYTES)]), Some(3));
        assert_eq!(over(&[Some(ROOM_BYTES), Some(0), Some(u64::MAX)]), Some(2));
    }

    #[test]
    fn a_disk_that_never_lacked_room_or_that_nobody_can_size_does_not() {
        assert_eq!(over(&[Some(ROOM_BYTES), Some(u64::MAX), Some(ROOM_BYTES)]), None);
        assert_eq!(over(&[None, Some(ROOM_BYTES), None, Some(ROOM_BYTES)]), None);
        assert_eq!(over(&[None, None]), None);
    }
}
