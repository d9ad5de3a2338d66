//! Whether this server may go on: by the cluster's level, and by what the others' states are.

use std::sync::Arc;

use blixard_core::command::Command;
use blixard_core::driver::Position;
use blixard_core::state::State;

use super::snapshot::blocking;
use super::{Node, NodeError};
use crate::store::Reader;

impl Node {
    /// # Errors
    /// When this server may not go on.
    pub(super) fn judge(&self, state: &State) -> Result<(), NodeError> {
        let understands = self.understands;
        if let Some(level) = state.level().filter(|level| *level > understands) {
            return Err(NodeError::TooOld { level, understands });
        }
        state.divergence(self.own).map_or(Ok(()), |diverged| Err(NodeError::Diverged(diverged)))
    }

    /// Makes a checkpoint of exactly what is applied now, whose rows are hashed once the store holds them.
    ///
    /// Where an earlier one still waits for the store, this server has nothing to say to the check.
    pub(super) fn mark(&mut self, state: &State, position: Position) {
        self.set_applied(position);
        if !self.keeper.has_cut() {
            self.cut_checkpoint(state);
            self.marked = position.index;
        }
    }

    pub(super) fn hash_if_marked(&self, reader: &Arc<Reader>) {
        let at = reader.checkpoint().position.index;
        if at != self.marked {
            return;
        }
        let (reader, handle, node) = (reader.clone(), self.handle.clone(), self.own);
        tokio::spawn(async move {
            let said = match blocking(move || reader.hash()).await {
                Ok(hash) => {
                    tracing::debug!(at, %hash, "the state is hashed");
                    handle
                        .propose(Command::StateHash { node, at, hash })
                        .await
                        .map_err(|error| crate::error_chain(&error))
                }
                Err(error) => Err(crate::error_chain(&error)),
            };
            if let Err(error) = said {
                tracing::warn!(at, error, "this server has nothing to say to the comparison of states");
            }
        });
    }
}
