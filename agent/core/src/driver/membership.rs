//! Who votes, who learns, and how that changes: one server at a time, never through a joint configuration.

use std::collections::BTreeSet;
use std::fmt;

use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType};
use raft_prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::types::RaftId;

/// The servers of a Raft group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Membership {
    pub voters: BTreeSet<RaftId>,
    /// They get the log and have no vote.
    pub learners: BTreeSet<RaftId>,
}

impl Membership {
    /// The group as it was founded. Every blank server starts from it and learns the rest from the log.
    pub fn founded_by(founder: RaftId) -> Self {
        Self { voters: BTreeSet::from([founder]), learners: BTreeSet::new() }
    }

    pub(super) fn from_raft(state: &ConfState) -> Self {
        let ids = |ids: &[u64]| ids.iter().copied().map(RaftId).collect();
        Self { voters: ids(&state.voters), learners: ids(&state.learners) }
    }

    pub(super) fn to_raft(&self) -> ConfState {
        let ids = |ids: &BTreeSet<RaftId>| ids.iter().map(|id| id.0).collect::<Vec<_>>();
        ConfState { voters: ids(&self.voters), learners: ids(&self.learners), ..ConfState::default() }
    }
}

/// One step from one [`Membership`] to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MembershipChange {
    AddLearner(RaftId),
    /// A learner becomes a voter.
    Promote(RaftId),
    Remove(RaftId),
}

impl MembershipChange {
    pub(super) fn to_raft(self, context: Vec<u8>) -> ConfChange {
        let (change_type, id) = match self {
            Self::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            Self::Promote(id) => (ConfChangeType::AddNode, id),
            Self::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        ConfChange { change_type: change_type.into(), node_id: id.0, context, ..ConfChange::default() }
    }
}
impl fmt::Display for MembershipChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLearner(id) => write!(f, "add learner {id}"),
            Self::Promote(id) => write!(f, "promote learner {id}"),
            Self::Remove(id) => write!(f, "remove server {id}"),
        }
    }
}

/// A committed change that doesn't fit the servers as they are, like the removal of the last voter.
#[derive(Debug, thiserror::Error)]
#[error("cannot {change}: it does not fit the servers as they are now")]
pub struct RefusedChange {
    pub(super) change: MembershipChange,
    #[source]
    pub(super) source: raft::Error,
}

/// An entry that no agent of this version can have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("log entry {index} is not one that this agent can read: it was written by a newer agent, or it is damaged")]
pub struct UnreadableEntry {
    pub index: u64,
}

/// The membership change in an entry, with its context, or nothing when it holds none.
pub(super) fn of_entry(entry: &Entry) -> Result<Option<(MembershipChange, Vec<u8>)>, UnreadableEntry> {
    let unreadable = UnreadableEntry { index: entry.index };
    match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryNormal) => Ok(None),
        Some(EntryType::EntryConfChange) => {
            let change = ConfChange::decode(entry.data.as_slice()).map_err(|_| unreadable)?;
            let id = RaftId(change.node_id);
            let kind = match ConfChangeType::from_i32(change.change_type) {
                _ if id.0 == raft::INVALID_ID => return Err(unreadable),
                Some(ConfChangeType::AddLearnerNode) => MembershipChange::AddLearner(id),
                Some(ConfChangeType::AddNode) => MembershipChange::Promote(id),
                Some(ConfChangeType::RemoveNode) => MembershipChange::Remove(id),
                None => return Err(unreadable),
            };
            Ok(Some((kind, change.context)))
        }
        Some(EntryType::EntryConfChangeV2) | None => Err(unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_comes_out_of_its_entry_as_it_went_in() {
        for change in [MembershipChange::AddLearner, MembershipChange::Promote, MembershipChange::Remove] {
            let change = change(RaftId(7));
            let entry = Entry {
                entry_type: EntryType::EntryConfChange.into(),
                data: change.to_raft(b"why".to_vec()).encode_to_vec(),
                ..Entry::default()
            };
            assert_eq!(of_entry(&entry), Ok(Some((change, b"why".to_vec()))));
        }
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_unreadable() {
        for entry_type in [EntryType::EntryConfChangeV2.into(), 3, -1] {
            let entry = Entry { entry_type, index: 4, ..Entry::default() };
            assert_eq!(of_entry(&entry), Err(UnreadableEntry { index: 4 }));
        }
        let empty = Entry { entry_type: EntryType::EntryConfChange.into(), ..Entry::default() };
        assert!(of_entry(&empty).is_err(), "it names no server");
    }
}
