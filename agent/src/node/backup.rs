//! A backup while the node goes on: of a checkpoint that has everything which was applied when it was asked for.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::types::NodeName;
use tokio::sync::{mpsc, oneshot};

use super::{Handle, Input, Node, ProposeError, now};
use crate::background;
use crate::store::{BackupHead, Reader, write_backup};

/// Pieces that are read and not taken yet.
const PIECES_AHEAD: usize = 2;

/// How long a checkpoint may take: the first after a snapshot fills all tables anew.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(120);

/// Who waits for a checkpoint, and of what at least.
pub(super) struct Awaited {
    index: u64,
    answer: oneshot::Sender<Arc<Reader>>,
}

/// The file, piece by piece; the last one may be why there is no more.
pub type Pieces = mpsc::Receiver<Result<Vec<u8>, String>>;

impl Handle {
    /// A backup of all that this node has applied by now, which goes on no faster than it is taken.
    ///
    /// # Errors
    /// `Stopped`, also where there is no cluster yet; `Busy`.
    pub async fn backup(&self) -> Result<Pieces, ProposeError> {
        let (answer, answered) = oneshot::channel();
        self.send(Input::Checkpoint(answer))?;
        let answered = tokio::time::timeout(CHECKPOINT_PATIENCE, answered).await.map_err(|_| ProposeError::Busy)?;
        let reader = answered.map_err(|_| ProposeError::Stopped)?;
        let about = self.read(|state, standing| {
            let by: NodeName = state.nodes().get(&standing.node)?.name.clone();
            Some(BackupHead { level: state.level()?, position: reader.checkpoint().position, taken_at: now(), by })
        });
        let head = about?.ok_or(ProposeError::Stopped)?;
        let (out, pieces) = mpsc::channel(PIECES_AHEAD);
        let read = move || {
            let put = |piece| match out.blocking_send(Ok(piece)) {
                Ok(()) => ControlFlow::Continue(()),
                // Whoever took it has gone.
                Err(_) => ControlFlow::Break(()),
            };
            if let Err(error) = write_backup(&reader, &head, put) {
                let _ = out.blocking_send(Err(crate::error_chain(&error)));
            }
        };
        background::spawn("backup", read).map_err(|_| ProposeError::Busy)?;
        Ok(pieces)
    }
}

impl Node {
    /// A checkpoint is to be made of what is applied, unless the store has it.
    pub(super) fn await_checkpoint(&mut self, answer: oneshot::Sender<Arc<Reader>>) {
        self.awaited.push(Awaited { index: self.applied, answer });
        self.serve_checkpoints();
        self.checkpoint_if_due();
    }

    pub(super) fn serve_checkpoints(&mut self) {
        let Some(latest) = &self.snapshots.latest else { return };
        let held = latest.checkpoint().position.index;
        for Awaited { answer, .. } in self.awaited.extract_if(.., |awaited| awaited.index <= held) {
            // Whoever asked may have gone.
            let _ = answer.send(latest.clone());
        }
    }
}
